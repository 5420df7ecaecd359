"""ONNX Runtime on an NVIDIA GPU."""

from __future__ import annotations

from pathlib import Path

from .base import BuildRequest, BuildResult, Runtime, Session, Settings
from .cuda import cuda_missing
from .ort_cpu import OrtSession, distribution

PROVIDER = "CUDAExecutionProvider"


class OrtCuda(Runtime):
    """ONNX Runtime, CUDA execution provider; a node that would run on the CPU instead is an error."""

    name = "ort-cuda"

    def missing(self) -> str | None:
        reason = cuda_missing()
        if reason is not None:
            return reason
        import onnxruntime as ort

        if PROVIDER not in ort.get_available_providers():
            name, number = distribution()
            return f"{name} {number} has no CUDA provider: `pip install onnxruntime-gpu[cuda,cudnn]`"
        return None

    def build(self, request: BuildRequest) -> BuildResult:
        self.open(request.graph).close()  # proves the provider
        return BuildResult(request.graph.name, dict([distribution()]), {"provider": PROVIDER})

    def open(self, artifact: Path, settings: Settings | None = None) -> Session:  # noqa: ARG002 - none yet
        import onnxruntime as ort

        ort.preload_dlls()  # CUDA and cuDNN from site-packages, where pip puts them
        return OrtSession(artifact, [PROVIDER])
