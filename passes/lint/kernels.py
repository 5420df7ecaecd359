"""Float ops on ONNX Runtime's CPU provider: what has no kernel, and what is made of many."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from ..lift.values import only_consumer, producer, rank, scalar
from ..sites import name_of
from .base import ORT, Facts, Found, rule

DataType = ir.DataType
CPU = ("ort-cpu",)
# The ops that ONNX Runtime 1.31 ran in bfloat16 on the CPU, of 55 that were tried: norms, and what only moves data.
_BF16 = """
Cast CastLike Clip Concat Constant ConstantOfShape Expand Flatten Gather Identity If LayerNormalization Loop Reshape
Scan ScatterND Shape Size Slice Split Squeeze Transpose Unsqueeze com.microsoft.SkipLayerNormalization
"""
BF16 = frozenset(_BF16.split())
# products, and elementwise ops around which casts to float32 are put; Attention and norms have kernels of their own
F16 = ("MatMul", "Gemm", "Conv", "Add", "Mul", "Sub", "Div", "Softmax", "Tanh", "Sigmoid", "Erf", "Gelu")
# ops of ONNX Runtime's own domain that only CUDA has
CUDA_ONLY = (
    *("PackedAttention", "PackedMultiHeadAttention", "RemovePadding", "RestorePadding"),
    *("RelativePositionBias", "GatedRelativePositionBias"),
)


@rule(
    "ort-cpu-bf16",
    CPU,
    "error",
    "ONNX Runtime's CPU provider has bfloat16 for norms and for moving data alone: others are not implemented, and the "
    "graph does not load",
    "Ask for fp32 on a CPU, or for openvino with bf16 where the CPU has it.",
)
def bf16(facts: Facts) -> Iterable[Found]:
    for name, nodes in facts.nodes.items():
        if name in BF16 or nodes[0].domain not in ("", "com.microsoft") or name.endswith("QuantizeLinear"):
            continue
        for node in nodes:
            if any(value is not None and value.dtype == DataType.BFLOAT16 for value in node.inputs):
                yield node, f"{name} in bfloat16"


@rule(
    "ort-cpu-f16",
    CPU,
    "warning",
    "ONNX Runtime's CPU provider computes in float32: it puts casts around each such op, so float16 is slower",
    "Ask for fp32 on a CPU.",
)
def f16(facts: Facts) -> Iterable[Found]:
    for node in facts.ops(*F16, "com.microsoft.MultiHeadAttention"):
        if any(value is not None and value.dtype == DataType.FLOAT16 for value in node.inputs):
            yield node, f"{name_of(node)} in float16"


@rule(
    "ort-cpu-expanded",
    CPU,
    "warning",
    "ONNX Runtime's CPU provider has no kernel for the op: it runs the op's definition, many small ops",
    "For GroupNormalization use InstanceNormalization on a reshaped input; write Swish as Mul and Sigmoid.",
)
def expanded(facts: Facts) -> Iterable[Found]:
    for node in facts.ops("GroupNormalization", "Swish"):
        yield node, f"{node.op_type} at opset {facts.opset}"


@rule(
    "ort-cpu-contrib",
    CPU,
    "error",
    "ONNX Runtime has the op for CUDA alone: on the CPU the graph does not load",
    "Optimize the original export for ort-cpu.",
)
def contrib(facts: Facts) -> Iterable[Found]:
    for node in facts.ops(*(f"com.microsoft.{op}" for op in CUDA_ONLY)):
        yield node, f"the op {node.op_type}"


@rule(
    "ort-rms-scale-type",
    ORT,
    "error",
    "ONNX allows RMSNormalization a scale of another type, ONNX Runtime has no kernel for it, and its definition "
    "multiplies the two: the graph does not load",
    "Cast the scale to the input's type.",
)
def rms_scale(facts: Facts) -> Iterable[Found]:
    for node in facts.ops("RMSNormalization"):
        kinds = [value.dtype for value in node.inputs[:2] if value is not None and value.dtype is not None]
        if len(set(kinds)) > 1:
            yield node, f"it is {kinds[0].name.lower()}, and its scale {kinds[1].name.lower()}"


@rule(
    "ort-erf-gelu",
    ORT,
    "warning",
    "ONNX Runtime fuses (x * (1 + erf)) * 0.5 and (0.5 * x) * (1 + erf), but not x * (0.5 * (1 + erf)), which torch's "
    "exporter writes below opset 20: five ops run one by one",
    "Lift the graph: `graphwright optimize` makes one Gelu of it. Or export at opset 20 or later.",
)
def erf_gelu(facts: Facts) -> Iterable[Found]:
    for erf in facts.ops("Erf"):
        plus = only_consumer(erf.outputs[0], "Add")
        half = only_consumer(plus.outputs[0], "Mul") if plus is not None else None
        last = only_consumer(half.outputs[0], "Mul") if half is not None else None
        if half is not None and last is not None and 0.5 in [scalar(value) for value in half.inputs]:
            yield erf, "a gelu is written as x * (0.5 * (1 + erf))"


@rule(
    "ort-attention-in-parts",
    ORT,
    "warning",
    "ONNX Runtime does not fuse an attention that is written as MatMul, Softmax and MatMul: the scores go through "
    "memory at every step",
    "Lift the graph: `graphwright optimize` makes one Attention of it. Or export at opset 23.",
)
def attention_in_parts(facts: Facts) -> Iterable[Found]:
    for softmax in facts.ops("Softmax"):
        after = only_consumer(softmax.outputs[0], "MatMul", "Where")
        before = _before(softmax.inputs[0])
        if after is not None and before is not None and (rank(softmax.outputs[0]) or 0) > 2:
            yield softmax, "a Softmax stands between two MatMuls"


def _before(value: ir.Value | None) -> ir.Node | None:
    """The MatMul behind a few elementwise steps: a scale, a mask."""
    for _ in range(4):
        node = producer(value, "MatMul", "Add", "Mul", "Div", "Where", "Cast")
        if node is None or node.op_type == "MatMul":
            return node
        inputs = node.inputs[1:] if node.op_type == "Where" else node.inputs
        value = next((each for each in inputs if producer(each) is not None), None)
    return None


RULES = (bf16, f16, expanded, contrib, rms_scale, erf_gelu, attention_in_parts)
