"""ort-cpu: ONNX Runtime on the CPU."""

from __future__ import annotations

from typing import Any

from ...spec import Lowering, Target
from ..lift.reshapes import FoldReshapes
from .heads import MergeHeads
from .older import UseOlderKernels
from .rows import FlattenRows


def _passes(lowering: Lowering) -> list[Any]:  # noqa: ARG001
    return [UseOlderKernels(), MergeHeads(), FoldReshapes(), FlattenRows(), FoldReshapes()]


TARGET = Target(
    name="ort-cpu",
    runtime="ort-cpu",
    precisions=("fp32", "int8-dynamic"),  # the CPU has no half-precision products: casts around float32 ones only
    devices=("",),
    # every standard op has a kernel or a function body, classical models' too; contrib ops are ONNX Runtime's own to
    # fuse at load
    legal={"": None, "ai.onnx.ml": None},
    lower=_passes,
    needs="onnxruntime",
)
