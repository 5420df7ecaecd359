"""LayerNorm spelled in primitives -> one `LayerNormalization` (opset 17).

    d = x - mean(x);  d / sqrt(mean(d * d) + epsilon) * scale + bias   ->   LayerNormalization(x, scale, bias; epsilon)

From each mean of the squares of deviations the dataflow is walked forward. Legal cases: 1. both means over the last
axis of a float tensor of at most 32 bits (the op's own statistics are float32), kept as a dim, or given back to the
variance by Unsqueeze or Reshape; 2. the square by Mul or Pow, the root by Sqrt or Pow, the quotient by Div, or by Mul
with a Reciprocal; 3. epsilon of one element, inside the root; 4. scale and bias vectors of the last axis's size, both
optional, the scale applied to the deviation or to the quotient: a scale or shift of another shape (one per sample, say)
stays behind the norm; 5. nothing else reads a value between the variance and the norm's end.

Source of the semantics: ONNX operator specification, LayerNormalization-17.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..base import GraphPass, MisfitError
from ..sites import inherit
from .values import add_constant, constant, consumers, dim, only_consumer, producer, rank, scalar, split_scalar

_TYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


@dataclass(frozen=True)
class Norm:
    """What was read off the dataflow behind one variance."""

    x: ir.Value
    epsilon: float
    end: ir.Node
    scale: ir.Value | None = None
    bias: ir.Value | None = None


class LiftLayerNorm(GraphPass):
    """Mean, deviation, variance, root, scale and bias over the last axis -> `LayerNormalization`."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in list(model.graph.all_nodes()):
            if node.domain == "" and node.op_type == "LayerNormalization":
                self.log.lifted("layer_norm", node, "LayerNormalization")
            elif node.domain == "" and node.op_type == "ReduceMean":
                modified |= self._lift(node)
        return ir.passes.PassResult(model, modified)

    def _lift(self, variance: ir.Node) -> bool:
        mean = _centred(_squared(variance.inputs[0]))
        if mean is None:
            return False  # the mean of something else
        try:
            norm = _read(variance, mean)
        except MisfitError as misfit:
            self.log.missed("layer_norm", variance, "primitives", str(misfit))
            return False
        self.log.lifted("layer_norm", _replace(norm, variance), "primitives")
        return True


def _replace(norm: Norm, variance: ir.Node) -> ir.Node:
    graph, size, dtype = norm.end.graph, dim(norm.x, -1), norm.x.dtype
    assert graph is not None
    assert dtype is not None
    assert isinstance(size, int)
    scale = norm.scale
    if scale is None:
        scale = add_constant(graph, f"ones.{size}.{dtype.name.lower()}", np.ones(size, dtype.numpy()))
    node = inherit(ir.node("LayerNormalization", [norm.x, scale, norm.bias], {"axis": -1}), variance)
    node.attributes["epsilon"] = ir.AttrFloat32("epsilon", norm.epsilon)
    ir.convenience.replace_nodes_and_values(graph, norm.end, [norm.end], [node], norm.end.outputs, node.outputs)
    return node


def _squared(value: ir.Value | None) -> ir.Value | None:
    """d of d * d or d ** 2."""
    node = producer(value, "Mul", "Pow")
    if node is None:
        return None
    same = node.inputs[0] is node.inputs[1] if node.op_type == "Mul" else scalar(node.inputs[1]) == 2
    return node.inputs[0] if same else None


def _centred(deviation: ir.Value | None) -> ir.Node | None:
    """The mean of x - mean(x)."""
    node = producer(deviation, "Sub")
    mean = producer(node.inputs[1], "ReduceMean") if node is not None else None
    if node is None or mean is None or mean.inputs[0] is not node.inputs[0]:
        return None
    return mean if mean.attributes.get_int("keepdims", 1) else None


def _read(variance: ir.Node, mean: ir.Node) -> Norm:
    x = mean.inputs[0]
    assert x is not None
    for node in (mean, variance):
        if misfit := _misplaced(node, rank(x)):
            raise MisfitError(misfit)
    if x.dtype not in _TYPES:
        raise MisfitError(f"it computes in {x.dtype.name if x.dtype is not None else 'an unknown type'}")
    size = dim(x, -1)
    if not isinstance(size, int):
        raise MisfitError(f"the size of the last axis is {size}, not a number")
    step = _next(_kept(variance, x), "Add", "epsilon")
    parts = split_scalar(step)
    if parts is None:
        raise MisfitError("what is added to the variance is no constant of one element")
    end = _quotient(_next(step, "Sqrt or Pow", "the root"))
    scale, bias = _scale_before(end, x, size), None
    behind = only_consumer(end.outputs[0], "Mul")
    if scale is None and behind is not None and (scale := _vector(behind, end.outputs[0], size)) is not None:
        end = behind
    behind = only_consumer(end.outputs[0], "Add")
    if behind is not None and (bias := _vector(behind, end.outputs[0], size)) is not None:
        end = behind
    if rank(end.outputs[0]) != rank(x):
        raise MisfitError(f"it makes rank {rank(end.outputs[0])} of rank {rank(x)}")
    return Norm(x, parts[1], end, scale, bias)


