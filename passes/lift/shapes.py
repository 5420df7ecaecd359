"""Shapes that the exporter computes at run time, resolved to sizes and dim names where the graph tells them."""

from __future__ import annotations

import onnx_ir as ir

from .dims import output_dims
from .sizes import Dims, sizes
from .values import dims

_MOVES = ("Concat", "Expand", "Gather", "Reshape", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze")


class ResolveShapes(ir.passes.InPlacePass):
    """Write on values the dims that the graph tells: by the arithmetic that a shape is computed with, by name.

    Shape inference stops at shape arithmetic (Shape, Slice, Gather, Concat, Mul, ...) and at a Reshape's -1; lift rules
    need to see through them to know that a chain of reshapes only swaps two axes.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in model.graph.all_nodes():
            for value, made in zip(node.outputs, output_dims(node), strict=False):
                if made is None:
                    continue
                value.type = value.type or _type(node)
                shape = ir.Shape(_merge(value, made))
                if value.shape != shape:
                    value.shape = shape
                    modified = True
        return ir.passes.PassResult(model, modified)


def _type(node: ir.Node) -> ir.TypeProtocol | None:
    """The type of what a rule made of its inputs' elements, or their sizes."""
    if node.op_type == "Shape":
        return ir.TensorType(ir.DataType.INT64)
    return node.inputs[0].type if node.op_type in _MOVES and node.inputs[0] is not None else None


def _merge(value: ir.Value, made: Dims) -> Dims:
    """A size, else the name that was read off the graph, else the one that is there: inference makes up names."""
    own = dims(value)
    if own is None or len(own) != len(made):
        return made
    return [old if new is None or isinstance(old, int) else new for old, new in zip(own, made, strict=True)]


__all__ = ["Dims", "ResolveShapes", "sizes"]
