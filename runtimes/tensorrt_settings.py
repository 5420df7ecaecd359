"""What a user may set of TensorRT, and of TensorRT-RTX, which has fewer."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from .base import Settings
from .plan import Hardware


class RtxSettings(Settings):
    """Settings of TensorRT-RTX: there is no timing to cache or to spend effort on, and devices are named one by one."""

    workspace: int | None = Field(
        default=None, ge=1 << 20, description="bytes of device memory that layers may work in; null: all there is"
    )
    tf32: bool = Field(default=False, description="float32 products may round their inputs to 10 bits")
    weight_streaming: bool = Field(
        default=False, description="weights may stay in host memory and be streamed to the device"
    )
    refit: Literal["none", "refit", "strip_plan"] = Field(
        default="none",
        description="weights can be replaced later; strip_plan leaves them out of the plan: the graph has them",
    )
    profiling: Literal["detailed", "layer_names_only", "none"] = Field(
        default="detailed", description="what the plan tells of its layers; less than detailed cannot be inspected"
    )


class TensorRtSettings(RtxSettings):
    """Settings of full TensorRT."""

    optimization_level: int = Field(default=3, ge=0, le=5, description="effort of the builder, 0 to 5")
    version_compatible: bool = Field(default=False, description="the plan runs on later versions of the same major one")
    exclude_lean_runtime: bool = Field(
        default=False, description="a version-compatible plan does not carry the runtime that it needs"
    )
    hardware_compatibility: Hardware = Field(
        default="none", description="other devices that the plan runs on: ampere+ (8.0 and later) or same_cc"
    )
    timing_cache: bool = Field(default=True, description="kernel timings are kept in the store and used again")

    @model_validator(mode="after")
    def _lean_of_a_compatible_plan(self) -> Self:
        if self.exclude_lean_runtime and not self.version_compatible:
            raise ValueError("exclude_lean_runtime applies to a version_compatible plan alone: set that too")
        return self
