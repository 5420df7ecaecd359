"""Softmax, spelled in other ways -> one `Softmax` (opset 13).

    e = Exp(x - max(x));  e / sum(e)                              ->   Softmax(x; axis)
    Exp(LogSoftmax(x)), Exp(x - ReduceLogSumExp(x))               ->   Softmax(x; axis)
    e = Exp(x);  (e V) / sum(e)                                   ->   Softmax(x; axis) V
    e = Exp(x) * flags;  e / sum(e)                               ->   Softmax(Where(flags, x, -inf); axis)
    Reshape(Softmax(Flatten(x)), Shape(x))                        ->   Softmax(x; axis)

Legal cases: 1. the sum over one axis, kept as a dim, of the exponentials that it divides; what was taken off before,
if it is the same along that axis, is left to Softmax itself; the exponentials may be multiplied by zeros and ones, or
be taken to a product over that axis, the last one, before they are divided; 2. logarithms of softmax; 3. Softmax over
the last axis of a tensor that was made two-dimensional with all other axes in front (Softmax before opset 13,
converted), and given its shape back.

Source of the semantics: ONNX operator specification, Softmax-13. Not a site of its own: it makes attention readable.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ..prover import ProvedPass
from ..sites import inherit
from .scores import is_binary
from .values import add_constant, broadcast, constant, dim, dims, insert, only_consumer, producer, rank


class UnifySoftmax(ProvedPass):
    """Exponentials over their sum, and Softmax of a flattened tensor -> `Softmax`."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in list(model.graph.all_nodes()):
            if node.domain == "" and node.op_type == "Div":
                modified |= self._of_quotient(node)
            elif node.domain == "" and node.op_type == "Exp":
                modified |= self._of_logarithm(node)
            elif node.domain == "" and node.op_type == "Softmax":
                modified |= self._of_flat(node)
        if modified:
            RemoveUnusedNodesPass()(model)  # a reader that is left over would count as one
        return ir.passes.PassResult(model, modified)

    def _of_quotient(self, quotient: ir.Node) -> bool:
        """Case 1."""
        summed = _kept_sum(quotient.inputs[1])
        axis, exponentials = (_axis(summed), summed.inputs[0]) if summed is not None else (None, None)
        if exponentials is None or axis is None or (read := _exponents(exponentials)) is None:
            return False
        x, flags = read
        product = producer(quotient.inputs[0], "MatMul")
        behind = product is not None and product.inputs[0] is exponentials and axis in (-1, (rank(x) or 0) - 1)
        if quotient.inputs[0] is not exponentials and not behind:
            return False
        while (
            (shifted := producer(x, "Sub")) is not None and _is_shift(shifted, axis) and shifted.inputs[0] is not None
        ):
            x = shifted.inputs[0]
        leaves = [x]
        if flags is not None:
            leaves += [flags] if constant(flags) is None else []
            x = _masked(x, flags, quotient)
        if product is not None and behind:
            weights = insert(quotient, "Softmax", [x], axis=-1)
            weights.type, weights.shape = exponentials.type, exponentials.shape
            new = ir.node("MatMul", [weights, product.inputs[1]])
            leaves += [value for value in product.inputs[1:] if value is not None]
        else:
            new = ir.node("Softmax", [x], {"axis": axis})
        said = "exponentials over their sum"
        return self.replace("softmax", quotient, inherit(new, quotient), said, leaves, quiet=True)

    def _of_logarithm(self, power: ir.Node) -> bool:
        """Case 2."""
        node = producer(power.inputs[0], "LogSoftmax", "Sub")
        if node is None or node.inputs[0] is None:
            return False
        axis: int | None = node.attributes.get_int("axis", -1)
        if node.op_type == "Sub":
            summed = _kept_sum(node.inputs[1], "ReduceLogSumExp")
            axis = _axis(summed) if summed is not None and summed.inputs[0] is node.inputs[0] else None
        if axis is None:
            return False
        new = inherit(ir.node("Softmax", [node.inputs[0]], {"axis": axis}), power)
        return self.replace("softmax", power, new, "exponentials of its logarithm", quiet=True)

    def _of_flat(self, softmax: ir.Node) -> bool:
        """Case 3."""
        flat = producer(softmax.inputs[0], "Flatten", "Reshape")
        back = only_consumer(softmax.outputs[0], "Reshape")
        source = flat.inputs[0] if flat is not None else None
        count = rank(source)
        if flat is None or back is None or source is None or count is None or count < 3:
            return False
        shape = producer(back.inputs[1], "Shape")
        same = shape is not None and shape.inputs[0] is source and not shape.attributes.get_int("start", 0)
        known = dims(source)
        same |= known is not None and None not in known and known == dims(back.outputs[0])
        whole = flat.op_type == "Flatten" and flat.attributes.get_int("axis", 1) in (count - 1, -1)
        whole |= flat.op_type == "Reshape" and rank(flat.outputs[0]) == 2 and _same_last(source, flat.outputs[0])
        if not same or not whole or softmax.attributes.get_int("axis", -1) not in (-1, 1):
            return False
        new = inherit(ir.node("Softmax", [source], {"axis": -1}), softmax)
        return self.replace("softmax", back, new, "softmax of a flattened tensor", quiet=True)


