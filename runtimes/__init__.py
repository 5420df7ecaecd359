"""runtimes: one file a backend, one contract for all."""

from __future__ import annotations

from .base import BuildRequest, BuildResult, Runtime, Session, Settings, TensorInfo
from .openvino import OpenVino
from .ort_cpu import OrtCpu
from .ort_cuda import OrtCuda
from .tensorrt import TensorRt
from .tensorrt_rtx import TensorRtRtx

RUNTIMES: dict[str, Runtime] = {kind.name: kind() for kind in (OrtCpu, OrtCuda, OpenVino, TensorRt, TensorRtRtx)}

__all__ = ["RUNTIMES", "BuildRequest", "BuildResult", "Runtime", "Session", "Settings", "TensorInfo"]
