"""`Attention` as the primitives that OpenVINO turns into one fused kernel.

    Attention(Q, K, V, mask) -> MatMul(Softmax(cap(MatMul(Q, Kt) * scale) + mask), V)

OpenVINO's own reading of `Attention` ends in the same kernel, with a search for NaN and a choice behind each; these
primitives leave both out (measured on MiniLM: 2 % in float32, up to 10 % in bfloat16).

Legal cases: 1. Q, K, V of rank 4, no cache, one output; 2. fewer heads of K and V than of Q, their numbers known: each
is repeated; 3. a boolean or floating mask, the causal flag, or both; 4. a soft-cap. All else stays an `Attention`.

A mask is made additive once, however many attentions read it. Forbidden is bfloat16's lowest number: float32's would
become -inf where OpenVINO computes in bfloat16, and a row without an allowed key NaN, which spreads from there.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import ml_dtypes
import numpy as np
import onnx_ir as ir

from ...spec import SITE
from ..base import GraphPass
from ..lift.values import add_constant, dim, insert, rank

LOWEST = float(ml_dtypes.finfo(ml_dtypes.bfloat16).min)  # type: ignore[no-untyped-call]
MASKS = (ir.DataType.BOOL, ir.DataType.FLOAT)
# the last three are without effect in an attention of rank 4 and one output whose type is float32 already
KNOWN = frozenset({"scale", "softcap", "is_causal", "q_num_heads", "kv_num_heads", "qk_matmul_output_mode"})

Masks = dict[tuple[object, ...], ir.Value]


class PlainAttention(GraphPass):
    """Attention -> MatMul, Softmax, MatMul, with one additive mask for all that read the same; those `wanted`."""

    def __init__(self, wanted: Callable[[ir.Node], bool] = lambda _: True) -> None:
        super().__init__()
        self.wanted = wanted

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        masks: Masks = {}
        found = [node for node in model.graph.all_nodes() if is_plain(node) and self.wanted(node)]
        for node in found:
            _decompose(node, masks)
        return ir.passes.PassResult(model, bool(found))


def is_plain(node: ir.Node) -> bool:
    """Whether `node` is an `Attention` that the primitives can say."""
    if node.domain != "" or node.op_type != "Attention" or set(node.attributes) - KNOWN:
        return False
    query, key, value, mask = [*node.inputs, None][:4]
    if any(node.inputs[4:]) or len(node.outputs) > 1 or any(rank(each) != 4 for each in (query, key, value)):
        return False
    if query is None or query.dtype != ir.DataType.FLOAT or (mask is not None and mask.dtype not in MASKS):
        return False
    heads = [dim(each, 1) for each in (query, key, value)]
    sizes = [dim(each, 3) for each in (query, key, value)]
    same, numbers = len({*heads}) == 1 and None not in heads, all(isinstance(each, int) for each in (*heads, *sizes))
    return ("scale" in node.attributes or isinstance(sizes[0], int)) and (same or numbers)


def _decompose(node: ir.Node, masks: Masks) -> None:
    query, key, value, mask = [*node.inputs, None][:4]
    assert query is not None
    assert key is not None
    assert value is not None
    size = dim(query, 3)
    scale = node.attributes.get_float("scale", 1 / math.sqrt(size) if isinstance(size, int) else 1.0)
    key, value = _repeat(node, key, dim(query, 1)), _repeat(node, value, dim(query, 1))
    scores = insert(node, "MatMul", [query, insert(node, "Transpose", [key], perm=[0, 1, 3, 2])])
    scores = insert(node, "Mul", [scores, _number(node, scale)])
    cap = node.attributes.get_float("softcap", 0.0)
    if cap:
        scores = insert(node, "Mul", [scores, _number(node, 1 / cap)])
        scores = insert(node, "Mul", [insert(node, "Tanh", [scores]), _number(node, cap)])
    added = [] if mask is None else [_additive(node, mask, masks)]
    if node.attributes.get_int("is_causal", 0):
        added.append(_causal(node, query, key, masks))
    for each in added:
        scores = insert(node, "Add", [scores, each])
    weights = insert(node, "Softmax", [scores], axis=-1)
    core = weights.producer()
    assert core is not None
    core.metadata_props[SITE] = node.metadata_props.get(SITE, "attention")
    made, old = insert(node, "MatMul", [weights, value]), node.outputs[0]
    made.type, made.shape = old.type, old.shape
    assert node.graph is not None
    ir.convenience.replace_nodes_and_values(node.graph, node, [node], [], [old], [made])


def _repeat(node: ir.Node, value: ir.Value, heads: int | str | None) -> ir.Value:
    """[batch, fewer, length, size] -> [batch, heads, length, size], each head in turn as often as it must be."""
    fewer, size = dim(value, 1), dim(value, 3)
    if fewer == heads:
        return value
    assert isinstance(heads, int)
    assert isinstance(fewer, int)
    assert isinstance(size, int)
    apart = insert(node, "Unsqueeze", [value, _list(node, [2])])
    many = insert(node, "Expand", [apart, _list(node, [1, 1, heads // fewer, 1, 1])])
    return insert(node, "Reshape", [many, _list(node, [0, heads, -1, size])])


def _additive(node: ir.Node, mask: ir.Value, masks: Masks) -> ir.Value:
    """0 where a key is allowed and `LOWEST` where it is not; of a floating mask what it says, but not below that."""
    at = (node.graph, mask)
    if at not in masks:
        lowest = _number(node, LOWEST)
        made = (
            insert(node, "Where", [mask, _number(node, 0.0), lowest])
            if mask.dtype == ir.DataType.BOOL
            else insert(node, "Max", [mask, lowest])
        )
        made.type, made.shape = ir.TensorType(ir.DataType.FLOAT), mask.shape
        masks[at] = made
    return masks[at]


def _causal(node: ir.Node, query: ir.Value, key: ir.Value, masks: Masks) -> ir.Value:
    """[queries, keys]: a query may see the keys up to its own place."""
    sizes = (dim(query, 2), dim(key, 2))
    at = (node.graph, *sizes) if None not in sizes else (node.graph, query, key)
    if at not in masks:
        queries = insert(node, "Unsqueeze", [_places(node, query), _list(node, [1])])
        allowed = insert(node, "LessOrEqual", [_places(node, key), queries])
        masks[at] = insert(node, "Where", [allowed, _number(node, 0.0), _number(node, LOWEST)])
    return masks[at]


def _places(node: ir.Node, value: ir.Value) -> ir.Value:
    """[length] int64: 0, 1, 2, ... along axis 2."""
    shape = insert(node, "Shape", [value], start=2, end=3)
    length = insert(node, "Squeeze", [shape, _list(node, [0])])
    start, step = (_constant(node, np.array(number)) for number in (0, 1))
    return insert(node, "Range", [start, length, step])


def _number(node: ir.Node, number: float) -> ir.Value:
    return _constant(node, np.array(number, np.float32))


def _list(node: ir.Node, numbers: list[int]) -> ir.Value:
    return _constant(node, np.array(numbers, np.int64))


def _constant(node: ir.Node, array: np.ndarray) -> ir.Value:
    assert node.graph is not None
    return add_constant(node.graph, f"attention.{'.'.join(f'{each:g}' for each in array.reshape(-1))}", array)
