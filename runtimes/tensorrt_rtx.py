"""NVIDIA TensorRT for RTX: builds for named compute capabilities without a GPU."""

from __future__ import annotations

import re
from typing import Any, ClassVar

from ..errors import BuildError, DeviceError
from . import tensorrt_config
from .base import BuildRequest
from .cuda import cuda_missing
from .inspector import Layer
from .tensorrt import Build, TensorRt
from .tensorrt_settings import RtxSettings
from .timing_cache import TimingCache

_TURING = "sm75"


class TensorRtRtx(TensorRt):
    """TensorRT-RTX: parser and builder need no device, so what is built here is a real engine."""

    name = "tensorrt-rtx"
    settings: ClassVar[type[RtxSettings]] = RtxSettings
    package = "tensorrt_rtx"
    bindings = ("tensorrt_rtx_bindings",)
    extra = "rtx"
    rtx = True
    builds_for_others = True

    def builder_missing(self) -> str | None:
        return self._package_missing()

    def _devices(self, request: BuildRequest, settings: RtxSettings) -> tuple[str, ...]:
        names = tuple(request.device.split("+"))
        if not all(re.fullmatch(r"sm\d\d+", name) for name in names):
            raise BuildError(
                f"{self.name} builds for compute capabilities, as in sm89 or sm75+sm89, but came {request.device!r}."
            )
        if settings.refit != "none" and (reason := cuda_missing()):
            raise DeviceError(
                f"{self.name} compiles a plan that can be refitted on a device alone, and there is none: {reason}. "
                "Leave out the option refit, or build where the device is."
            )
        return names

    def _loader(self, build: Build, arguments: dict[str, Any]) -> Any:
        products = [layer for layer in build.network.products if _not_on_turing(layer)]
        if _TURING in build.devices and products:
            first = build.graph.call(products[0].nodes[0] if products[0].nodes else products[0].name)
            raise BuildError(
                f"{self.name} has no {products[0].precision} products for {_TURING}, of which there are "
                f"{len(products)}, the first at {first}: ask for fp16, or leave {_TURING} out."
            )
        return tensorrt_config.rtx(build.devices, arguments)

    def _cache(self, build: Build) -> TimingCache | None:  # noqa: ARG002 - it times nothing
        return None


def _not_on_turing(layer: Layer) -> bool:
    """Whether the builder of 1.7 refuses the product for Turing: of float32 it takes convolutions alone (measured)."""
    return layer.precision == "bf16" or (layer.precision == "fp32" and "CONVOLUTION" not in layer.kind)
