"""What a graph's values can be at most, by rules alone: constants are known, norms and sigmoids bound whatever comes.

A rule claims nothing where it does not know: a value without a bound may be anything. A `Bound` holds the lowest and
highest entry, and the largest length of a row (the entries along the last axis), because a norm bounds rows: through a
matrix W each entry is then at most the row's length times that of W's column, which is far below the sum of all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..lift.values import constant, dim, dims, rank


@dataclass(frozen=True)
class Bound:
    """low <= each entry <= high, and each row is at most `row` long."""

    low: float
    high: float
    row: float = math.inf

    @property
    def peak(self) -> float:
        """The largest |entry|."""
        return max(abs(self.low), abs(self.high))


Bounds = dict[ir.Value, Bound]
Rule = Callable[[ir.Node, list[Bound]], Bound | None]


def bound_values(graph: ir.Graph) -> Bounds:
    """Bounds of the float values of `graph`, as far as rules tell them."""
    found: Bounds = {}
    for node in graph:
        made = _bound(node, found)
        if made is None or not (math.isfinite(made.low) and math.isfinite(made.high)):
            continue
        for value in node.outputs if node.op_type == "Split" else node.outputs[:1]:
            found[value] = Bound(made.low, made.high, min(made.row, _row(made.peak, value)))
    return found


def _bound(node: ir.Node, known: Bounds) -> Bound | None:
    rule = RULES.get(node.op_type) if node.domain == "" else None
    if rule is None:
        return None
    operands = []
    for index, value in enumerate(node.inputs):
        if value is None or index not in FLOATS.get(node.op_type, range(len(node.inputs))):
            continue
        if value not in known and (exact := _constant(value)) is not None:
            known[value] = exact
        if value not in known:
            return None
        operands.append(known[value])
    with np.errstate(all="ignore"):
        return rule(node, operands)


def _constant(value: ir.Value) -> Bound | None:
    if value.dtype == ir.DataType.BOOL:
        return Bound(0.0, 1.0)  # once it is cast
    array = constant(value)
    if array is None or array.dtype.kind != "f" or not array.size or not np.isfinite(array).all():
        return None
    rows = array.reshape(-1, array.shape[-1] if array.ndim else 1)
    return Bound(float(array.min()), float(array.max()), float(np.linalg.norm(rows, axis=1).max()))


def _row(peak: float, value: ir.Value) -> float:
    size = dim(value, -1)
    return peak * math.sqrt(size) if isinstance(size, int) else math.inf


def _symmetric(peak: float, row: float = math.inf) -> Bound:
    return Bound(-peak, peak, row)


def _between(low: float, high: float) -> Rule:
    return lambda _, __: Bound(low, high)


def _same(_: ir.Node, operands: list[Bound]) -> Bound:
    """Each row of the result lies within a row of the operand."""
    return operands[0]


def _moved(node: ir.Node, operands: list[Bound]) -> Bound:
    """The same entries in other rows; a row cut into equal parts bounds the parts."""
    before, after = dim(node.inputs[0], -1), dim(node.outputs[0], -1)
    cut = isinstance(before, int) and isinstance(after, int) and before % max(1, after) == 0
    perm = node.attributes.get_ints("perm")
    last = perm is not None and perm[-1] == len(perm) - 1
    keeps = cut if node.op_type == "Reshape" else last
    return Bound(operands[0].low, operands[0].high, operands[0].row if keeps else math.inf)


def _hull(_: ir.Node, operands: list[Bound]) -> Bound:
    """One of the operands, entry by entry."""
    return Bound(min(o.low for o in operands), max(o.high for o in operands))


def _add(node: ir.Node, operands: list[Bound]) -> Bound:
    a, b = operands
    row = a.row + b.row if _aligned(node) else math.inf
    return Bound(a.low + b.low, a.high + b.high, row)


def _sub(node: ir.Node, operands: list[Bound]) -> Bound:
    a, b = operands
    return _add(node, [a, Bound(-b.high, -b.low, b.row)])


def _mul(node: ir.Node, operands: list[Bound]) -> Bound:
    a, b = operands
    ends = [x * y for x in (a.low, a.high) for y in (b.low, b.high)]
    row = min(a.row * b.peak, b.row * a.peak) if _aligned(node) else math.inf
    return Bound(min(ends), max(ends), row)


def _aligned(node: ir.Node) -> bool:
    """Whether no operand's rows are made longer by broadcasting."""
    size = dim(node.outputs[0], -1)
    return size is not None and all(dim(value, -1) == size for value in node.inputs)


