"""quantize: the lifted graph in the precision that was asked for, in standard ops."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from ...spec import Precision
from ..base import Trail, run
from .dynamic_int8 import DynamicInt8
from .half import HalfPrecision

# precision -> its passes; a target says which of these it takes
PASSES: dict[Precision, Callable[[], list[ir.passes.InPlacePass]]] = {
    "fp32": list,
    "fp16": lambda: [HalfPrecision(ir.DataType.FLOAT16)],
    "bf16": lambda: [HalfPrecision(ir.DataType.BFLOAT16)],
    "int8-dynamic": lambda: [DynamicInt8()],
}


def quantize(model: ir.Model, precision: Precision, trail: Trail | None = None) -> ir.Model:
    """`model` in `precision`, changed in place. Raises BuildError if a pass fails."""
    return run(model, PASSES[precision](), trail)


__all__ = ["PASSES", "quantize"]
