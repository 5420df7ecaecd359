"""ort-cuda: ONNX Runtime on an NVIDIA GPU."""

from __future__ import annotations

from ...spec import Target
from .older import UseOlderKernels

TARGET = Target(
    name="ort-cuda",
    runtime="ort-cuda",
    precisions=("fp16", "bf16", "fp32"),  # int8 has no fused product here: it is slower than fp16
    devices=("",),
    legal={"": None, "ai.onnx.ml": None},
    lower=lambda _: [UseOlderKernels()],
    needs="an NVIDIA GPU, onnxruntime-gpu, and CUDA 13 with cuBLAS (`pip install onnxruntime-gpu[cuda,cudnn]`)",
)
