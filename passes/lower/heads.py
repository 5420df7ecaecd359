"""`Attention` on inputs whose heads lie side by side in the last axis: ONNX Runtime's kernel parts them itself.

    Transpose(Attention(Transpose(q), Transpose(k), Transpose(v), mask))   ->   Attention(q, k, v, mask) of rank 3
    RotaryEmbedding(Transpose(q), cos, sin)                                ->   RotaryEmbedding(q, cos, sin) of rank 3

where q is [batch, length, heads, size] and Transpose is [0, 2, 1, 3]. Legal cases: 1. Q, K and V each come from such a
Transpose, or from a RotaryEmbedding that only the Attention reads, of such a Transpose; 2. the numbers of heads and
their sizes are known; 3. the result is read by such a Transpose alone; no scores as an output, whose layout has heads.
A cache, in and out, has its heads in either form. The Reshapes around become views of views, for `FoldReshapes`.

Source: ONNX operator specification, Attention-23, RotaryEmbedding-23. Measured on ONNX Runtime 1.31, 8 x 128, 12 heads
of 32: 2.16 ms, the form with four Transposes 2.7 ms.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ...spec import SITE
from ..base import GraphPass
from ..lift.values import add_constant, dim, insert, only_consumer, producer, rank
from ..sites import inherit

_PERM = (0, 2, 1, 3)
CACHED = 3  # outputs: the result, the keys and the values with those of the past


class MergeHeads(GraphPass):
    """Rank 4 -> rank 3."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in list(model.graph.all_nodes()):
            if node.domain == "" and node.op_type == "Attention":
                modified |= _merge(node)
        return ir.passes.PassResult(model, modified)


def _merge(node: ir.Node) -> bool:
    parted = [_parted(value, node) for value in node.inputs[:3]]
    behind = only_consumer(node.outputs[0], "Transpose")
    sized = [
        isinstance(dim(value, axis), int) and rank(value) == len(_PERM) for value in node.inputs[:3] for axis in (1, 3)
    ]
    if None in parted or behind is None or not _swaps(behind) or not all(sized):
        return False
    if len(node.outputs) > CACHED or any(node.inputs[6:]):
        return False
    query, key, value = (_merged(node, operand) for operand in node.inputs[:3])
    heads = {"q_num_heads": dim(node.inputs[0], 1), "kv_num_heads": dim(node.inputs[1], 1)}
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    inputs = [query, key, value, *node.inputs[3:]]
    new = inherit(ir.node("Attention", inputs, {**attributes, **heads}, num_outputs=len(node.outputs)), node)
    new.metadata_props.update({SITE: "attention", **node.metadata_props})
    assert node.graph is not None
    node.graph.insert_before(node, new)
    for before, present in zip(node.outputs[1:], new.outputs[1:], strict=True):
        _pass_on(before, present)
    new.outputs[0].type = node.outputs[0].type
    width = _size(node.inputs[0], 1) * _size(node.inputs[2], 3)
    new.outputs[0].shape = ir.Shape([dim(node.inputs[0], 0), dim(node.inputs[0], 2), width])
    made = _view(node, new.outputs[0], [0, 0, _size(node.inputs[0], 1), _size(node.inputs[2], 3)])
    _pass_on(behind.outputs[0], made)
    node.graph.remove(behind, safe=True)
    node.graph.remove(node, safe=True)
    return True


def _pass_on(old: ir.Value, made: ir.Value) -> None:
    """Who read `old` reads `made`."""
    made.shape, made.type = old.shape, old.type
    if old.is_graph_output():
        made.name, old.name = old.name, None
    ir.convenience.replace_all_uses_with(old, made, replace_graph_outputs=True)


def _swaps(node: ir.Node) -> bool:
    return tuple(node.attributes.get_ints("perm", ())) == _PERM


def _parted(value: ir.Value | None, reader: ir.Node) -> ir.Node | None:
    """1: the Transpose that `value` comes from."""
    turned = producer(value, "RotaryEmbedding")
    if turned is not None and value is not None:
        cached = len(turned.inputs) < 4 or turned.inputs[3] is None or rank(turned.inputs[1]) == 2
        if only_consumer(value) is not reader or not cached:
            return None
        value = turned.inputs[0]
    node = producer(value, "Transpose")
    return node if node is not None and _swaps(node) else None


def _merged(reader: ir.Node, value: ir.Value | None) -> ir.Value:
    """[batch, heads, length, size] as [batch, length, heads * size]."""
    assert value is not None
    turned = producer(value, "RotaryEmbedding")
    heads, size = _size(value, 1), _size(value, 3)
    parted = producer(turned.inputs[0] if turned is not None else value, "Transpose")
    assert parted is not None
    source = parted.inputs[0]
    flat = _view(reader, source, [0, 0, heads * size])
    flat.type, flat.shape = value.type, ir.Shape([dim(value, 0), dim(value, 2), heads * size])
    if turned is None:
        return flat
    attributes = {name: attribute.value for name, attribute in turned.attributes.items()}
    made = inherit(ir.node("RotaryEmbedding", [flat, *turned.inputs[1:]], {**attributes, "num_heads": heads}), turned)
    made.metadata_props.update(turned.metadata_props)
    made.outputs[0].type, made.outputs[0].shape = flat.type, flat.shape
    assert reader.graph is not None
    reader.graph.insert_before(reader, made)
    return made.outputs[0]


def _view(before: ir.Node, value: ir.Value | None, target: list[int]) -> ir.Value:
    assert before.graph is not None
    name = f"shape.{'.'.join(map(str, target))}"
    return insert(before, "Reshape", [value, add_constant(before.graph, name, np.array(target, np.int64))])


def _size(value: ir.Value | None, axis: int) -> int:
    size = dim(value, axis)
    assert isinstance(size, int)
    return size
