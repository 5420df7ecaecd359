"""What has no kernel in one type, computed in another, between casts.

Where of booleans -> the same in int32: neither the CPU nor the CUDA provider of ONNX Runtime has a kernel for it, and
the CPU's refuses the graph at load.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from ..base import GraphPass
from ..lift.values import insert

CHOSEN = (1, 2)  # inputs of Where that it chooses between


class ChooseInIntegers(GraphPass):
    """Where of booleans -> Cast, Where, Cast."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        found = [node for node in model.graph.all_nodes() if node.domain == "" and node.op_type == "Where"]
        wrong = [node for node in found if node.outputs[0].dtype == ir.DataType.BOOL]
        for node in wrong:
            surround(node, ir.DataType.BOOL, ir.DataType.INT32, CHOSEN)
        return ir.passes.PassResult(model, bool(wrong))


def surround(node: ir.Node, old: ir.DataType, new: ir.DataType, inputs: Iterable[int]) -> None:
    """`node` computes in `new` what it computed in `old`."""
    for index in inputs:
        value = node.inputs[index]
        if value is not None and value.dtype == old:
            cast = insert(node, "Cast", [value], to=int(new))
            cast.shape, cast.type = value.shape, ir.TensorType(new)
            node.replace_input_with(index, cast)
    for value in node.outputs:
        if value.dtype == old:
            _give_back(node, value, old, new)


def _give_back(node: ir.Node, value: ir.Value, old: ir.DataType, new: ir.DataType) -> None:
    """All that read `value` read it cast back to `old`."""
    assert node.graph is not None
    following = ir.node("Cast", [value], {"to": int(old)})
    node.graph.insert_after(node, following)
    back = following.outputs[0]
    back.shape, back.type = value.shape, ir.TensorType(old)
    if value.is_graph_output():
        back.name, value.name = value.name, f"{value.name}.{new.name.lower()}"
    ir.convenience.replace_all_uses_with(value, back, replace_graph_outputs=True)
    following.replace_input_with(0, value)
    value.type = ir.TensorType(new)
