"""Statistics read off the dataflow: means and means of squares over some axes, deviations from a mean, variances."""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx_ir as ir

from .values import constant, dim, only_consumer, producer, rank, scalar, split_scalar

HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


@dataclass(frozen=True)
class Mean:
    """`value` is the mean over `axes` (negative, in order; None: not known) of `of`, or of the squares of `of`."""

    value: ir.Value
    of: ir.Value
    axes: tuple[int, ...] | None
    kept: bool  # whether it has its axes, as dims of 1


def uncast(value: ir.Value | None) -> ir.Value | None:
    """`value` before its cast from a half type to float32, or to its own type."""
    while (node := producer(value, "Cast")) is not None and node.inputs[0] is not None:
        source, made = node.inputs[0].dtype, node.outputs[0].dtype
        if source is None or (source is not made and (source not in HALVES or made is not ir.DataType.FLOAT)):
            break
        value = node.inputs[0]
    return value


def mean_of(value: ir.Value | None) -> Mean | None:
    """The mean that `value` is, by ReduceMean, or by ReduceSum and the number of elements."""
    node = _average(value, "ReduceSum")
    return None if node is None or value is None else _mean(value, node, node.inputs[0])


def mean_of_squares(value: ir.Value | None) -> Mean | None:
    """The mean of squares that `value` is."""
    node = _average(value, "ReduceSum", "ReduceSumSquare")
    if node is None or value is None:
        return None
    return _mean(value, node, node.inputs[0] if node.op_type == "ReduceSumSquare" else squared(node.inputs[0]))


def _mean(value: ir.Value, node: ir.Node, of: ir.Value | None) -> Mean | None:
    return None if of is None else Mean(value, of, axes_of(node), bool(node.attributes.get_int("keepdims", 1)))


def _average(value: ir.Value | None, *sums: str) -> ir.Node | None:
    """The ReduceMean that makes `value`, or the one of `sums` that is divided by the number of its elements."""
    node = producer(value, "ReduceMean", "Div", "Mul")
    if node is None or node.op_type == "ReduceMean":
        return node
    parts = split_scalar(node)
    if parts is None or parts[1] == 0 or (node.op_type == "Div" and parts[0] is not node.inputs[0]):
        return None
    total = producer(parts[0], *sums)
    axes = axes_of(total) if total is not None else None
    counted = sizes(total.inputs[0], axes) if total is not None and axes is not None else None
    number = parts[1] if node.op_type == "Div" else 1 / parts[1]
    # float32 holds the inverse of a size to 6e-8
    return total if counted is not None and math.isclose(number, math.prod(counted), rel_tol=1e-6) else None


def axes_of(node: ir.Node) -> tuple[int, ...] | None:
    """The axes of a Reduce op, negative, in order; None if they are not known."""
    dims = rank(node.inputs[0])
    operand = node.inputs[1] if len(node.inputs) > 1 else None
    array = constant(operand)
    if operand is not None and array is None:
        return None
    if dims is None:  # axes counted from the last one need no rank
        counted = array is not None and array.size > 0 and bool((array < 0).all())
        return tuple(sorted(int(axis) for axis in array.reshape(-1))) if array is not None and counted else None
    if array is None or array.size == 0:  # all, unless it is told to do nothing then
        return None if node.attributes.get_int("noop_with_empty_axes", 0) else tuple(range(-dims, 0))
    return tuple(sorted(int(axis) % dims - dims for axis in array.reshape(-1)))


def sizes(value: ir.Value | None, axes: tuple[int, ...]) -> list[int] | None:
    """The sizes of `axes`, if all of them are numbers."""
    found = [dim(value, axis) for axis in axes]
    return [size for size in found if isinstance(size, int)] if all(isinstance(size, int) for size in found) else None


def squared(value: ir.Value | None) -> ir.Value | None:
    """d of d * d or d ** 2."""
    node = producer(uncast(value), "Mul", "Pow")
    if node is None:
        return None
    same = node.inputs[0] is node.inputs[1] if node.op_type == "Mul" else scalar(node.inputs[1]) == 2
    return node.inputs[0] if same else None


def gives_back(value: ir.Value, mean: Mean, x: ir.Value) -> bool:
    """Whether the Unsqueeze or Reshape that makes `value` gives `mean`, which dropped its axes, these as dims of 1."""
    count = len(mean.axes or ())
    shape = [*(dim(x, axis) for axis in range((rank(x) or 0) - count)), *[1] * count]
    return None not in shape and [dim(value, axis) for axis in range(rank(value) or 0)] == shape


def variance_of(value: ir.Value) -> Mean | None:
    """`value` as the variance of x, which is the `of` of the result."""
    mean = mean_of_squares(value)
    if mean is not None:
        centre = centred(mean.of)
        # the axes of the mean that the deviation is from may be others: those are what the reason names
        return None if centre is None else Mean(value, centre.of, _different(mean, centre), mean.kept)
    node = producer(value, "Sub")
    if node is None:
        return None
    squares, centre = mean_of_squares(node.inputs[0]), mean_of(uncast(squared(node.inputs[1])))
    if squares is None or centre is None or uncast(centre.of) is not uncast(squares.of):
        return None
    if squares.axes != centre.axes or not squares.kept or not centre.kept:
        return None
    return Mean(_clamped(value), centre.of, centre.axes, kept=True)


def _clamped(value: ir.Value) -> ir.Value:
    """`value` behind the bound of 0 that keeps cancellation from making it negative."""
    reader = only_consumer(value, "Relu", "Max", "Clip")
    bounds = [scalar(operand) for operand in reader.inputs if operand is not value] if reader is not None else []
    bounded = reader is not None and bounds == ([] if reader.op_type == "Relu" else [0])
    return reader.outputs[0] if reader is not None and bounded else value


def _different(mean: Mean, centre: Mean) -> tuple[int, ...] | None:
    """The axes of both, or those of the one that is not over the last."""
    return centre.axes if centre.axes is None or centre.axes[-1] != -1 else mean.axes


def centred(deviation: ir.Value | None) -> Mean | None:
    """The mean of x - mean(x)."""
    node = producer(uncast(deviation), "Sub")
    if node is None:
        return None
    x, taken = node.inputs
    mean = mean_of(uncast(taken))
    if mean is None and (back := producer(taken, "Unsqueeze", "Reshape")) is not None:
        mean = mean_of(back.inputs[0])
        if mean is None or mean.kept or taken is None or not gives_back(taken, mean, mean.of):
            return None
    elif mean is None or not mean.kept:
        return None
    return mean if uncast(mean.of) is uncast(x) else None


def deviates(value: ir.Value | None, variance: Mean) -> bool:
    """Whether `value` is x - mean(x), x being what `variance` is of: not always the node whose square is averaged."""
    mean = centred(value)
    return mean is not None and uncast(mean.of) is uncast(variance.of) and mean.axes == variance.axes
