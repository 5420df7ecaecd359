"""Attention that the standard cannot say -> a function of domain `graphwright`, its body the nodes as they are.

A softmax between two products, of which the reading found that something stands there that `Attention` does not have:
`ClippedAttention` (the weights are clipped), `SinkAttention` (further logits take part in softmax), `QueryAttention`
(softmax is over the queries, as in slot attention), `CustomAttention` (anything else). Legal case: nothing inside is
read outside.

What has no name in the standard gets one here, so that a target may have a kernel for it, quantization knows where
products of activations are, and the log misses nothing. Inlined, it is what it was.

Sources: clipped softmax, arXiv:2306.12929; slot attention, arXiv:2006.15055.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import onnx_ir as ir

from .enclose import between, enclose, is_closed
from .values import consumers, is_constant, rank

STEPS = 48  # nodes around a softmax among which its products are sought
BORDERS = frozenset({"Shape", "TopK", "LayerNormalization", "RMSNormalization"})


def enclose_attention(model: ir.Model, softmax: ir.Node, name: str) -> tuple[ir.Node, ir.Node] | None:
    """The call of a function `name`, which stands nowhere yet, and the product that it is to replace."""
    products = products_around(softmax)
    nodes = between(*products) if products is not None else None
    if products is None or nodes is None or not is_closed(nodes):
        return None
    if any(node.op_type == "Clip" for node in nodes[nodes.index(softmax) :]):
        name = "ClippedAttention"
    return enclose(model, name, nodes, softmax), products[1]


def products_around(softmax: ir.Node) -> tuple[list[ir.Node], ir.Node] | None:
    """The products that scores come from, and that which the weights go to; None if it is no attention."""
    ends = _walk(softmax, lambda node: (reader for value in node.outputs for reader in consumers(value)))
    starts = _walk(softmax, lambda node: (v.producer() for v in node.inputs if v is not None))
    return (starts, ends[0]) if ends and starts else None


def _walk(softmax: ir.Node, neighbours: Callable[[ir.Node], Iterator[ir.Node | None]]) -> list[ir.Node]:
    """The nearest products of computed tensors in one direction."""
    ahead, seen, found = [softmax], {softmax}, list[ir.Node]()
    while ahead and len(seen) < STEPS:
        for node in neighbours(ahead.pop(0)):
            if node is not None and node not in seen and node.op_type not in BORDERS:
                seen.add(node)
                if node.op_type == "MatMul":
                    found += [node] if is_product(node) else []
                else:
                    ahead.append(node)
    return found


def is_product(node: ir.Node) -> bool:
    """Whether a MatMul is of two computed tensors, and no linear layer."""
    return all(value is not None and not (is_constant(value) and rank(value) == 2) for value in node.inputs)
