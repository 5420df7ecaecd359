"""Attention that the standard cannot say -> a function of domain `graphwright`, its body the nodes as they are.

A softmax (or exponentials that are none) between two products, of which the reading found that something stands there
that `Attention` does not have: `ClippedAttention` (the weights are clipped), `SinkAttention` (further logits take part
in softmax), `QueryAttention` (softmax is over the queries, as in slot attention), `CustomAttention` (anything else).
Legal cases: 1. the products are MatMuls, Einsums or sums of a product of two computed tensors; 2. linear layers between
them mix heads; 3. what is read outside too, such as the weights, is a further output of the function.

What has no name in the standard gets one here, so that a target may have a kernel for it, quantization knows where
products of activations are, and the log misses nothing. Inlined, it is what it was.

Sources: clipped softmax, arXiv:2306.12929; slot attention, arXiv:2006.15055; heads mixed, arXiv:2003.02436.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import onnx_ir as ir

from .enclose import between, enclose, exits
from .values import consumers, is_constant, producer, rank

STEPS = 48  # nodes around a softmax among which its products are sought
NORMS = {f"{kind}Normalization" for kind in ("Layer", "RMS", "Group", "Batch", "Instance")}
BORDERS = frozenset({"Shape", "TopK", *NORMS})


def enclose_attention(model: ir.Model, softmax: ir.Node, name: str) -> list[ir.Node] | None:
    """The call of a function `name`, which stands nowhere yet, and the nodes in whose place its outputs come."""
    products = products_around(softmax)
    nodes = between(*products) if products is not None else None
    ends = exits(nodes) if nodes is not None else None
    if nodes is None or ends is None:
        return None
    if any(node.op_type == "Clip" for node in nodes[nodes.index(softmax) :]):
        name = "ClippedAttention"
    return [enclose(model, name, nodes, softmax, ends), *ends]


def products_around(softmax: ir.Node) -> tuple[list[ir.Node], ir.Node] | None:
    """The products that scores come from, and that which the weights go to; None if it is no attention."""
    ends = _walk(softmax, lambda node: (reader for value in node.outputs for reader in consumers(value)))
    starts = _walk(softmax, lambda node: (v.producer() for v in node.inputs if v is not None))
    begins = [producer(node.inputs[0], "Mul") if node.op_type == "ReduceSum" else node for node in starts]
    return ([node for node in begins if node is not None], ends[0]) if ends and starts else None


def _walk(softmax: ir.Node, neighbours: Callable[[ir.Node], Iterator[ir.Node | None]]) -> list[ir.Node]:
    """The nearest products of computed tensors in one direction."""
    ahead, seen, found = [softmax], {softmax}, list[ir.Node]()
    while ahead and len(seen) < STEPS:
        for node in neighbours(ahead.pop(0)):
            if node is None or node in seen or node.op_type in BORDERS:
                continue
            seen.add(node)
            if is_product(node) or is_sum_of_products(node):
                found.append(node)
            elif node.op_type != "MatMul" or _mixes_heads(node):
                ahead.append(node)
    return found


def is_product(node: ir.Node) -> bool:
    """Whether it is a MatMul or Einsum of computed tensors, and no linear layer."""
    fixed = [is_constant(value) and rank(value) == 2 for value in node.inputs]
    return node.op_type in ("MatMul", "Einsum") and len(fixed) > 1 and not any(fixed)


def is_sum_of_products(node: ir.Node) -> bool:
    """Whether it sums the product of two different computed tensors, of which nothing else is read."""
    factors = producer(node.inputs[0], "Mul") if node.op_type == "ReduceSum" else None
    if factors is None or factors.inputs[0] is factors.inputs[1] or consumers(factors.outputs[0]) != [node]:
        return False
    return all(not is_constant(value) and (rank(value) or 0) > 1 for value in factors.inputs)


def _mixes_heads(node: ir.Node) -> bool:
    """Whether a linear layer is over an axis that was brought to the end for it."""
    moved = producer(node.inputs[0], "Transpose")
    perm = moved.attributes.get_ints("perm") if moved is not None else None
    return perm is not None and len(perm) > 3 and perm[-1] != len(perm) - 1
