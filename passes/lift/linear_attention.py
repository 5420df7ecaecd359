"""Linear attention -> the function `LinearAttention` of domain `graphwright`.

    Q (Kt V), with any feature maps on Q and K   ->   graphwright.LinearAttention(Q, Kt, V)

Legal cases: 1. the inner product is over the tokens: its left side is a Transpose, but for factors, casts and a
softmax; 2. what stands between the two products keeps the result of the inner one, but for factors and views; 3. both
are products of computed tensors of rank 3 or more; 4. nothing inside is read outside. Softmax as a feature map, over
the features of Q or the tokens of K, is no attention by itself.

Sources: linear attention, arXiv:2006.16236; efficient attention, arXiv:1812.01243.
"""

from __future__ import annotations

import onnx_ir as ir

from ..prover import ProvedPass
from .custom_attention import is_product
from .enclose import between, enclose, is_closed
from .values import producer, rank

VIEWS = frozenset({"Transpose", "Reshape", "Mul", "Div", "Identity", "Cast", "Unsqueeze", "Squeeze", "Dropout"})
MAPS = frozenset({"Mul", "Div", "Cast", "Identity", "Softmax"})


class LiftLinearAttention(ProvedPass):
    """Q (Kt V) -> `LinearAttention`."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in list(model.graph):
            if node.domain != "" or node.op_type != "MatMul" or (inner := _inner(node)) is None:
                continue
            nodes = between([inner], node)
            if nodes is not None and is_closed(nodes):
                call = enclose(model, "LinearAttention", nodes, inner)
                modified |= self.replace("attention", node, call, "Q (Kt V)")
        return ir.passes.PassResult(model, modified)


def _inner(end: ir.Node) -> ir.Node | None:
    """The product Kt V behind the right side of `end`."""
    inner = producer(end.inputs[1])
    while inner is not None and inner.op_type in VIEWS:
        inner = producer(inner.inputs[0])
    if inner is None or inner.op_type != "MatMul" or not is_product(end) or not is_product(inner):
        return None
    if min(rank(value) or 0 for value in (*end.inputs, *inner.inputs)) < 3:
        return None
    keys = producer(inner.inputs[0])
    while keys is not None and keys.op_type in MAPS:
        keys = producer(keys.inputs[0])
    return inner if keys is not None and keys.op_type == "Transpose" else None
