"""Shapes that the exporter computes at run time, resolved to sizes and dim names where the graph tells them."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from .values import constant, dim, producer, rank

Dims = list[int | str | None]


class ResolveShapes(ir.passes.InPlacePass):
    """Write on the outputs of Reshape, Expand and Transpose the dims that their shape operand works out to.

    Shape inference stops at shape arithmetic (Shape, Slice, Gather, Concat, Unsqueeze, Squeeze, Cast); lift rules need
    to see through it to know that a chain of reshapes only swaps two axes. An Expand to the shape that its input has
    already is left out: it would stand between ops that belong together.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified, idle = False, False
        for node in list(model.graph.all_nodes()):
            dims = _output_dims(node)
            if dims is not None and node.outputs[0].shape != (shape := ir.Shape(_merge(node.outputs[0], dims))):
                node.outputs[0].shape = shape
                modified = True
            if node.op_type == "Expand" and _is_idle(node):
                ir.convenience.replace_all_uses_with(node.outputs, node.inputs[:1])  # type: ignore[arg-type]
                modified = idle = True
        if idle:
            RemoveUnusedNodesPass()(model)  # a reader that is left over would count as one
        return ir.passes.PassResult(model, modified)


def sizes(value: ir.Value | None) -> Dims | None:
    """The elements of a one-dimensional integer tensor as sizes, dim names or None (unknown); None if all are."""
    array = constant(value)
    if array is not None:
        return [int(item) for item in array.reshape(-1)] if array.ndim <= 1 else None
    node = producer(value)
    return _READERS[node.op_type](node) if node is not None and node.op_type in _READERS else None


def _is_idle(node: ir.Node) -> bool:
    """Whether an Expand gives the shape that its input has, name by name."""
    source, made = node.inputs[0], node.outputs[0]
    if source is None or source.shape is None or made.shape is None or made.is_graph_output():
        return False
    own = [dim(source, axis) for axis in range(len(source.shape))]
    return None not in own and own == [dim(made, axis) for axis in range(len(made.shape))]


def _output_dims(node: ir.Node) -> Dims | None:
    if node.domain != "":
        return None
    source = node.inputs[0] if node.inputs else None
    if node.op_type == "Transpose" and source is not None and source.shape is not None:
        perm = node.attributes.get_ints("perm", list(range(len(source.shape)))[::-1])
        return [dim(source, axis) for axis in perm or []]
    if node.op_type == "Reshape" and (target := sizes(node.inputs[1])) is not None:
        keeps = not node.attributes.get_int("allowzero", 0)
        copied = [dim(source, axis) if size == 0 and keeps else size for axis, size in enumerate(target)]
        return [None if size == -1 else size for size in copied]
    if node.op_type == "Expand" and (target := sizes(node.inputs[1])) is not None:
        return _broadcast(source, target)
    return None


def _broadcast(source: ir.Value | None, target: Dims) -> Dims | None:
    """The dims of Expand, which broadcasts both ways."""
    if source is None or source.shape is None:
        return None
    own: Dims = [dim(source, axis) for axis in range(len(source.shape))]
    length = max(len(own), len(target))
    pairs = zip([1] * (length - len(own)) + own, [1] * (length - len(target)) + target, strict=True)
    return [b if a == 1 else a if b in (1, a) or isinstance(a, int) else None for a, b in pairs]


def _merge(value: ir.Value, dims: Dims) -> Dims:
    """A size, else the name that was read off the graph, else the one that is there: inference makes up names."""
    if value.shape is None or len(value.shape) != len(dims):
        return dims
    known = [dim(value, axis) for axis in range(len(dims))]
    return [old if new is None or isinstance(old, int) else new for old, new in zip(known, dims, strict=True)]


def _of_shape(node: ir.Node) -> Dims | None:
    source = node.inputs[0]
    if source is None or source.shape is None:
        return None
    dims: Dims = [dim(source, axis) for axis in range(len(source.shape))]
    return dims[node.attributes.get_int("start", 0) : node.attributes.get_int("end", len(dims))]


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
    return sizes(node.inputs[0]) if node.outputs[0].dtype in (ir.DataType.INT64, ir.DataType.INT32) else None


_READERS = {
    "Reshape": _of_reshape,
    "Shape": _of_shape,
    "Concat": _of_concat,
    "Slice": _of_slice,
    "Gather": _of_gather,
    "Unsqueeze": _of_same,
    "Squeeze": _of_same,
    "Cast": _of_cast,
    "Identity": _of_same,
}
