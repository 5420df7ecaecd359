"""What stands before and behind the lift rules: one opset, folded constants, no leftovers."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import (
    CommonSubexpressionEliminationPass,
    DeduplicateInitializersPass,
    InlinePass,
    LiftConstantsToInitializersPass,
    NameFixPass,
    RemoveUnusedNodesPass,
    RemoveUnusedOpsetsPass,
    TopologicalSortPass,
)
from onnxscript import optimizer, version_converter

from ...errors import BuildError

OPSET = 23
IR_VERSION = 10  # what the oldest runtime of today takes; opset 23 needs nothing newer in it
ADAPTERS = 18  # from here onnxscript's own adapters convert node by node; before, only onnx's converter can


class ConvertOpset(ir.passes.InPlacePass):
    """Any opset -> 23, IR version 10."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        version = model.opset_imports.get("", 0)
        model.ir_version = IR_VERSION
        if version == OPSET:
            return ir.passes.PassResult(model, False)
        if version > OPSET:
            raise BuildError(
                f"The graph is of opset {version}; this version reads up to {OPSET}. Export it at opset {OPSET}, or "
                "convert it down with onnx.version_converter."
            )
        # without the fallback a graph older than 18 is stamped 23 but keeps its old operators
        version_converter.convert_version(model, OPSET, fallback=version < ADAPTERS)
        if model.opset_imports.get("") != OPSET:
            raise BuildError(f"The graph of opset {version} could not be converted to {OPSET}.")
        model.ir_version = IR_VERSION
        return ir.passes.PassResult(model, True)


class Fold(ir.passes.InPlacePass):
    """Inline functions, infer shapes, fold constants; every constant an initializer or a Constant node."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        for graph in model.graphs():
            for value in graph.initializers.values():  # a graph made by hand need not say what its tensors say
                if value.const_value is not None:
                    value.type = value.type or ir.TensorType(value.const_value.dtype)
                    value.shape = value.shape or ir.Shape(value.const_value.shape.numpy())
        InlinePass()(model)
        optimizer.optimize_ir(model)
        _adopt(model)
        return ir.passes.PassResult(model, True)


def _adopt(model: ir.Model) -> None:
    """Make initializers of constants that are read but stand nowhere.

    onnxscript's rules make two of one name (for two Flattens of one tensor, say): the second takes the first's place.
    """
    for node in list(model.graph.all_nodes()):
        for value in node.inputs:
            if value is None or value.const_value is None or value.producer() is not None or value.is_initializer():
                continue
            assert node.graph is not None
            number = 1
            while f"{value.name}.{number}" in node.graph.initializers:
                number += 1
            value.name = f"{value.name}.{number}"
            node.graph.register_initializer(value)


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
        return ir.passes.PassResult(model, any(modified))
