"""ort-cpu: ONNX Runtime on the CPU."""

from __future__ import annotations

from ...spec import Target
from .older import UseOlderKernels

TARGET = Target(
    name="ort-cpu",
    runtime="ort-cpu",
    precisions=("fp32", "int8-dynamic"),  # the CPU has no half-precision products: casts around float32 ones only
    devices=("",),
    # every standard op has a kernel or a function body, classical models' too; contrib ops are ONNX Runtime's own to
    # fuse at load
    legal={"": None, "ai.onnx.ml": None},
    lower=lambda _: [UseOlderKernels()],
    needs="onnxruntime",
)
