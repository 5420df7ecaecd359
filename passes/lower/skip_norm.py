"""A residual sum and its norm -> `com.microsoft.SkipLayerNormalization` or `SkipSimplifiedLayerNormalization`.

    LayerNormalization(Add(x, skip), scale, bias)   ->   SkipLayerNormalization(x, skip, scale, bias)
    RMSNormalization(Add(x, skip), scale)           ->   SkipSimplifiedLayerNormalization(x, skip, scale)

Legal cases: 1. x and skip of one shape and of rank 2 or 3; 2. a norm of one output along the last axis, scale and bias
of rank 1. What else reads the sum reads the fourth output.

Source: contrib operators of ONNX Runtime. Measured on 1.31: six times slower than the two ops (float32, 1024 x 384: 1.8
ms against 0.3 ms), one node fewer. So it is chosen by measuring alone.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import TopologicalSortPass

from ..base import GraphPass
from ..lift.values import producer, rank, same_shape
from ..sites import inherit
from .multihead import CONTRIB

_OPS = {"LayerNormalization": "SkipLayerNormalization", "RMSNormalization": "SkipSimplifiedLayerNormalization"}


class FuseSkipNorm(GraphPass):
    """Add, then a norm -> one op."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in list(model.graph.all_nodes()):
            total = producer(node.inputs[0], "Add") if node.domain == "" and node.op_type in _OPS else None
            if total is not None and _fits(node, total):
                _fuse(node, total)
                modified = True
        if modified:
            model.opset_imports.setdefault(CONTRIB, 1)
            TopologicalSortPass()(model)  # a reader of the sum may stand in front of the norm
        return ir.passes.PassResult(model, modified)


def _fits(norm: ir.Node, total: ir.Node) -> bool:
    x, skip = total.inputs
    wide = rank(total.outputs[0])
    if x is None or skip is None or wide not in (2, 3) or norm.graph is not total.graph or len(norm.outputs) > 1:
        return False
    weights = all(rank(value) == 1 for value in norm.inputs[1:] if value is not None)
    last = norm.attributes.get_int("axis", -1) in (-1, wide - 1)
    return weights and last and same_shape(x, skip)


def _fuse(norm: ir.Node, total: ir.Node) -> None:
    assert norm.graph is not None
    epsilon = norm.attributes.get_float("epsilon", 1e-5)
    inputs = [*total.inputs, *norm.inputs[1:]]
    new = inherit(ir.node(_OPS[norm.op_type], inputs, {"epsilon": epsilon}, domain=CONTRIB, num_outputs=4), norm)
    new.metadata_props.update(norm.metadata_props)
    norm.graph.insert_before(norm, new)
    for old, made in ((norm.outputs[0], new.outputs[0]), (total.outputs[0], new.outputs[3])):
        made.type, made.shape = old.type, old.shape
        if old.is_graph_output():
            made.name, old.name = old.name, None
        ir.convenience.replace_all_uses_with(old, made, replace_graph_outputs=True)
    norm.graph.remove([norm, total], safe=True)
