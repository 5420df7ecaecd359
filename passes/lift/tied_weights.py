"""Tied weights: a weight that is read as it is (by the embedding) and transposed (by the last projection).

    MatMul(x[N, K], Transpose(w[M, K]))   ->   Gemm(x, w; transB=1)

Legal case: x of rank 2, w a constant of rank 2 that something else reads too. Of an x of higher rank the Transpose is
left at run time: a transposed copy would hold the weight, often the largest, twice in the file, where a runtime folds
the Transpose when it loads the graph, and Gemm is for rank 2 alone. Both are logged.

Source of the semantics: ONNX operator specification, Gemm-13.
"""

from __future__ import annotations

import onnx_ir as ir

from ..prover import ProvedPass
from ..sites import inherit
from .values import consumers, producer, rank

KEPT = "left as a Transpose: a copy would hold the weight twice, and a runtime folds it when it loads the graph"


class LiftTiedWeights(ProvedPass):
    """A product with a transposed weight -> Gemm, which reads it as it is."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in list(model.graph.all_nodes()):
            turned = producer(node.inputs[1], "Transpose") if node.op_type == "MatMul" and node.domain == "" else None
            weight = turned.inputs[0] if turned is not None else None
            if weight is None or weight.const_value is None or rank(weight) != 2 or len(consumers(weight)) < 2:
                continue
            if rank(node.inputs[0]) != 2:
                self.log.declined("tied_weight", node, "MatMul of a transposed weight", KEPT)
                continue
            gemm = inherit(ir.node("Gemm", [node.inputs[0], weight], {"transB": 1}), node)
            leaves = [value for value in gemm.inputs if value is not None]
            modified |= self.replace("tied_weight", node, gemm, "MatMul of a transposed weight", leaves)
        return ir.passes.PassResult(model, modified)
