"""`Attention` in the forms that TensorRT's parser takes.

The parser of TensorRT 11 takes one output, no cache, no soft-cap, no `softmax_precision`, and a mask or the causal flag
but not both; older ones have no Attention at all. Legal cases, in this order:
1. `softmax_precision` is left out: the fused kernels add up in float32 whatever the type;
2. caches of keys and values: the past is put in front by Concat, and what comes of it is the present;
3. the causal flag beside a mask, a past, or in primitives: a mask of its own, And with a mask of truth values, and the
   lowest number in one that is added; one for all attentions of the same lengths;
4. a soft-cap, the scores as an output, half precision with a head size that has no fused kernel (16 to 256 have one),
   a tensor that is Q or K twice (two fused kernels that read the same crash the builder of TensorRT-RTX 1.7), or a
   parser without Attention: products, Tanh and Softmax, with the root of the scale at Q and at K each;
5. what is left stays an `Attention`: in float32 too, which no kernel is for, but which TensorRT takes apart by itself.
A row of queries that no key is allowed is undefined here as everywhere: primitives give the mean of V for it.
"""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import onnx_ir as ir

from ...errors import BuildError
from ...spec import SITE
from ..base import GraphPass
from ..lift.values import add_constant, broadcast, dim, insert, rank
from ..sites import path_of
from .attention_primitives import Parts, in_primitives, of_rank_four

HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
FUSED_HEADS = range(16, 257)
_LARGEST = 1 << 20  # entries of a causal mask that is kept as a constant


class LowerAttention(GraphPass):
    """Each Attention as the parser takes it; `native`: whether it knows Attention at all."""

    def __init__(self, native: bool = True) -> None:
        super().__init__()
        self.native = native
        self._causal: dict[object, ir.Value] = {}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        self._causal = {}
        nodes = [node for node in model.graph.all_nodes() if node.domain == "" and node.op_type == "Attention"]
        reads = Counter(value for node in nodes for value in node.inputs[:2])
        twice = {value for value, count in reads.items() if count > 1}
        for node in nodes:
            modified |= node.attributes.pop("softmax_precision", None) is not None
            modified |= self._lower(node, not twice.isdisjoint(node.inputs[:2]))
        return ir.passes.PassResult(model, modified)

    def _lower(self, node: ir.Node, taken_apart: bool) -> bool:
        if reason := _unsaid(node):
            raise BuildError(f"TensorRT has no form for the Attention at {path_of(node)}: {reason}.")
        inputs = [*node.inputs, None, None, None][:6]
        past = inputs[4] is not None
        outputs = [value for value in node.outputs[1:] if value.name]
        causal, masked = bool(node.attributes.get_int("is_causal", 0)), inputs[3] is not None
        taken_apart = taken_apart or not self.native or _has_no_kernel(node)
        if not (past or outputs or taken_apart or (causal and masked)):
            return False
        parts = _parts(node)
        if past:
            parts.key, parts.value = (
                parts.put("Concat", [before, now], axis=2)
                for before, now in ((inputs[4], parts.key), (inputs[5], parts.value))
                if before is not None
            )
        scores = node.outputs[3] if len(node.outputs) > 3 and node.outputs[3].name else None
        taken_apart |= scores is not None
        if causal and (masked or past or taken_apart):
            parts.mask = self._with_causal(parts, inputs[4])
            causal = False
        with_scores = scores is not None
        made = in_primitives(parts, with_scores=with_scores) if taken_apart else [_attention(parts, causal)]
        _hand_over(node, 0, parts.merged(made[0]))
        for index, value in ((1, parts.key), (2, parts.value)):
            if len(node.outputs) > index and node.outputs[index].name:
                _hand_over(node, index, insert(node, "Identity", [value]))
        if scores is not None:
            _hand_over(node, 3, made[1])
        assert node.graph is not None
        node.graph.remove(node, safe=True)
        return True

    def _with_causal(self, parts: Parts, past: ir.Value | None) -> ir.Value:
        node = parts.node
        lengths = (dim(parts.query, 2), dim(parts.now, 2), 0 if past is None else dim(past, 2))
        causal = self._causal.get((node.graph, lengths))
        if causal is None:
            causal = _causal_mask(parts, past, lengths)
            if None not in lengths:
                self._causal[node.graph, lengths] = causal
        if parts.mask is None:
            return causal
        mask = of_rank_four(node, parts.mask)
        dtype = mask.dtype or ir.DataType.FLOAT
        if dtype == ir.DataType.BOOL:
            made = insert(node, "And", [mask, causal])
        else:
            lowest = add_constant(_graph(node), f"lowest.{dtype.name.lower()}", np.array(dtype.min, dtype.numpy()))
            made = insert(node, "Where", [causal, mask, lowest])
        made.type, made.shape = ir.TensorType(dtype), broadcast([mask, causal])
        return made


