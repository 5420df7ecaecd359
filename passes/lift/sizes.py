"""Integer lists that shapes are computed from, worked out to sizes and dim names.

    Concat(Shape(x)[0:1], Mul(Shape(x)[1], 2), -1)   ->   ["batch", "2*sequence", -1]

A name is an expression of the graph's dim names, as onnx_ir writes and evaluates it; names stand for sizes of 1 or
more, so that a name is never equal to 0 or -1. What cannot be worked out is None.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from itertools import repeat

import onnx_ir as ir

from .values import constant, dim, dims, producer, rank

Size = int | str | None
Dims = list[Size]

LONGEST = 64  # more elements than this are no shape
_INTEGERS = (ir.DataType.INT64, ir.DataType.INT32)


def sizes(value: ir.Value | None) -> Dims | None:
    """The elements of an integer scalar or list as sizes, dim names or None (unknown); None if all are."""
    array = constant(value)
    if array is not None:
        return [int(item) for item in array.reshape(-1)] if array.ndim <= 1 and array.size <= LONGEST else None
    node = producer(value)
    return _READERS[node.op_type](node) if node is not None and node.op_type in _READERS else None


def combine(op_type: str, one: Size, other: Size) -> Size:
    """Add, Sub, Mul, Div, Min or Max of two sizes; None if it cannot be worked out."""
    if one is None or other is None:
        return None
    if isinstance(one, int) and isinstance(other, int):
        return None if op_type == "Div" and other == 0 else _NUMBERS[op_type](one, other)
    if other == _NEUTRAL.get(op_type):
        return one
    try:
        made = _NAMES[op_type](*(ir.SymbolicDim(size) if isinstance(size, str) else size for size in (one, other)))
    except (TypeError, ValueError):  # a quotient of a number by a name; a name that is no expression
        return None
    text = str(made)
    return int(text) if text.lstrip("-").isdigit() else text


def total(factors: Dims) -> Size:
    """The product of sizes."""
    product: Size = 1
    for factor in factors:
        product = combine("Mul", product, factor) if product != 1 else factor
    return product


_NEUTRAL = {"Add": 0, "Sub": 0, "Mul": 1, "Div": 1}
_NUMBERS: dict[str, Callable[[int, int], int]] = {
    "Add": operator.add,
    "Sub": operator.sub,
    "Mul": operator.mul,
    "Div": lambda one, other: abs(one) // abs(other) * (1 if one * other >= 0 else -1),  # towards 0
    "Min": min,
    "Max": max,
}
_NAMES: dict[str, Callable[..., object]] = {
    "Add": operator.add,
    "Sub": operator.sub,
    "Mul": operator.mul,
    "Div": operator.floordiv,
    "Min": lambda one, other: ir.SymbolicDim(f"min({one}, {other})") + 0,  # a sum is written in one way only
    "Max": lambda one, other: ir.SymbolicDim(f"max({one}, {other})") + 0,
}


def _of_shape(node: ir.Node) -> Dims | None:
    known = dims(node.inputs[0])
    if known is None:
        return None
    return known[node.attributes.get_int("start", 0) : node.attributes.get_int("end", len(known))]


def _of_concat(node: ir.Node) -> Dims | None:
    parts = [sizes(value) for value in node.inputs]
    # a part of one unknown element would do, but the length of an unknown part is not known
    known = [part if part is not None else _one_unknown(value) for part, value in zip(parts, node.inputs, strict=True)]
    return None if any(part is None for part in known) else [size for part in known for size in part or []]


def _one_unknown(value: ir.Value | None) -> Dims | None:
    return [None] if dim(value, 0) == 1 else None


def _of_slice(node: ir.Node) -> Dims | None:
    data = sizes(node.inputs[0])
    bounds = [constant(value) for value in node.inputs[1:]]
    if data is None or any(bound is None or bound.size != 1 for bound in bounds):
        return None
    start, end, *rest = (int(bound.reshape(())) for bound in bounds if bound is not None)
    return data[start : end : rest[1] if len(rest) > 1 else 1]


def _of_gather(node: ir.Node) -> Dims | None:
    data, index = sizes(node.inputs[0]), constant(node.inputs[1])
    if data is None or index is None:
        return None
    return [data[int(i)] for i in index.reshape(-1)]


def _of_reshape(node: ir.Node) -> Dims | None:
    """Of a size to a list of one, or back."""
    return sizes(node.inputs[0]) if rank(node.outputs[0]) in (0, 1) else None


def _of_same(node: ir.Node) -> Dims | None:
    return sizes(node.inputs[0])


def _of_cast(node: ir.Node) -> Dims | None:
    return sizes(node.inputs[0]) if node.outputs[0].dtype in _INTEGERS else None


def _pairs(node: ir.Node, first: int = 0) -> list[tuple[Size, Size]] | None:
    """The elements of two operands, side by side as they broadcast."""
    one, other = sizes(node.inputs[first]), sizes(node.inputs[first + 1])
    if one is None or other is None or (len(one) != len(other) and 1 not in (len(one), len(other))):
        return None
    count = max(len(one), len(other))
    return list(zip(*(list(repeat(part[0], count)) if len(part) == 1 else part for part in (one, other)), strict=True))


def _of_arithmetic(node: ir.Node) -> Dims | None:
    pairs = _pairs(node) if node.outputs[0].dtype in _INTEGERS and len(node.inputs) == 2 else None
    return None if pairs is None else [combine(node.op_type, one, other) for one, other in pairs]


def _of_equal(node: ir.Node) -> Dims | None:
    """1 where both are known to be equal, 0 where they are known not to be."""
    pairs = _pairs(node)
    return None if pairs is None else [_are_equal(one, other) for one, other in pairs]


def _are_equal(one: Size, other: Size) -> Size:
    if one is None or other is None:
        return None
    if one == other:
        return 1
    numbers = [size for size in (one, other) if isinstance(size, int)]
    return 0 if len(numbers) == 2 or (len(numbers) == 1 and numbers[0] < 1) else None


def _of_where(node: ir.Node) -> Dims | None:
    condition, pairs = sizes(node.inputs[0]), _pairs(node, 1)
    if condition is None or pairs is None or len(condition) != len(pairs):
        return None
    return [
        one if chosen == 1 or one == other else other if chosen == 0 else None
        for chosen, (one, other) in zip(condition, pairs, strict=True)
    ]


def _of_constant_of_shape(node: ir.Node) -> Dims | None:
    count = sizes(node.inputs[0])
    fill = node.attributes.get_tensor("value")
    if count is None or len(count) != 1 or not isinstance(count[0], int) or count[0] > LONGEST:
        return None
    return (
        [0 if fill is None else int(fill.numpy().reshape(-1)[0])] * count[0]
        if node.outputs[0].dtype in _INTEGERS
        else None
    )


def _of_product(node: ir.Node) -> Dims | None:
    parts = sizes(node.inputs[0])
    return None if parts is None else [total(parts)]


_READERS: dict[str, Callable[[ir.Node], Dims | None]] = {
    "Reshape": _of_reshape,
    "Shape": _of_shape,
    "Concat": _of_concat,
    "Slice": _of_slice,
    "Gather": _of_gather,
    "Unsqueeze": _of_same,
    "Squeeze": _of_same,
    "Identity": _of_same,
    "Cast": _of_cast,
    "Add": _of_arithmetic,
    "Sub": _of_arithmetic,
    "Mul": _of_arithmetic,
    "Div": _of_arithmetic,
    "Min": _of_arithmetic,
    "Max": _of_arithmetic,
    "Equal": _of_equal,
    "Where": _of_where,
    "ConstantOfShape": _of_constant_of_shape,
    "ReduceProd": _of_product,
}
SHAPE_OPS = frozenset(_READERS)
