"""What the rules of norms share: a mean over the last axes, its root, the quotient, and what scales and shifts that.

    data / sqrt(mean(squares) + epsilon) * scale + bias

Casts from a half type to float32 and back are looked through where the standard norms do the same: they too compute
their statistics in float32 (stash_type 1) and round the normalised values before the scale. A scale that is applied in
float32, before the cast back, is taken into the half type only if it loses nothing there; otherwise the casts stay
around a norm in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx_ir as ir

from ..base import MisfitError
from .means import HALVES, Mean, gives_back, sizes, uncast
from .values import add_constant, constant, consumers, dim, only_consumer, producer, rank, scalar, split_scalar

TYPES = (ir.DataType.FLOAT, *HALVES)  # of the standard norms whose statistics are float32
_NUMPY = {ir.DataType.FLOAT16: np.dtype(np.float16), ir.DataType.BFLOAT16: np.dtype(ml_dtypes.bfloat16)}

IsData = Callable[[ir.Value | None], bool]


@dataclass(frozen=True)
class Root:
    """`value` is sqrt(variance + epsilon), or one by it if `inverse`."""

    value: ir.Value
    epsilon: float
    inverse: bool


@dataclass(frozen=True)
class Norm:
    """What was read off the dataflow behind one mean of squares."""

    x: ir.Value
    epsilon: float
    end: ir.Node
    scale: ir.Value | None = None
    bias: ir.Value | None = None


def check_axes(mean: Mean) -> list[int]:
    """The sizes of the axes that `mean` is over. Raises MisfitError if they are not the last ones, or not known."""
    axes, x = mean.axes, mean.of
    if axes is None:
        raise MisfitError("a mean is over axes that are not known")
    if axes != tuple(range(-len(axes), 0)):
        positive = [axis + (rank(x) or 0) for axis in axes]
        raise MisfitError(f"a mean is over axes {positive}, not over the last ones")
    found = sizes(x, axes)
    if found is None:
        raise MisfitError(f"the normalised axes have the sizes {[dim(x, axis) for axis in axes]}: no numbers")
    return found


def _kept(variance: Mean, x: ir.Value) -> ir.Value:
    """The variance with its axes: itself, or what gives them back."""
    if variance.kept:
        return variance.value
    # a Shape is how an exporter spells the operand of that Reshape
    readers = [node for node in consumers(variance.value) if node.op_type != "Shape"]
    back = readers[0].outputs[0] if len(readers) == 1 and not variance.value.is_graph_output() else None
    if back is None or producer(back, "Unsqueeze", "Reshape") is None:
        raise MisfitError("the variance drops its axis and does not get it back")
    if not gives_back(back, variance, x):
        raise MisfitError(f"the variance of shape {variance.value.shape} becomes {back.shape}")
    return back


def follow(value: ir.Value, wanted: str, name: str) -> tuple[ir.Node, ir.Value]:
    """The only reader of `value`, behind casts, of the `wanted` op types; and its operand that is `value`."""
    while True:
        reader, maker = only_consumer(value), value.producer()
        if reader is None:
            made = maker.op_type if maker is not None else "an input"
            raise MisfitError(f"{made} before {name} is read more than once, or is an output of the graph")
        if reader.domain == "" and reader.op_type == "Cast" and reader.outputs[0].dtype in TYPES:
            value = reader.outputs[0]
        elif reader.domain == "" and reader.op_type in wanted.split(" or "):
            return reader, value
        else:
            raise MisfitError(f"{reader.op_type} stands where {name} should be")


def read_root(variance: Mean, x: ir.Value) -> Root:
    """From a mean of squares to its root, epsilon inside. Raises MisfitError."""
    step, _ = follow(_kept(variance, x), "Add or Sqrt or Pow", "epsilon")
    epsilon = 0.0
    if step.op_type == "Add":
        parts = split_scalar(step)
        if parts is None:
            raise MisfitError("what is added to the variance is no constant of one element")
        epsilon = parts[1]
        step, _ = follow(step.outputs[0], "Sqrt or Pow", "the root")
    power = 0.5 if step.op_type == "Sqrt" else scalar(step.inputs[1])
    if power not in (0.5, -0.5):
        raise MisfitError(f"the variance is raised to the power of {power}")
    return invert(Root(step.outputs[0], epsilon, power < 0))


def invert(root: Root) -> Root:
    """Past the Reciprocal, or the Div of one, that reads `root`, if one does. Raises MisfitError for a bad reader."""
    reader = only_consumer(root.value)
    if reader is None or root.inverse:
        return root
    if reader.op_type in ("Add", "Max", "Clip"):
        raise MisfitError(f"epsilon is outside the root, by {reader.op_type}: the standard norms have it inside")
    if reader.op_type == "Reciprocal" or (reader.op_type == "Div" and scalar(reader.inputs[0]) == 1):
        return Root(reader.outputs[0], root.epsilon, inverse=True)
    return root


def divide(root: Root, shape: list[int], is_data: IsData, name: str) -> tuple[ir.Node, ir.Value | None]:
    """The node that divides the data by the root; and the scale, where it is applied to either before that."""
    wanted, scale = "Mul" if root.inverse else "Div", None
    end, operand = follow(root.value, wanted, "the quotient")
    other = _other(end, operand)
    if root.inverse and not is_data(other) and (scale := vector(end, operand, shape)) is not None:
        end, operand = follow(end.outputs[0], "Mul", "the quotient")  # the root is scaled before it divides
        other = _other(end, operand)
    if (end.op_type == "Div" and operand is not end.inputs[1]) or operand is other:
        raise MisfitError(f"{end.op_type} does not divide {name} by its root")
    if is_data(other):
        return end, scale
    scaled = producer(other, "Mul")
    data = next((value for value in scaled.inputs if is_data(value)), None) if scaled is not None else None
    if scaled is None or data is None or scale is not None:
        raise MisfitError(f"{end.op_type} does not divide {name} by its root")
    scale = vector(scaled, data, shape)
    if scale is None:
        raise MisfitError(f"what {name} is multiplied by is no vector of the normalised size")
    return end, scale


def _other(node: ir.Node, operand: ir.Value) -> ir.Value | None:
    return node.inputs[1] if node.inputs[0] is operand else node.inputs[0]


def vector(node: ir.Node, before: ir.Value, shape: list[int]) -> ir.Value | None:
    """The other operand of `node`, if it is of `shape`, or a constant that is so with leading dims of 1."""
    other = _other(node, before)
    if other is None or other is before:
        return None
    if rank(other) == len(shape) and [dim(other, axis) for axis in range(len(shape))] == shape:
        return other
    array = constant(other)
    if array is None or array.ndim > (rank(before) or 0) or array.size != math.prod(shape):
        return None
    if list(array.shape[array.ndim - len(shape) :]) != shape:
        return None
    assert node.graph is not None
    return add_constant(node.graph, f"{other.name}.vector", array.reshape(shape))


def read_affine(norm: Norm, shape: list[int], biased: bool) -> Norm:
    """`norm` with the scale, and the bias if `biased`, that stand behind its end, and casts back to a half type."""
    norm = _narrow(norm)
    behind = only_consumer(norm.end.outputs[0], "Mul")
    if norm.scale is None and behind is not None and (scale := vector(behind, norm.end.outputs[0], shape)) is not None:
        norm = Norm(norm.x, norm.epsilon, behind, scale)
    behind = only_consumer(norm.end.outputs[0], "Add") if biased else None
    if behind is not None and (bias := vector(behind, norm.end.outputs[0], shape)) is not None:
        norm = Norm(norm.x, norm.epsilon, behind, norm.scale, bias)
    norm = _narrow(norm)
    made = norm.end.outputs[0]
    if rank(made) != rank(norm.x):
        raise MisfitError(f"it makes rank {rank(made)} of rank {rank(norm.x)}")
    types = {value.dtype for value in (norm.x, made, norm.scale, norm.bias) if value is not None}
    if len(types) > 1:
        raise MisfitError(f"its types are mixed: {', '.join(sorted(str(dtype) for dtype in types))}")
    return norm


def _narrow(norm: Norm) -> Norm:
    """`norm` on the half type that its x was cast from, if it ends in that type, or is cast back to it."""
    x, made = uncast(norm.x), norm.end.outputs[0]
    if x is None or x is norm.x or x.dtype is None:
        return norm
    back = only_consumer(made, "Cast")
    end = norm.end if made.dtype is x.dtype else back
    if end is None or end.outputs[0].dtype is not x.dtype:
        return norm
    scale, bias = (_exactly(value, x.dtype, end) for value in (norm.scale, norm.bias))
    lost = (norm.scale is not None and scale is None) or (norm.bias is not None and bias is None)
    return norm if lost else Norm(x, norm.epsilon, end, scale, bias)


def _exactly(value: ir.Value | None, dtype: ir.DataType, before: ir.Node) -> ir.Value | None:
    """`value` in a half type; None if it would be rounded."""
    source = uncast(value)
    if source is None or source.dtype is dtype:
        return source
    array = constant(source)
    if array is None or before.graph is None:
        return None
    half = array.astype(_NUMPY[dtype])
    same = np.array_equal(half.astype(array.dtype), array)
    return add_constant(before.graph, f"{source.name}.{dtype.name.lower()}", half) if same else None


def filled(graph: ir.Graph, number: int, shape: Sequence[int], dtype: ir.DataType | None) -> ir.Value:
    """The scale of a norm that has none (ones), or the bias (zeros)."""
    assert dtype is not None
    name = f"{('zeros', 'ones')[number]}.{'x'.join(map(str, shape))}.{dtype.name.lower()}"
    return add_constant(graph, name, np.full(shape, number, dtype.numpy()))


def leaves_of(new: ir.Node) -> list[ir.Value]:
    """What a norm and its primitives are both computed from.

    With them the weights that the primitives read too, so that the layers of a model share one proof.
    """
    x, *weights = [value for value in new.inputs if value is not None]
    return [x, *(w for w in weights if w.const_value is None or {"Mul", "Add"} & {n.op_type for n in w.consumers()})]
