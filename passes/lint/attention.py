"""Attention and rotary embedding: what ONNX Runtime and TensorRT refuse of them, or leave out."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from ..lift.values import dim, dims, rank
from .base import ORT, TRT, Facts, Found, rule

MASK, PAST = 3, 4  # inputs of Attention
# inputs that are added to the scores, by contrib op, and the query's
BIASES = {"MultiHeadAttention": 5, "Attention": 5, "GroupQueryAttention": 10}
HEADS = range(16, 257)  # head sizes with a fused kernel in TensorRT-RTX 1.7 for SM89, in float16 and bfloat16
HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _text(value: ir.Value | None) -> str:
    return "[" + ", ".join("?" if size is None else str(size) for size in dims(value) or ()) + "]"


@rule(
    "ort-mask-query-dim",
    ORT,
    "error",
    "ONNX Runtime's Attention wants the mask's last two dims to be query and key length, and fails at run time where "
    "one of them is to be broadcast, though ONNX allows it",
    "Expand the mask's last two dims to (query length, key length) in the graph, as `graphwright optimize` does.",
)
def mask_dims(facts: Facts) -> Iterable[Found]:
    for node in facts.ops("Attention"):
        mask, query, key = _input(node, MASK), _input(node, 0), _input(node, 1)
        broadcast = [
            name
            for name, axis, wanted in (("query", -2, dim(query, -2)), ("key", -1, dim(key, -2)))
            if dim(mask, axis) == 1 and wanted != 1
        ]
        one_dim = mask is not None and rank(mask) == 1
        if broadcast or one_dim:
            which = " and ".join(broadcast) or "query"
            yield node, f"its mask {_text(mask)} has size 1 for the {which} length {_text(query)}"


@rule(
    "ort-mask-rank-3",
    ORT,
    "error",
    "ONNX reads a mask of rank 3 as [heads, query, key] and models mean [batch, query, key]: ONNX Runtime fails at run "
    "time, or masks the wrong rows",
    "Give the mask four dims: [batch, 1, query, key].",
)
def mask_rank(facts: Facts) -> Iterable[Found]:
    for node in facts.ops("Attention"):
        mask = _input(node, MASK)
        if rank(mask) == 3 and dim(mask, 0) != 1 and not isinstance(dim(mask, 0), int):
            yield node, f"its mask {_text(mask)} has rank 3, and a first dim that is not the number of heads"


@rule(
    "ort-bias-query-dim",
    ORT,
    "error",
    "The attention bias of ONNX Runtime's contrib attentions must be [batch or 1, heads or 1, query, key]: another "
    "size fails at run time",
    "Expand the bias's last two dims, or give padding as key_padding_mask [batch, key length].",
)
def contrib_bias(facts: Facts) -> Iterable[Found]:
    for op, index in BIASES.items():
        for node in facts.ops(f"com.microsoft.{op}"):
            bias = _input(node, index)
            if dim(bias, -2) == 1 and dim(_input(node, 0), 1) != 1:
                yield node, f"its attention_bias {_text(bias)} has size 1 for the query length"


@rule(
    "ort-rotary-batch",
    ORT,
    "error",
    "ONNX Runtime's RotaryEmbedding fails at run time where the caches are to be broadcast over the batch, as torch's "
    "exporter writes them at opset 23",
    "Give positions and caches [positions, size], or expand the caches to the batch, as `graphwright optimize` does.",
)
def ort_rotary_batch(facts: Facts) -> Iterable[Found]:
    yield from _rotary_batch(facts)


@rule(
    "trt-rotary-batch",
    TRT,
    "error",
    "TensorRT's RotaryEmbedding takes no caches that are to be broadcast over the batch, as torch's exporter writes "
    "them at opset 23",
    "Give positions and caches [positions, size], or expand the caches to the batch, as `graphwright optimize` does.",
)
def trt_rotary_batch(facts: Facts) -> Iterable[Found]:
    yield from _rotary_batch(facts)


def _rotary_batch(facts: Facts) -> Iterable[Found]:
    for node in facts.ops("RotaryEmbedding"):
        cosine, positions = _input(node, 1), _input(node, 3)
        if positions is None and rank(cosine) == 3 and dim(cosine, 0) == 1 != dim(_input(node, 0), 0):
            yield node, f"its caches {_text(cosine)} have size 1 for the batch"


@rule(
    "ort-attention-window",
    ORT,
    "error",
    "ONNX Runtime 1.31 does not know the windows that opset 25 gave Attention, and does not load the graph",
    "Make the window part of the mask, at opset 23.",
)
def ort_window(facts: Facts) -> Iterable[Found]:
    yield from _windows(facts)


@rule(
    "trt-attention-window",
    TRT,
    "error",
    "TensorRT's parser reads Attention without its window: the engine attends to every key, without a word",
    "Make the window part of the mask, at opset 23.",
)
def trt_window(facts: Facts) -> Iterable[Found]:
    yield from _windows(facts)


def _windows(facts: Facts) -> Iterable[Found]:
    for node in facts.ops("Attention"):
        sizes = [node.attributes.get_int(f"{side}_window_size", -1) for side in ("left", "right")]
        if max(sizes) >= 0:
            yield node, f"its window is {sizes[0]} to the left, {sizes[1]} to the right"


@rule(
    "trt-attention-cache",
    TRT,
    "error",
    "TensorRT's parser takes Attention with one output and without past keys and values",
    "Concatenate the cache in front of Attention, and give it out from there.",
)
def cache(facts: Facts) -> Iterable[Found]:
    for node in facts.ops("Attention"):
        if len(node.outputs) > 1 or _input(node, PAST) is not None:
            yield node, f"it has {len(node.outputs)} outputs" + ", and a cache" * (_input(node, PAST) is not None)


@rule(
    "trt-attention-softcap",
    TRT,
    "error",
    "TensorRT's parser takes no soft-cap",
    "Write it in primitives (Tanh between the products), as `graphwright optimize` does.",
)
def softcap(facts: Facts) -> Iterable[Found]:
    for node in facts.ops("Attention"):
        if cap := node.attributes.get_float("softcap", 0.0):
            yield node, f"it has softcap {cap:g}"


@rule(
    "trt-attention-softmax-precision",
    TRT,
    "error",
    "TensorRT's parser takes no softmax_precision; its fused kernels add up in float32 whatever the type",
    "Leave the attribute out, as `graphwright optimize` does.",
)
def softmax_precision(facts: Facts) -> Iterable[Found]:
    for node in facts.ops("Attention"):
        if "softmax_precision" in node.attributes:
            yield node, "it has softmax_precision"


@rule(
    "trt-attention-causal-mask",
    TRT,
    "error",
    "TensorRT's parser takes a mask or is_causal, not both",
    "Make the causal part of the mask, or decompose it.",
)
def causal_mask(facts: Facts) -> Iterable[Found]:
    for node in facts.ops("Attention"):
        if node.attributes.get_int("is_causal", 0) and _input(node, MASK) is not None:
            yield node, "it has is_causal and a mask"


@rule(
    "trt-attention-kernel",
    TRT,
    "warning",
    "TensorRT has fused attention kernels for float16 and bfloat16 and head sizes of 16 to 256 alone; others build "
    "where the attention is decomposable (graphwright's builder says so) and run unfused",
    "Lower it in fp16 or bf16; split or pad heads of other sizes.",
)
def fused_kernel(facts: Facts) -> Iterable[Found]:
    for node in facts.ops("Attention"):
        query = _input(node, 0)
        size, heads = dim(query, -1), node.attributes.get_int("q_num_heads", 0)
        if rank(query) == 3 and heads and isinstance(size, int):
            size //= heads
        if query is not None and query.dtype is not None and query.dtype not in HALF:
            yield node, f"it is {query.dtype.name.lower()}"
        elif isinstance(size, int) and size not in HEADS:
            yield node, f"its head size is {size}"


RULES = (
    mask_dims,
    mask_rank,
    contrib_bias,
    ort_rotary_batch,
    trt_rotary_batch,
    ort_window,
    trt_window,
    cache,
    softcap,
    softmax_precision,
    causal_mask,
    fused_kernel,
)
