"""ONNX Runtime has no kernels for the newest form of a few ops: graphs that hold one are stamped with an older opset.

1. A graph with one of `OLD`, whose nodes all mean the same at opset 21 -> opset 21.
2. Where another node needs more than opset 21 (Attention, RMSNormalization, RotaryEmbedding) the graph stays as it is.
"""

from __future__ import annotations

import onnx_ir as ir

from ..schemas import misfit

OPSET = 21
# opset 22 gave each of them bfloat16 and nothing else; the kernels of ONNX Runtime 1.31 are those of before
OLD = frozenset(
    {"Bernoulli", "GlobalLpPool", "MaxRoiPool", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform"}
    | {"RandomUniformLike", "RoiAlign"}
)


class UseOlderKernels(ir.passes.InPlacePass):
    """Opset 23 -> 21, for graphs that hold an op of `OLD`."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = [node for node in model.graph.all_nodes() if node.domain == ""]
        needed = any(node.op_type in OLD for node in nodes)
        if not needed or any(misfit(node, OPSET) for node in nodes):
            return ir.passes.PassResult(model, False)
        model.opset_imports[""] = OPSET
        return ir.passes.PassResult(model, True)