def _axis(node: ir.Node) -> int | None:
    axes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    return int(axes.reshape(-1)[0]) if axes is not None and axes.size == 1 else None


def _exponents(exponentials: ir.Value) -> tuple[ir.Value, ir.Value | None] | None:
    """x of Exp(x), or of Exp(x) * flags with the flags as they are before they are cast."""
    power, flags = producer(exponentials, "Exp"), None
    masked = producer(exponentials, "Mul")
    for value, other in (masked.inputs, masked.inputs[::-1]) if masked is not None else ():
        if other is not None and is_binary(other) and (inner := producer(value, "Exp")) is not None:
            made = producer(other, "Cast")
            power, flags = inner, other if made is None else made.inputs[0]
    return None if power is None or power.inputs[0] is None else (power.inputs[0], flags)


def _masked(x: ir.Value, flags: ir.Value, before: ir.Node) -> ir.Value:
    """Where(flags, x, -inf)."""
    assert before.graph is not None
    assert x.dtype is not None
    if flags.dtype != ir.DataType.BOOL:
        cast = insert(before, "Cast", [flags], to=int(ir.DataType.BOOL))
        cast.type, cast.shape = ir.TensorType(ir.DataType.BOOL), flags.shape
        flags = cast
    low = add_constant(before.graph, f"never.{x.dtype.name.lower()}", np.array(-np.inf, x.dtype.numpy()))
    made = insert(before, "Where", [flags, x, low])
    made.type, made.shape = x.type, broadcast([flags, x])
    return made


def _kept_sum(total: ir.Value | None, op_type: str = "ReduceSum") -> ir.Node | None:
    """The ReduceSum whose axis is kept as a dim in `total`, by itself or by an Unsqueeze."""
    back = producer(total, "Unsqueeze")
    summed = producer(total if back is None else back.inputs[0], op_type)
    if summed is None or summed.attributes.get_int("keepdims", 1) == (back is not None):
        return None
    return summed if back is None or _axis(back) == _axis(summed) else None


def _is_shift(node: ir.Node, axis: int) -> bool:
    """Whether what a Sub takes off is the same along an axis, and broadcast to what it is taken off."""
    own, made = dims(node.inputs[1]), dims(node.outputs[0])
    if own is None or made is None or dims(node.inputs[0]) != made:
        return False
    padded = [1] * (len(made) - len(own)) + own
    return padded[axis] == 1


def _same_last(one: ir.Value, other: ir.Value) -> bool:
    return dim(one, -1) is not None and dim(one, -1) == dim(other, -1)
