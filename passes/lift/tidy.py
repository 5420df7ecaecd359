"""What stands before and behind the lift rules: one opset, folded constants, no leftovers."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import (
    CommonSubexpressionEliminationPass,
    IdentityEliminationPass,
    InlinePass,
    LiftConstantsToInitializersPass,
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
        InlinePass()(model)
        optimizer.optimize_ir(model)
        return ir.passes.PassResult(model, True)


class Tidy(ir.passes.InPlacePass):
    """Leave out what nothing reads, compute equal things once, keep constants as initializers, in order."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        passes = [
            IdentityEliminationPass(),
            LiftConstantsToInitializersPass(lift_all_constants=False),
            CommonSubexpressionEliminationPass(),
            RemoveUnusedNodesPass(),
            RemoveUnusedOpsetsPass(),
            TopologicalSortPass(),
        ]
        modified = [step(model).modified for step in passes]
        return ir.passes.PassResult(model, any(modified))