def _unsaid(node: ir.Node) -> str:
    if len(node.inputs) > 6 and node.inputs[6] is not None:
        return "it counts the keys of each row (nonpad_kv_seqlen)"
    if any(node.attributes.get_int(f"{side}_window_size", -1) >= 0 for side in ("left", "right")):
        return "it has a window: put that into the mask"
    inputs = [*node.inputs, None, None, None][:6]
    if (inputs[4] is None) != (inputs[5] is None):
        return "it has a past of keys or of values alone"
    return ""


def _has_no_kernel(node: ir.Node) -> bool:
    if node.attributes.get_float("softcap", 0.0):
        return True
    size = _head_size(node)
    return node.outputs[0].dtype in HALVES and isinstance(size, int) and size not in FUSED_HEADS


def _head_size(node: ir.Node) -> int | str | None:
    size = dim(node.inputs[0], -1)
    if rank(node.inputs[0]) != 3 or not isinstance(size, int):
        return size
    return size // (node.attributes.get_int("q_num_heads", 0) or 1)


def _parts(node: ir.Node) -> Parts:
    """The node's inputs as [batch, heads, length, size] each."""
    query, key, value, mask = [*node.inputs, None][:4]
    assert query is not None
    assert key is not None
    assert value is not None
    flat = rank(query) == 3
    heads, fewer = (node.attributes.get_int(f"{side}_num_heads", 0) for side in ("q", "kv"))
    if not flat:
        heads, fewer = (size if isinstance(size, int) else 0 for size in (dim(query, 1), dim(key, 1)))
        if (not heads or not fewer) and dim(query, 1) == dim(key, 1) is not None:
            heads = fewer = 1  # as many of each, whatever their number
    size = _head_size(node)
    scale = node.attributes.get_float("scale", size**-0.5 if isinstance(size, int) else math.nan)
    if rank(query) not in (3, 4) or not heads or not fewer or not scale >= 0:
        raise BuildError(
            f"TensorRT has no form for the Attention at {path_of(node)}: its heads, sizes or scale are no numbers that "
            "primitives can be made of."
        )
    cap = node.attributes.get_float("softcap", 0.0)
    mode = node.attributes.get_int("qk_matmul_output_mode", 0)
    parts = Parts(node, query, key, value, mask, heads, fewer, scale, cap, mode, flat)
    if flat:
        parts.query, parts.key, parts.value = (
            parts.split(value, count) for value, count in ((query, heads), (key, fewer), (value, fewer))
        )
    parts.now = parts.key
    return parts


def _attention(parts: Parts, causal: bool) -> ir.Value:
    inputs = [parts.query, parts.key, parts.value, *([parts.mask] if parts.mask is not None else [])]
    made = parts.put("Attention", inputs, scale=parts.scale, is_causal=1 if causal else None)
    core = made.producer()
    assert core is not None
    core.metadata_props[SITE] = parts.node.metadata_props.get(SITE, "attention")
    return made


def _causal_mask(parts: Parts, past: ir.Value | None, lengths: tuple[int | str | None, ...]) -> ir.Value:
    """Truth values [1, 1, queries, keys]: key j <= query i + the length of the past."""
    node = parts.node
    queries, keys, before = lengths
    known = isinstance(queries, int) and isinstance(keys, int) and isinstance(before, int)
    if known and queries * (keys + before) <= _LARGEST:  # type: ignore[operator]
        allowed = np.arange(keys + before) <= np.arange(queries)[:, None] + before  # type: ignore[operator,arg-type]
        return add_constant(_graph(node), f"causal.{queries}.{keys}.{before}", allowed[None, None])
    zero, one = (add_constant(_graph(node), f"number.{n}.int64", np.array(n, np.int64)) for n in (0, 1))
    rows, columns = (insert(node, "Range", [zero, _length(parts, v), one]) for v in (parts.query, parts.key))
    if past is not None:
        rows = insert(node, "Add", [rows, _length(parts, past)])
    axes = [add_constant(_graph(node), f"axes.{a}", np.array(axes, np.int64)) for a, axes in _AXES.items()]
    row, column = (insert(node, "Unsqueeze", [v, a]) for v, a in zip((rows, columns), axes, strict=True))
    made = insert(node, "LessOrEqual", [column, row])
    made.type, made.shape = ir.TensorType(ir.DataType.BOOL), ir.Shape([1, 1, queries, None if before else keys])
    return made


_AXES = {"0.1.3": [0, 1, 3], "0.1.2": [0, 1, 2]}


def _length(parts: Parts, value: ir.Value) -> ir.Value:
    """The third size of [batch, heads, length, size], without axes."""
    shape = insert(parts.node, "Shape", [value], start=2, end=3)
    return insert(parts.node, "Squeeze", [shape])


def _hand_over(node: ir.Node, index: int, made: ir.Value) -> None:
    """`made` stands for an output of the node."""
    old = node.outputs[index]
    made.type, made.shape = old.type, old.shape
    if old.is_graph_output():
        made.name = old.name
    ir.convenience.replace_all_uses_with(old, made, replace_graph_outputs=True)


def _graph(node: ir.Node) -> ir.Graph:
    assert isinstance(node.graph, ir.Graph)
    return node.graph
