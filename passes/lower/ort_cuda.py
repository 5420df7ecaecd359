"""ort-cuda: ONNX Runtime on an NVIDIA GPU."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from ...devices import names
from ...runtimes.ort_cuda import CudaSettings, check_fixed
from ...spec import Lowering, Precision, Target
from .cuda_kernels import UseCudaKernels
from .half_norms import NormInHalf


class CheckFixedShapes(ir.passes.InPlacePass):
    """Raise UsageError where the graph has a dim that is no number: no CUDA graph can be captured of it."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        values = [*model.graph.inputs, *model.graph.outputs]
        check_fixed(
            {
                str(value.name): ("unknown rank",)
                if value.shape is None
                else tuple(size if isinstance(size, int) else str(size.value) for size in value.shape)
                for value in values
            }
        )
        return ir.passes.PassResult(model, False)


def _passes(lowering: Lowering) -> list[Any]:
    """Attention stays the standard op: its kernels choose between flash, memory-efficient and plain by themselves."""
    fixed = isinstance(lowering.settings, CudaSettings) and lowering.settings.cuda_graph
    return [*[CheckFixedShapes()] * fixed, NormInHalf(), UseCudaKernels()]


_INTEGER = (
    "ONNX Runtime has no fused integer product on CUDA, so a quantized model is slower there than in half precision; "
    "take fp16 or bf16, or int8-dynamic on ort-cpu"
)
_REFUSED: dict[Precision, str] = {
    "int8": _INTEGER,
    "int8-dynamic": _INTEGER,
    "int4": "no int4 weights in this version; take fp16 or bf16",
    "fp8": "ONNX Runtime has no fp8 product on CUDA; take fp16 or bf16",
    "nvfp4": "ONNX Runtime has no fp4 product on CUDA; take fp16 or bf16",
}

TARGET = Target(
    name="ort-cuda",
    runtime="ort-cuda",
    precisions=("fp16", "bf16", "fp32"),
    refused=_REFUSED,
    devices=("", *names("ort-cuda")),
    legal={"": None, "ai.onnx.ml": frozenset({"LabelEncoder"})},
    lower=_passes,
    needs="an NVIDIA GPU, onnxruntime-gpu, and CUDA 13 with cuBLAS (`pip install onnxruntime-gpu[cuda,cudnn]`)",
)
