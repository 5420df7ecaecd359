"""What stands behind the lift rules: no leftovers."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import (
    CommonSubexpressionEliminationPass,
    DeduplicateInitializersPass,
    LiftConstantsToInitializersPass,
    NameFixPass,
    RemoveUnusedNodesPass,
    RemoveUnusedOpsetsPass,
    TopologicalSortPass,
)


class DropIdentities(ir.passes.InPlacePass):
    """Leave out Identity nodes, but for those that give an output of a graph a name of its own.

    onnx_ir's pass of this purpose loses an output where Identity stands between two of them, and lets the body of an If
    give a value of the graph around it.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        idle = [node for node in model.graph.all_nodes() if node.domain == "" and node.op_type == "Identity"]
        dropped = [node for node in idle if _drop(node)]
        return ir.passes.PassResult(model, bool(dropped))


def _drop(node: ir.Node) -> bool:
    source, made, graph = node.inputs[0], node.outputs[0], node.graph
    assert graph is not None
    if source is None:
        return False
    if made.is_graph_output():
        maker = source.producer()
        if source.is_graph_output() or maker is None or maker.graph is not graph:
            return False
        source.name, made.name = made.name, None
    source.shape, source.type = source.shape or made.shape, source.type or made.type
    ir.convenience.replace_all_uses_with(made, source, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    return True


class Tidy(ir.passes.InPlacePass):
    """Leave out what nothing reads, compute equal things once, keep constants as initializers, in order."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        passes = [
            DropIdentities(),
            LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
            DeduplicateInitializersPass(),
            CommonSubexpressionEliminationPass(),
            RemoveUnusedNodesPass(),
            RemoveUnusedOpsetsPass(),
            TopologicalSortPass(),
            NameFixPass(),  # what was made in a body may bear the name of something outside
        ]
        modified = [step(model).modified for step in passes]
        for node in model.graph.all_nodes():
            for value in node.outputs:
                if value.type is None:  # a shape alone cannot be written to a file
                    value.shape = None
        return ir.passes.PassResult(model, any(modified))
