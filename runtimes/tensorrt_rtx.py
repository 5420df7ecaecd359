"""NVIDIA TensorRT for RTX: builds for named compute capabilities without a GPU."""

from __future__ import annotations

import re
from typing import Any

from ..errors import BuildError
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

        wanted = [re.fullmatch(r"sm(\d+)(\d)", name) for name in request.device.split("+")]
        pairs = [(int(found[1]), int(found[2])) for found in wanted if found]
        if len(pairs) < len(wanted):
            raise BuildError(
                f"{self.name} builds for compute capabilities, as in sm89 or sm75+sm89, but came {request.device!r}."
            )
        return CreateConfigRTX(profiles=[profile], compute_capabilities=pairs)

    def _device(self, request: BuildRequest) -> Options:
        return {"compute_capabilities": request.device.split("+"), "built_without_device": True}
