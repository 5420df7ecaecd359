"""A residual sum and the norm that reads it -> one function of domain `graphwright` with two outputs.

    s = x + skip;  LayerNormalization(s, scale, bias)   ->   y, s = graphwright.SkipLayerNormalization(x, skip, ...)
    s = x + skip;  RMSNormalization(s, scale)           ->   y, s = graphwright.SkipRMSNormalization(x, skip, scale)

The second output serves the other readers of the sum (pre-norm), which may come before the norm: this pass runs last,
in front of the sort. Legal cases: 1. x and skip of one known shape; 2. a norm of one output and the default stash_type,
whose scale and bias are not computed in the graph (a modulated norm may compute them from the sum itself); 3. sum and
norm in one graph. Where two norms read a sum, the first takes it. What does not fit is no such pair, but a norm alone.
"""

from __future__ import annotations

import onnx_ir as ir

from ..prover import ProvedPass
from ..sites import inherit
from .functions import Definition
from .norms import filled
from .values import constant, producer, same_shape

KIND = "residual_norm"

SKIP_LAYER_NORM = Definition("""
SkipLayerNormalization <axis: int = -1, epsilon: float = 1e-05> (x, skip, scale, bias) => (y, sum) {
    [core] sum = Add(x, skip)
    [core_layer_norm] y = LayerNormalization <axis: int = @axis, epsilon: float = @epsilon> (sum, scale, bias)
}""")

SKIP_RMS_NORM = Definition("""
SkipRMSNormalization <axis: int = -1, epsilon: float = 1e-05> (x, skip, scale) => (y, sum) {
    [core] sum = Add(x, skip)
    [core_rms_norm] y = RMSNormalization <axis: int = @axis, epsilon: float = @epsilon> (sum, scale)
}""")

_FUNCTIONS = {"LayerNormalization": SKIP_LAYER_NORM, "RMSNormalization": SKIP_RMS_NORM}


class LiftResidual(ProvedPass):
    """Add, then a norm -> `SkipLayerNormalization` or `SkipRMSNormalization`."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in list(model.graph.all_nodes()):
            if node.domain == "" and node.op_type in _FUNCTIONS:
                modified |= self._lift(model, node)
        return ir.passes.PassResult(model, modified)

    def _lift(self, model: ir.Model, norm: ir.Node) -> bool:
        total = producer(norm.inputs[0], "Add")
        if total is None or not _fits(norm, total):
            return False
        epsilon, axis = norm.attributes.get_float("epsilon", 1e-5), norm.attributes.get_int("axis", -1)
        inputs = [*total.inputs, norm.inputs[1], *_bias(norm)]
        new = _FUNCTIONS[norm.op_type].call(model, inputs, epsilon=epsilon, axis=axis)
        # the weights are leaves, so that the layers of a model share one proof
        leaves = [value for value in (*total.inputs, *norm.inputs[1:]) if value is not None]
        return self.replace(KIND, norm, inherit(new, norm), f"Add, {norm.op_type}", leaves, others=[total])


def _fits(norm: ir.Node, total: ir.Node) -> bool:
    x, skip = total.inputs
    scale = norm.inputs[1]
    sized = scale is not None and scale.shape is not None and scale.shape.is_static()
    given = [value is None or value.producer() is None or constant(value) is not None for value in norm.inputs[1:]]
    if not sized or not all(given) or norm.graph is not total.graph or x is None or skip is None:
        return False
    return len(norm.outputs) == 1 and norm.attributes.get_int("stash_type", 1) == 1 and same_shape(x, skip)


def _bias(norm: ir.Node) -> list[ir.Value | None]:
    """The bias of a LayerNorm, zeros if it has none: ONNX Runtime crashes where a function's input is left out."""
    scale, bias = norm.inputs[1], norm.inputs[2] if len(norm.inputs) > 2 else None
    if norm.op_type != "LayerNormalization" or bias is not None:
        return [bias] if bias is not None else []
    assert scale is not None
    assert scale.shape is not None
    assert norm.graph is not None
    return [filled(norm.graph, 0, scale.shape.numpy(), scale.dtype)]
