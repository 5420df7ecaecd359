"""The builder's configuration, made by polygraphy from the settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .tensorrt_network import Shapes
from .tensorrt_settings import RtxSettings, TensorRtSettings

_COMPATIBLE = {"ampere+": "AMPERE_PLUS", "same_cc": "SAME_COMPUTE_CAPABILITY"}


def common(trt: Any, settings: RtxSettings, shapes: Shapes) -> dict[str, Any]:
    """Arguments of polygraphy's `CreateConfig` and `CreateConfigRTX` alike."""
    from polygraphy.backend.trt import Profile

    profile = Profile()
    for name, sizes in shapes.items():
        profile.add(name, *sizes)
    limit = {} if settings.workspace is None else {trt.MemoryPoolType.WORKSPACE: settings.workspace}
    return {
        "profiles": [profile],
        "memory_pool_limits": limit,
        "refittable": settings.refit == "refit",
        "strip_plan": settings.refit == "strip_plan",
        "weight_streaming": settings.weight_streaming,
        "profiling_verbosity": getattr(trt.ProfilingVerbosity, settings.profiling.upper()),
    }


def full(trt: Any, settings: TensorRtSettings, arguments: Mapping[str, Any]) -> Any:
    """The loader of a configuration for full TensorRT."""
    from polygraphy.backend.trt import CreateConfig

    level = _COMPATIBLE.get(settings.hardware_compatibility)
    return CreateConfig(
        builder_optimization_level=settings.optimization_level,
        version_compatible=settings.version_compatible,
        exclude_lean_runtime=settings.exclude_lean_runtime,
        hardware_compatibility_level=level and getattr(trt.HardwareCompatibilityLevel, level),
        **arguments,
    )


def rtx(devices: Sequence[str], arguments: Mapping[str, Any]) -> Any:
    """The loader of a configuration for TensorRT-RTX; `devices` as in sm89."""
    from polygraphy.backend.tensorrt_rtx import CreateConfigRTX

    pairs = [(int(name[2:-1]), int(name[-1])) for name in devices]
    return CreateConfigRTX(compute_capabilities=pairs, **arguments)


def set_tf32(trt: Any, config: Any, wanted: bool) -> None:
    """It is on by default, and polygraphy leaves it on for TensorRT-RTX."""
    (config.set_flag if wanted else config.clear_flag)(trt.BuilderFlag.TF32)
