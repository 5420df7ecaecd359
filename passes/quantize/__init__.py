"""quantize: the lifted graph in the precision that was asked for, in standard ops."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from ...spec import Precision
from ..base import Trail, run
from .dynamic_int8 import DynamicInt8
from .half import HalfPrecision
from .ranges import Sampled

# precision -> its passes, given inputs to measure on, if there are any; a target says which of these it takes
PASSES: dict[Precision, Callable[[Sampled | None], list[ir.passes.InPlacePass]]] = {
    "fp32": lambda _: [],
    "fp16": lambda data: [HalfPrecision(ir.DataType.FLOAT16, data)],
    "bf16": lambda data: [HalfPrecision(ir.DataType.BFLOAT16, data)],
    "int8-dynamic": lambda _: [DynamicInt8()],
}
MEASURED: frozenset[Precision] = frozenset({"fp16", "bf16"})  # take calibration data


def quantize(
    model: ir.Model, precision: Precision, trail: Trail | None = None, data: Sampled | None = None
) -> ir.Model:
    """`model` in `precision`, changed in place. Raises BuildError if a pass fails.

    `data`: inputs of the model, on which a precision of `MEASURED` looks at its values.
    """
    return run(model, PASSES[precision](data), trail)


__all__ = ["MEASURED", "PASSES", "Sampled", "quantize"]