def _div(node: ir.Node, operands: list[Bound]) -> Bound | None:
    a, b = operands
    if b.low <= 0 <= b.high:
        return None
    return _mul(node, [a, Bound(1 / b.high, 1 / b.low)])


def _monotone(function: Callable[[float], float]) -> Rule:
    def rule(_: ir.Node, operands: list[Bound]) -> Bound | None:
        try:
            return Bound(function(operands[0].low), function(operands[0].high))
        except (ValueError, OverflowError):
            return None

    return rule


def _gated(floor: float) -> Rule:
    """Gelu and its like: between `floor` and the operand's highest, and never farther from zero than the operand."""
    return lambda _, operands: Bound(max(floor, -operands[0].peak), max(operands[0].high, 0.0), operands[0].row)


def _abs(_: ir.Node, operands: list[Bound]) -> Bound:
    return Bound(0.0, operands[0].peak, operands[0].row)


def _neg(_: ir.Node, operands: list[Bound]) -> Bound:
    return Bound(-operands[0].high, -operands[0].low, operands[0].row)


def _clip(node: ir.Node, operands: list[Bound]) -> Bound:
    low, high = (constant(value) for value in [*node.inputs[1:3], None, None][:2])
    floor = float(low) if low is not None else -math.inf
    ceiling = float(high) if high is not None else math.inf
    ends = (min(max(end, floor), ceiling) for end in (operands[0].low, operands[0].high))
    return Bound(*ends)


def _pow(node: ir.Node, operands: list[Bound]) -> Bound | None:
    exponent = constant(node.inputs[1])
    if exponent is None or exponent.size != 1 or not float(exponent.reshape(())).is_integer() or exponent.min() < 0:
        return None
    power = int(exponent.reshape(()))
    peak = operands[0].peak ** power if operands[0].peak < 1e30 else math.inf
    return Bound(0.0 if power % 2 == 0 else -peak, peak)


def _norm(node: ir.Node, _: list[Bound]) -> Bound | None:
    """A normed row of n entries is at most sqrt(n) long, whatever came in; then scale and bias."""
    shape = dims(node.inputs[0]) or [None]
    axis = node.attributes.get_int("axis", -1)
    sizes = shape[axis:]
    if not all(isinstance(size, int) for size in sizes):
        return None
    length = math.sqrt(math.prod(size for size in sizes if isinstance(size, int)))
    scale, bias = (constant(value) for value in [*node.inputs[1:3], None, None][:2])
    if scale is None or (bias is None and len(node.inputs) > 2 and node.inputs[2] is not None):
        return None
    shift = np.zeros(1) if bias is None else bias
    row = length * float(np.abs(scale).max()) + float(np.linalg.norm(shift))
    return _symmetric(float((length * np.abs(scale) + np.abs(shift)).max()), row)


def _product(node: ir.Node, operands: list[Bound]) -> Bound | None:
    """x @ W + b, W constant."""
    weight = constant(node.inputs[1])
    if weight is None or weight.ndim != 2:
        return None
    gemm = node.op_type == "Gemm"
    if gemm and node.attributes.get_int("transA", False):
        return None
    matrix = np.abs(weight.T if gemm and node.attributes.get_int("transB", False) else weight)
    x = operands[0]
    with np.errstate(over="ignore"):
        lengths = np.sqrt((matrix * matrix).sum(axis=0))
        peaks = np.minimum(matrix.sum(axis=0) * x.peak, lengths * x.row)
    factor = abs(node.attributes.get_float("alpha", 1.0)) if gemm else 1.0
    made = _symmetric(float(peaks.max()) * factor, x.row * float(np.linalg.norm(lengths)) * factor)
    if len(operands) < 3:
        return made
    beta, bias = abs(node.attributes.get_float("beta", 1.0)), operands[2]
    return _symmetric(made.peak + beta * bias.peak)


