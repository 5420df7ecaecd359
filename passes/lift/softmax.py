"""Softmax, spelled in other ways -> one `Softmax` (opset 13).

    e = Exp(x - max(x));  e / sum(e)                              ->   Softmax(x; axis)
    Reshape(Softmax(Flatten(x)), Shape(x))                        ->   Softmax(x; axis)

Legal cases: 1. the sum over one axis, kept as a dim, of the exponentials that it divides; what was taken off before,
if it is the same along that axis, is left to Softmax itself; 2. Softmax over the last axis of a tensor that was made
two-dimensional with all other axes in front (Softmax before opset 13, converted), and given its shape back.

Source of the semantics: ONNX operator specification, Softmax-13. Not a site of its own: it makes attention readable.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ..prover import ProvedPass
from ..sites import inherit
from .values import constant, dim, dims, only_consumer, producer, rank


class UnifySoftmax(ProvedPass):
    """Exponentials over their sum, and Softmax of a flattened tensor -> `Softmax`."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in list(model.graph.all_nodes()):
            if node.domain == "" and node.op_type == "Div":
                modified |= self._of_quotient(node)
            elif node.domain == "" and node.op_type == "Softmax":
                modified |= self._of_flat(node)
        if modified:
            RemoveUnusedNodesPass()(model)  # a reader that is left over would count as one
        return ir.passes.PassResult(model, modified)

    def _of_quotient(self, quotient: ir.Node) -> bool:
        """Case 1."""
        exponentials, total = quotient.inputs
        power, summed = producer(exponentials, "Exp"), _kept_sum(total)
        if power is None or summed is None or summed.inputs[0] is not exponentials:
            return False
        x, axis = power.inputs[0], _axis(summed)
        if x is None or axis is None:
            return False
        while (shifted := producer(x, "Sub")) is not None and _is_shift(shifted, axis):
            x = shifted.inputs[0]
        new = inherit(ir.node("Softmax", [x], {"axis": axis}), quotient)
        return self.replace("softmax", quotient, new, "exponentials over their sum", quiet=True)

    def _of_flat(self, softmax: ir.Node) -> bool:
        """Case 2."""
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


def _kept_sum(total: ir.Value | None) -> ir.Node | None:
    """The ReduceSum whose axis is kept as a dim in `total`, by itself or by an Unsqueeze."""
    back = producer(total, "Unsqueeze")
    summed = producer(total if back is None else back.inputs[0], "ReduceSum")
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
