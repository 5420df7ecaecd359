"""`Attention` on heads side by side -> `com.microsoft.GroupQueryAttention`, which computes no score behind its query.

    Attention <q_num_heads, kv_num_heads, is_causal, scale, softcap> (q, k, v, mask)
        ->   GroupQueryAttention <num_heads, kv_num_heads, causal, scale, softcap>
                 (q, k, v, seqlens_k = Expand(S - 1, [B]), total_sequence_length = S,
                  attention_bias = Where(mask, 0, lowest) or Max(mask, lowest))

Legal cases: 1. rank 3 and float32, one output, no cache, Q, K and V of one batch and one length, known by number or
name; 2. heads of one size, for V too, that is a multiple of 8; a scale that is not 0, which means the default to the
kernel; 3. no mask, or one of rank 4: it is added in finite numbers, as `multihead` makes them. Padding is a matter of
the mask alone: every row has all S keys. 4. `causal` is the flag, or what the mask itself says (see causal.py).

Source: contrib operators of ONNX Runtime, GroupQueryAttention. Measured on 1.31, 12 heads of 64, against `Attention`:
where it is causal, masked or not, at 16, 64, 128 and 512 tokens 1.0, 1.5, 1.7 and 1.9 times as fast with one thread,
0.7 (by 11 us), 1.1, 1.4 and 2.1 times with two; elsewhere as fast at 1 x 512, 0.7 times at 16. So it is the default
where it is causal, and measured elsewhere. A GPT-2 of 3 layers: 1.12 and 1.10 times at 512, 0.98 to 1.0 at 16.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ...spec import SITE
from ..base import GraphPass
from ..lift.values import add_constant, dim, insert, rank
from ..sites import inherit
from .causal import CAUSAL
from .forms import Chosen, attention_class
from .multihead import CONTRIB, to_add

# batch and length of queries, in their graph -> seqlens_k and total_sequence_length
Sizes = dict[tuple[object, ...], tuple[ir.Value, ir.Value]]


class UseGroupQuery(GraphPass):
    """Of the classes that `chosen` says."""

    def __init__(self, chosen: Chosen) -> None:
        super().__init__()
        self.chosen = chosen

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        added: dict[ir.Value, ir.Value] = {}
        sizes: Sizes = {}
        modified = False
        for node in list(model.graph.all_nodes()):
            if self.chosen(attention_class(node)) == "grouped" and _fits(node):
                _replace(node, added, sizes)
                modified = True
        if modified:
            model.opset_imports.setdefault(CONTRIB, 1)
        return ir.passes.PassResult(model, modified)


def _fits(node: ir.Node) -> bool:
    """Whether the node is of the legal cases 1 to 3."""
    operands, mask = node.inputs[:3], [*node.inputs, None][3]
    if len(node.outputs) > 1 or any(node.inputs[4:]) or any(rank(value) != 3 for value in operands):
        return False
    if any(value is None or value.dtype != ir.DataType.FLOAT for value in operands):
        return False
    for axis in (0, 1):
        found = {dim(value, axis) for value in operands}
        if len(found) > 1 or None in found:
            return False  # 1
    widths = [dim(value, 2) for value in operands]
    heads, fewer = (node.attributes.get_int(name, 0) for name in ("q_num_heads", "kv_num_heads"))
    sizes = {
        width // count if isinstance(width, int) and count else None
        for width, count in zip(widths, (heads, fewer, fewer), strict=True)
    }
    size = sizes.pop()
    if sizes or size is None or size % 8 or node.attributes.get_float("scale", 1.0) == 0:
        return False  # 2
    return mask is None or (rank(mask) == 4 and mask.dtype in (ir.DataType.BOOL, ir.DataType.FLOAT))  # 3


def _replace(node: ir.Node, added: dict[ir.Value, ir.Value], sizes: Sizes) -> None:
    query, key, value, mask = [*node.inputs, None][:4]
    bias = to_add(node, mask, added)
    attributes: dict[str, int | float] = {
        "num_heads": node.attributes.get_int("q_num_heads", 0),
        "kv_num_heads": node.attributes.get_int("kv_num_heads", 0),
    }
    for name in ("scale", "softcap"):
        if node.attributes.get_float(name, 0.0):
            attributes[name] = node.attributes.get_float(name, 0.0)
    if not node.attributes.get_int("is_causal", 0) and CAUSAL not in node.metadata_props:
        attributes["causal"] = 0  # 4
    last, total = _sizes(node, sizes)
    inputs = [query, key, value, None, None, last, total, *([None, None, None, bias] if bias is not None else [])]
    new = inherit(ir.node("GroupQueryAttention", inputs, attributes, domain=CONTRIB), node)
    new.metadata_props[SITE] = node.metadata_props.get(SITE, "attention")
    assert node.graph is not None
    old, made = node.outputs[0], new.outputs[0]
    made.type, made.shape = old.type, old.shape
    ir.convenience.replace_nodes_and_values(node.graph, node, [node], [new], [old], [made])


def _sizes(node: ir.Node, sizes: Sizes) -> tuple[ir.Value, ir.Value]:
    """Each row's last key, int32 [batch], and the number of keys, int32 [1]; once for all queries of these sizes."""
    query = node.inputs[0]
    at = (node.graph, dim(query, 0), dim(query, 1))
    if at not in sizes:
        assert node.graph is not None
        batch, length = (insert(node, "Shape", [query], start=axis, end=axis + 1) for axis in (0, 1))
        total = insert(node, "Cast", [length], to=int(ir.DataType.INT32))
        one = add_constant(node.graph, "one.int32", np.array(1, np.int32))
        sizes[at] = insert(node, "Expand", [insert(node, "Sub", [total, one]), batch]), total
    return sizes[at]