def _misplaced(node: ir.Node, dims: int | None) -> str:
    """Why `node` is no mean over the last axis alone; nothing if it is one."""
    axes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    over = "all axes" if axes is None else f"axes {axes.reshape(-1).tolist()}"
    last = axes is not None and axes.size == 1 and dims is not None and int(axes.reshape(-1)[0]) in (-1, dims - 1)
    return "" if last else f"a mean is over {over}, not the last axis alone"


def _kept(variance: ir.Node, x: ir.Value) -> ir.Node:
    """The node behind which the variance has its axis: itself, or the Unsqueeze or Reshape that gives it back."""
    if variance.attributes.get_int("keepdims", 1):
        return variance
    # a Shape is how an exporter spells the operand of that Reshape
    readers = [node for node in consumers(variance.outputs[0]) if node.op_type != "Shape"]
    shape = [*(dim(x, axis) for axis in range((rank(x) or 0) - 1)), 1]
    back = readers[0].outputs[0] if len(readers) == 1 and not variance.outputs[0].is_graph_output() else None
    if producer(back, "Unsqueeze", "Reshape") is None or None in shape:
        raise MisfitError("the variance drops its axis and does not get it back")
    if [dim(back, axis) for axis in range(rank(back) or 0)] != shape:
        raise MisfitError(f"the variance of {shape[:-1]} becomes {back.shape if back is not None else None}")
    return readers[0]


def _next(node: ir.Node, wanted: str, name: str) -> ir.Node:
    """The only reader of `node`, of the `wanted` op types."""
    reader = only_consumer(node.outputs[0])
    if reader is None:
        raise MisfitError(f"{node.op_type} before {name} is read more than once, or is an output of the graph")
    if reader.domain != "" or reader.op_type not in wanted.split(" or "):
        raise MisfitError(f"{reader.op_type} stands where {name} should be")
    return reader


def _quotient(root: ir.Node) -> ir.Node:
    """The node that divides by the root, which is a Sqrt, a Pow(0.5) or a Pow(-0.5)."""
    power = 0.5 if root.op_type == "Sqrt" else scalar(root.inputs[1])
    if power not in (0.5, -0.5):
        raise MisfitError(f"the variance is raised to the power of {power}")
    end = _next(root, "Div or Reciprocal" if power == 0.5 else "Mul", "the quotient")
    if end.op_type == "Reciprocal" or (end.op_type == "Div" and scalar(end.inputs[0]) == 1):
        end = _next(end, "Mul", "the quotient")
    return end


def _scale_before(end: ir.Node, x: ir.Value, size: int) -> ir.Value | None:
    """The scale, if it is applied to the deviation before `end` divides that by the root; None if there is none yet."""
    for value in end.inputs if end.op_type == "Mul" else end.inputs[:1]:
        if _deviates(value, x):
            return None
        scaled = producer(value, "Mul")
        for deviation in scaled.inputs if scaled is not None else ():
            if scaled is not None and deviation is not None and _deviates(deviation, x):
                scale = _vector(scaled, deviation, size)
                if scale is None:
                    raise MisfitError("what the deviation is multiplied by is no vector of the last axis's size")
                return scale
    raise MisfitError(f"{end.op_type} does not divide the deviation by its root")


def _deviates(value: ir.Value | None, x: ir.Value) -> bool:
    """Whether `value` is x - mean(x): not always the node whose square is averaged."""
    mean = _centred(value)
    return mean is not None and mean.inputs[0] is x and _misplaced(mean, rank(x)) == ""


def _vector(node: ir.Node, before: ir.Value, size: int) -> ir.Value | None:
    """The other operand of `node`, if it is a vector of `size`, or a constant that is one with leading dims of 1."""
    first, second = node.inputs
    other = second if first is before else first
    if other is None or other is before:
        return None
    if rank(other) == 1 and dim(other, 0) == size:
        return other
    array = constant(other)
    if array is None or array.shape[-1:] != (size,) or array.size != size or array.ndim > (rank(before) or 0):
        return None
    assert node.graph is not None
    return add_constant(node.graph, f"{other.name}.vector", array.reshape(size))
