"""Masks that allow no key behind its query: their attentions are marked, for kernels that leave out what is not read.

    Attention(q, k, v, And(.., causal, ..))   ->   the same, marked

Legal cases: 1. queries and keys of one length, known by number or name, and no cache; 2. a mask of these last two
dims, which is causal by itself, an And of what is, or Where(what is, a bias, low): a value of these dims that follows
from sizes alone (see lift/sized_masks.py). The mark takes nothing from the mask, which says all that it said: padding,
sliding windows, biases.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from ..base import GraphPass
from ..lift.masks import LOW, uniform
from ..lift.sized_masks import says
from ..lift.values import dim, producer, rank, shape_only

CAUSAL = "graphwright.causal"  # metadata of such an attention


class MarkCausal(GraphPass):
    """Metadata alone; each mask is looked at once."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        seen: dict[ir.Value, bool] = {}
        marked = [node for node in model.graph.all_nodes() if _is_causal(node, model, seen)]
        for node in marked:
            node.metadata_props[CAUSAL] = "mask"
        return ir.passes.PassResult(model, bool(marked))


def _is_causal(node: ir.Node, model: ir.Model, seen: dict[ir.Value, bool]) -> bool:
    if node.domain != "" or node.op_type != "Attention" or len(node.inputs) < 4 or any(node.inputs[4:]):
        return False
    query, key, _, mask = node.inputs[:4]
    lengths = [dim(value, 2 if rank(value) == 4 else 1) for value in (query, key)]
    if mask is None or lengths[0] is None or [dim(mask, -2), dim(mask, -1)] != lengths or len({*lengths}) > 1:
        return False  # 1
    if mask not in seen:
        seen[mask] = any(
            shape_only(part) and [dim(part, -2), dim(part, -1)] == lengths and says(part, model.functions) == "causal"
            for part in _parts(mask)
        )
    return seen[mask]


def _parts(mask: ir.Value) -> Iterator[ir.Value]:
    """2: the mask and all that must be true where it allows a key."""
    yield mask
    node = producer(mask, "And", "Where")
    if node is None:
        return
    operands = node.inputs
    if node.op_type == "Where":
        low = uniform(node.inputs[2])
        operands = node.inputs[: 1 if low is not None and low <= LOW else 0]
    for value in operands:
        if value is not None:
            yield from _parts(value)
