"""NVIDIA TensorRT for RTX: builds for named compute capabilities without a GPU."""

from __future__ import annotations

from typing import Any

from .base import BuildRequest, Options
from .tensorrt import TensorRt


class TensorRtRtx(TensorRt):
    """TensorRT-RTX: parser and builder need no device, so what is built here is a real engine."""

    name = "tensorrt-rtx"
    package = "tensorrt_rtx"
    bindings = ("tensorrt_rtx_bindings",)
    extra = "rtx"
    rtx = True

    def builder_missing(self) -> str | None:
        return self._package_missing()

    def _config(self, request: BuildRequest, profile: Any) -> Any:
        from polygraphy.backend.tensorrt_rtx import CreateConfigRTX

        digits = [name.removeprefix("sm") for name in request.device.split("+")]
        return CreateConfigRTX(profiles=[profile], compute_capabilities=[(int(d[:-1]), int(d[-1])) for d in digits])

    def _device(self, request: BuildRequest) -> Options:
        return {"compute_capabilities": request.device.split("+"), "built_without_device": True}
