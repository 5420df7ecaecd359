"""LayerNorm spelled in primitives -> one `LayerNormalization` (opset 17)."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript.rewriter import rewrite
from onnxscript.rewriter.rules.fusion._layer_norm import layer_normalization_ruleset

from ..base import GraphPass


class LiftLayerNorm(GraphPass):
    """Mean, deviation, variance, scale and bias over the last axis -> `LayerNormalization`.

    The spellings are those of onnxscript's rule set: Pow or Mul for the square, Sqrt with Div or Reciprocal with Mul,
    with and without bias; epsilon inside the root.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        ready = {node for node in model.graph if node.op_type == "LayerNormalization"}
        rewrite(model, pattern_rewrite_rules=layer_normalization_ruleset)
        norms = [node for node in model.graph if node.domain == "" and node.op_type == "LayerNormalization"]
        for node in norms:
            self.log.lifted("layer_norm", node, "LayerNormalization" if node in ready else "primitives")
        return ir.passes.PassResult(model, len(norms) > len(ready))