def _conv(node: ir.Node, operands: list[Bound]) -> Bound | None:
    weight = constant(node.inputs[1])
    if weight is None:
        return None
    shift = operands[2].peak if len(operands) > 2 else 0.0
    return _symmetric(operands[0].peak * float(np.abs(weight).reshape(len(weight), -1).sum(axis=1).max()) + shift)


def _concat(node: ir.Node, operands: list[Bound]) -> Bound:
    hull, axis = _hull(node, operands), node.attributes.get_int("axis", 0)
    last = axis in (-1, (rank(node.inputs[0]) or 0) - 1)
    rows = [operand.row for operand in operands]
    return Bound(hull.low, hull.high, math.hypot(*rows) if last else max(rows))


def _gather(node: ir.Node, operands: list[Bound]) -> Bound:
    axis = node.attributes.get_int("axis", 0)
    keeps = axis not in (-1, (rank(node.inputs[0]) or 0) - 1)
    return operands[0] if keeps else Bound(operands[0].low, operands[0].high)


def _attention(node: ir.Node, operands: list[Bound]) -> Bound:
    """Means of rows of V; zero for a query that no key is allowed."""
    value = operands[0]
    return Bound(min(value.low, 0.0), max(value.high, 0.0), value.row if rank(node.inputs[2]) == 4 else math.inf)


def _rotary(_: ir.Node, operands: list[Bound]) -> Bound:
    x, cos, sin = operands[:3]
    return _symmetric(x.peak * (cos.peak + sin.peak), x.row * math.hypot(cos.peak, sin.peak))


# op -> the operands that are numbers to be bounded; of ops that are not listed all are
FLOATS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(
        ["Clip", "Gather", "GatherElements", "GatherND", "Reshape", "Unsqueeze", "Squeeze", "Expand"], (0,)
    ),
    **dict.fromkeys(["Tile", "Slice", "Split", "TopK", "ReduceMean", "ReduceMax", "ReduceMin", "Dropout", "Pow"], (0,)),
    **dict.fromkeys(["Sigmoid", "Tanh", "Erf", "Sin", "Cos", "Softmax", "HardSigmoid", "Softsign"], ()),
    **dict.fromkeys(["LayerNormalization", "RMSNormalization", "LpNormalization"], ()),
    "MatMul": (0,),
    "Where": (1, 2),
    "Attention": (2,),
    "RotaryEmbedding": (0, 1, 2),
}
RULES: dict[str, Rule] = {
    **dict.fromkeys(["Cast", "Identity", "Dropout", "Slice", "Split", "TopK"], _same),
    **dict.fromkeys(["Reshape", "Transpose", "Unsqueeze", "Squeeze", "Flatten", "Expand", "Tile"], _moved),
    **dict.fromkeys(["GatherElements", "GatherND", "ReduceMean", "ReduceMax", "ReduceMin"], _moved),
    **dict.fromkeys(["AveragePool", "MaxPool", "GlobalAveragePool"], _moved),
    **dict.fromkeys(["Max", "Min", "Where", "Mean"], _hull),
    **dict.fromkeys(["Sigmoid", "Softmax", "HardSigmoid"], _between(0.0, 1.0)),
    **dict.fromkeys(["Tanh", "Erf", "Sin", "Cos", "Softsign", "LpNormalization"], _between(-1.0, 1.0)),
    **dict.fromkeys(["Gelu", "HardSwish", "Mish"], _gated(-0.4)),
    **dict.fromkeys(["LayerNormalization", "RMSNormalization"], _norm),
    **dict.fromkeys(["MatMul", "Gemm"], _product),
    "Exp": _monotone(math.exp),
    "Sqrt": _monotone(math.sqrt),
    "Log": _monotone(math.log),
    "Relu": _monotone(lambda x: max(x, 0.0)),
    "Softplus": _monotone(lambda x: max(x, 0.0) + math.log1p(math.exp(-abs(x)))),
    "Add": _add,
    "Sub": _sub,
    "Mul": _mul,
    "Div": _div,
    "Abs": _abs,
    "Neg": _neg,
    "Clip": _clip,
    "Pow": _pow,
    "Conv": _conv,
    "Concat": _concat,
    "Gather": _gather,
    "Attention": _attention,
    "RotaryEmbedding": _rotary,
}
