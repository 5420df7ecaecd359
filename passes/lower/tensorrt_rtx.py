"""tensorrt-rtx: NVIDIA TensorRT for RTX; builds for a named compute capability, without a GPU."""

from __future__ import annotations

from ...devices import names
from ...spec import Target
from .tensorrt import OPS, passes

TARGET = Target(
    name="tensorrt-rtx",
    runtime="tensorrt-rtx",
    precisions=("fp16", "bf16", "fp32"),
    devices=names("tensorrt-rtx"),
    joins=True,
    legal={"": OPS},
    lower=passes,
    needs="an RTX GPU (compute capability 7.5, 8.6, 8.9 or 12.0) to run; nothing but the package to build",
)
