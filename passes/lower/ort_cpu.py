"""ort-cpu: ONNX Runtime on the CPU."""

from __future__ import annotations

from ...spec import Target
from .older import UseOlderKernels

_HALF = (
    "ONNX Runtime has no half-precision products on the CPU, and would cast to float32 and back around each; take fp32 "
    "or int8-dynamic"
)

TARGET = Target(
    name="ort-cpu",
    runtime="ort-cpu",
    precisions=("fp32", "int8-dynamic"),
    refused=dict.fromkeys(("fp16", "bf16"), _HALF),
    devices=("",),
    # every standard op has a kernel or a function body, classical models' too; contrib ops are ONNX Runtime's own to
    # fuse at load
    legal={"": None, "ai.onnx.ml": None},
    lower=lambda _: [UseOlderKernels()],
    needs="onnxruntime",
)
