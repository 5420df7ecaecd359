"""ScatterElements with reduction=add, which TensorRT's parser refuses: what falls on each place is summed instead.

    ScatterElements(data, indices, updates, axis, add)
 -> data + ReduceSum(Where(unsqueeze(indices mod D) == 0..D-1, unsqueeze(updates), 0)),   D places along the axis

Legal cases: 1. one axis, or indices as wide as the data on every other axis (by number or name); 2. D known, and not
above 4096: an intermediate has D times as many entries as there are updates; 3. indices from -D to D - 1, as the
operator's text has it; 4. updates of floating point or whole numbers. Others are left as they are.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..base import GraphPass
from ..lift.values import add_constant, dims, insert

_LARGEST = 4096


class SumScattered(GraphPass):
    """ScatterElements(reduction=add) -> Equal, Where, ReduceSum, Add."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in list(model.graph.all_nodes()):
            if node.domain == "" and node.op_type == "ScatterElements":
                modified |= _rewrite(node)
        return ir.passes.PassResult(model, modified)


def _rewrite(node: ir.Node) -> bool:
    data, indices, updates = node.inputs
    shape, wide = dims(data), dims(indices)
    if node.attributes.get_string("reduction", "none") != "add" or shape is None or wide is None:
        return False
    axis = node.attributes.get_int("axis", 0) % len(shape)
    places = shape[axis]
    others = [(a, b) for index, (a, b) in enumerate(zip(shape, wide, strict=True)) if index != axis]
    if not isinstance(places, int) or places > _LARGEST or any(a is None or a != b for a, b in others):
        return False
    assert data is not None
    assert indices is not None
    assert updates is not None
    assert isinstance(node.graph, ir.Graph)
    graph, whole = node.graph, (indices.dtype or ir.DataType.INT64).numpy()
    dtype = data.dtype or ir.DataType.FLOAT
    count = add_constant(graph, f"places.{places}", np.array(places, whole))
    there = np.arange(places, dtype=whole).reshape([-1 if index == axis else 1 for index in range(len(shape))])
    behind = add_constant(graph, f"axes.{axis + 1}", np.array([axis + 1], np.int64))
    ahead = add_constant(graph, f"axes.{axis}", np.array([axis], np.int64))
    # [..., updates, places, ...]
    positive = insert(node, "Mod", [indices, count])
    asked, fallen = (insert(node, "Unsqueeze", [value, behind]) for value in (positive, updates))
    place = add_constant(graph, f"place.{places}.{axis}.{len(shape)}", np.expand_dims(there, axis))
    hit = insert(node, "Equal", [asked, place])
    zero = add_constant(graph, f"number.0.{dtype.name.lower()}", np.array(0, dtype.numpy()))
    summed = insert(node, "ReduceSum", [insert(node, "Where", [hit, fallen, zero]), ahead], keepdims=0)
    made, old = insert(node, "Add", [data, summed]), node.outputs[0]
    made.type, made.shape = old.type, old.shape
    if old.is_graph_output():
        made.name = old.name
    ir.convenience.replace_all_uses_with(old, made, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    return True
