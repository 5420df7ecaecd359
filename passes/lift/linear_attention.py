"""Linear attention -> the function `LinearAttention` of domain `graphwright`.

    Q (Kt V), with any feature maps on Q and K   ->   graphwright.LinearAttention(Kt, V, Q)

Legal cases: 1. the inner product is over the tokens: its left side is a Transpose of the last axis, but for factors,
casts and a softmax; or the inputs bring the size that is summed, and the others are fixed: then Q may be on the right;
2. what stands between the two products keeps the result of the inner one, but for factors and views; 3. both are
products of computed tensors of rank 3 or more, the second a MatMul, or an Einsum that may scale too; 4. nothing inside
is read outside. Softmax as a feature map, over the features of Q or the tokens of K, is no attention by itself.

Sources: linear attention, arXiv:2006.16236; efficient attention, arXiv:1812.01243.
"""

from __future__ import annotations

import onnx_ir as ir

from ..prover import ProvedPass
from .custom_attention import is_product
from .enclose import between, enclose, is_closed
from .values import constant, dim, producer, rank

VIEWS = frozenset({"Transpose", "Reshape", "Mul", "Div", "Identity", "Cast", "Unsqueeze", "Squeeze", "Dropout"})
MAPS = frozenset({"Mul", "Div", "Cast", "Identity", "Softmax"})


class LiftLinearAttention(ProvedPass):
    """Q (Kt V) -> `LinearAttention`."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in list(model.graph):
            if node.domain != "" or (inner := _inner(node)) is None:
                continue
            nodes = between([inner], node)
            if nodes is None or not is_closed(nodes):
                self.log.missed("attention", node, "Q (Kt V)", "the product of Kt and V is read elsewhere")
                continue
            call = enclose(model, "LinearAttention", nodes, inner)
            modified |= self.replace("attention", node, call, "Q (Kt V)")
        return ir.passes.PassResult(model, modified)


def _inner(end: ir.Node) -> ir.Node | None:
    """The product Kt V that `end` takes Q to."""
    for place, operand in enumerate(end.inputs if is_product(end) else ()):
        inner = _through(operand, VIEWS)
        if inner is None or inner.op_type != "MatMul" or not is_product(inner):
            continue
        factors = inner.inputs if end.op_type == "Einsum" else (*inner.inputs, *end.inputs)
        first = place == 0 and end.op_type == "MatMul"  # there (Q Kt) V has its product too
        if min(rank(value) or 0 for value in factors) > 2 and (
            _sums_tokens(inner) or (not first and _is_turned(inner))
        ):
            return inner
    return None


def _is_turned(inner: ir.Node) -> bool:
    """Whether the left side was transposed for the product: else the tokens are not what is summed."""
    keys = _through(inner.inputs[0], MAPS)
    perm = keys.attributes.get_ints("perm") or (0,) if keys is not None and keys.op_type == "Transpose" else (0,)
    return perm[-1] != len(perm) - 1


def _sums_tokens(inner: ir.Node) -> bool:
    """Whether an axis whose size the inputs bring is summed, and those that stay are fixed."""
    kept = [dim(inner.outputs[0], axis) for axis in (-2, -1)]
    return isinstance(dim(inner.inputs[0], -1), str) and all(isinstance(size, int) for size in kept)


def _through(value: ir.Value | None, op_types: frozenset[str]) -> ir.Node | None:
    """The node behind ops of `op_types`; of a product with a constant that behind the other side."""
    node = producer(value)
    while node is not None and node.op_type in op_types:
        node = producer(node.inputs[1 if node.op_type == "Mul" and constant(node.inputs[0]) is not None else 0])
    return node
