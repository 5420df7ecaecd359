"""Quantized graphs on ONNX Runtime: what does not load, what stays float, what is slower than float."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
import onnx_ir as ir

from ..lift.values import constant, dims, is_constant, only_consumer, producer, rank
from .base import ORT, QUANTIZE, Facts, Found, rule
from .quantized import DQ, Q, argument, dequantized, feeds_q, numbers, quantizes_activation, read_by
from .quantized import stored as stored_type

DataType = ir.DataType
CPU, CUDA = ("ort-cpu",), ("ort-cuda",)
FLOAT8 = (DataType.FLOAT8E4M3FN, DataType.FLOAT8E4M3FNUZ, DataType.FLOAT8E5M2, DataType.FLOAT8E5M2FNUZ)
# ops that ONNX Runtime's CPU provider runs on integers only where a Q stands behind them
NEED_Q = ("Add", "Mul", "Concat", "Where", "Softmax", "Sigmoid", "LeakyRelu", "AveragePool", "GlobalAveragePool")
# ops that it runs in float in any case
FLOAT_ONLY = (
    *("Gelu", "Erf", "Tanh", "LayerNormalization", "RMSNormalization", "ReduceMean", "Sub", "Div", "Sqrt"),
    *("HardSigmoid", "Abs", "Neg", "Exp", "Log", "Pow", "Softplus", "Attention"),
)
# integer products, by op: inputs that hold the two factors
INTEGER = {"MatMulInteger": (0, 1), "QLinearMatMul": (0, 3), "ConvInteger": (0, 1), "QLinearConv": (0, 3)}
FEW_ROWS = 4  # up to so many rows a weight-only product is bound by reading the weights


@rule(
    "ort-zero-scale",
    ORT,
    "error",
    "A scale of zero makes every value 0 or NaN in ONNX Runtime, without an error",
    "Give a channel of zeros the scale 1.",
)
def zero_scale(facts: Facts) -> Iterable[Found]:
    for node in facts.ops(*QUANTIZE):
        if 0.0 in numbers(argument(node, 1)):
            yield node, "its scale holds a zero"


@rule(
    "ort-s8-output-dtype",
    CPU,
    "error",
    "On x86 ONNX Runtime turns int8 activations into uint8, but leaves output_dtype as it is: at opset 21 and later "
    "the graph does not load (output_dtype INT8 does not match y_zero_point type UINT8)",
    "Leave output_dtype out: the zero point tells the type. Best are uint8 activations.",
)
def output_dtype(facts: Facts) -> Iterable[Found]:
    if not facts.x86:
        return
    for node in facts.ops(Q):
        if _is_s8(node) and "output_dtype" in node.attributes and argument(node, 2) is not None and read_by(node, DQ):
            yield node, "it has output_dtype INT8 and a zero point"


@rule(
    "ort-s8-no-zero-point",
    CPU,
    "warning",
    "ONNX Runtime does not fuse a Q of type int8 without a zero point: the product behind it runs in float",
    "Give it a zero point of type int8, or quantize to uint8.",
)
def no_zero_point(facts: Facts) -> Iterable[Found]:
    for node in facts.ops(Q):
        if _is_s8(node) and argument(node, 2) is None and quantizes_activation(node):
            yield node, "it is of type int8 by output_dtype alone"


@rule(
    "ort-s8-matmul-add",
    CPU,
    "error",
    "Where shapes are static, ONNX Runtime makes one Gemm of MatMul and Add and puts a Q with output_dtype in front: "
    "on x86 int8 activations then do not load at opset 21 and later",
    "Quantize activations to uint8, leave the batch dynamic, or stamp opset 20.",
)
def s8_matmul_add(facts: Facts) -> Iterable[Found]:
    if not facts.x86 or facts.opset < 21:
        return
    for product, _ in _gemms(facts):
        source = producer(product.inputs[0], DQ)
        if source is not None and stored_type(source) == DataType.INT8 and (rank(product.inputs[0]) or 0) > 2:
            yield product, "its activation is int8 and its shape static"


@rule(
    "ort-matmul-add-float",
    CPU,
    "warning",
    "ONNX Runtime makes one Gemm of MatMul and Add where it can (rank 2, or static shapes); with a float bias and no Q "
    "behind it that Gemm stays float, and the quantization is lost",
    "Put Q and DQ behind the Add or between the two, leave the batch dynamic, or disable MatMulAddFusion.",
)
def matmul_add(facts: Facts) -> Iterable[Found]:
    for product, add in _gemms(facts):
        if len(dequantized(product)) == 2 and not feeds_q(add) and not _both_integer(add, product):
            yield product, "an Add with a float follows it, and no Q"


@rule(
    "ort-gemm-bias",
    CPU,
    "warning",
    "ONNX Runtime runs a quantized Gemm with a float bias on integers only where a Q stands behind it; else it stays "
    "float",
    "Quantize the bias to int32 with scale x_scale * w_scale, or put Q and DQ behind the Gemm.",
)
def gemm_bias(facts: Facts) -> Iterable[Found]:
    for node in facts.ops("Gemm"):
        bias = argument(node, 2)
        if bias is not None and len(dequantized(node)) == 2 and producer(bias, DQ) is None and not feeds_q(node):
            yield node, "its bias is float"


@rule(
    "ort-gemm-zero-point",
    CPU,
    "warning",
    "ONNX Runtime runs a quantized Gemm on integers only where the DQs of both factors have a zero point, be it 0; a "
    "MatMul needs none",
    "Give both DQs a zero point.",
)
def gemm_zero_point(facts: Facts) -> Iterable[Found]:
    joined = [product for product, add in _gemms(facts) if feeds_q(add)]
    for node in (*facts.ops("Gemm"), *joined):
        factors = [producer(value, DQ) for value in node.inputs[:2]]
        if all(factors) and any(argument(dq, 2) is None for dq in factors if dq is not None):
            yield node, "a DQ of its factors has no zero point"


@rule(
    "ort-no-integer-kernel",
    CPU,
    "warning",
    "ONNX Runtime has no integer kernel for the op on the CPU: it dequantizes, computes in float and quantizes again",
    "Leave Q and DQ around it out.",
)
def no_integer_kernel(facts: Facts) -> Iterable[Found]:
    for node in facts.ops(*FLOAT_ONLY):
        if dequantized(node) and feeds_q(node):
            yield node, f"{node.op_type} stands between DQ and Q"


@rule(
    "ort-no-output-q",
    CPU,
    "warning",
    "ONNX Runtime runs the op on integers only where a Q stands behind it: here its inputs are quantized for nothing",
    "Put Q and DQ behind it, or leave those in front out.",
)
def no_output_q(facts: Facts) -> Iterable[Found]:
    for node in facts.ops(*NEED_Q):
        data = node.inputs[1:] if node.op_type == "Where" else node.inputs
        found = [dq for dq in dequantized(node) if quantizes_activation(dq)]
        if len(found) == len(data) and not feeds_q(node):
            yield node, f"no Q stands behind {node.op_type}"


@rule(
    "ort-dq-table",
    CPU,
    "warning",
    "ONNX Runtime dequantizes the whole table before it gathers a few rows of it",
    "Gather the integers, and dequantize what was gathered.",
)
def dq_table(facts: Facts) -> Iterable[Found]:
    for node in facts.ops("Gather"):
        dq = producer(node.inputs[0], DQ)
        if dq is not None and is_constant(dq.inputs[0]):
            yield node, f"it reads a dequantized table {dims(dq.inputs[0])}"


@rule(
    "ort-s8s8",
    CPU,
    "warning",
    "Products of int8 with int8 have no fast kernel on x86: 30 to 45 times slower than uint8 with int8",
    "Quantize activations to uint8.",
)
def s8s8(facts: Facts) -> Iterable[Found]:
    if not facts.x86:
        return
    for op, factors in INTEGER.items():
        for node in facts.ops(op):
            types = {value.dtype for value in (argument(node, index) for index in factors) if value is not None}
            if types == {DataType.INT8}:
                yield node, f"{op} of int8 and int8"


@rule(
    "ort-weight-only",
    CPU,
    "warning",
    "Products with weight-only quantization unpack the weights at every call: slower than float32 on x86 where there "
    "are more than a few rows",
    "Keep it for decoding one token at a time; else quantize activations too, as int8-dynamic does.",
)
def weight_only(facts: Facts) -> Iterable[Found]:
    for node in facts.ops("MatMul", "com.microsoft.MatMulNBits"):
        dq = producer(argument(node, 1), DQ)
        unpacked = dq is not None and is_constant(dq.inputs[0]) and producer(node.inputs[0], DQ) is None
        rows = (dims(node.inputs[0]) or [None])[:-1]
        known = [size for size in rows if isinstance(size, int)]
        if (unpacked or node.domain) and (len(known) < len(rows) or math.prod(known) > FEW_ROWS):
            yield node, "its weights are quantized and its activation is not"


@rule(
    "ort-half-qdq",
    CPU,
    "warning",
    "ONNX Runtime's integer kernels take float32 alone: around Q and DQ of float16 the product stays float, with casts",
    "Quantize the float32 graph.",
)
def half_qdq(facts: Facts) -> Iterable[Found]:
    for node in facts.ops(Q):
        if argument(node, 0) is not None and node.inputs[0].dtype == DataType.FLOAT16:  # type: ignore[union-attr]
            yield node, "it quantizes float16"


@rule(
    "ort-bf16-scale",
    CPU,
    "error",
    "ONNX Runtime's CPU provider has no Q or DQ of bfloat16, and does not load the graph",
    "Quantize the float32 graph.",
)
def bf16_scale(facts: Facts) -> Iterable[Found]:
    for node in facts.ops(*QUANTIZE):
        scale = argument(node, 1)
        if scale is not None and scale.dtype == DataType.BFLOAT16:
            yield node, "its scale is bfloat16"


@rule(
    "ort-float4",
    CPU,
    "error",
    "ONNX Runtime's CPU provider has no Q or DQ of float4, and does not load the graph",
    "Ask for int8 on a CPU.",
)
def float4(facts: Facts) -> Iterable[Found]:
    for node in facts.ops(*QUANTIZE):
        if stored_type(node) == DataType.FLOAT4E2M1:
            yield node, "it is of type float4e2m1"


@rule(
    "ort-float8-matmul",
    CPU,
    "error",
    "ONNX Runtime 1.31 makes an integer product of a MatMul of two float8 DQs, which has no such type: the graph does "
    "not load",
    "Ask for int8 on a CPU.",
)
def float8(facts: Facts) -> Iterable[Found]:
    for node in facts.ops("MatMul"):
        kinds = [stored_type(dq) for dq in dequantized(node)]
        if len(kinds) == 2 and all(kind in FLOAT8 for kind in kinds):
            yield node, "both of its factors are float8"


@rule(
    "ort-cuda-qdq",
    CUDA,
    "warning",
    "ONNX Runtime has no fused integer product on CUDA: Q and DQ only add work to a float one",
    "Ask for fp16 or bf16 there, or for int8 with tensorrt.",
)
def cuda_qdq(facts: Facts) -> Iterable[Found]:
    for node in facts.ops("MatMul", "Gemm", "Conv"):
        kinds = {stored_type(dq) for dq in dequantized(node)}
        if len(dequantized(node)) >= 2 and kinds <= {DataType.INT8, DataType.UINT8}:
            yield node, f"{node.op_type} between DQ and Q"


@rule(
    "avx2-saturation",
    CPU,
    "warning",
    "Without VNNI, x86 adds pairs of uint8 times int8 up in 16 bits: weights beyond 64 can saturate, and results are "
    "wrong without an error",
    "Quantize weights to 7 bits (-64 to 64), or run with session.x64quantprecision=1.",
)
def saturation(facts: Facts) -> Iterable[Found]:
    if not any(device.name == "x86-avx2" for device in facts.devices):
        return
    for node in facts.ops("MatMulInteger", DQ):
        index = 1 if node.op_type == "MatMulInteger" else 0
        weight = constant(argument(node, index))
        if weight is not None and weight.dtype == np.int8 and weight.ndim > 1 and np.abs(weight.astype(int)).max() > 64:
            yield node, "its int8 weights go beyond 64"


def _is_s8(node: ir.Node) -> bool:
    return stored_type(node) == DataType.INT8


def _gemms(facts: Facts) -> Iterator[tuple[ir.Node, ir.Node]]:
    """(MatMul, Add) that ONNX Runtime's MatMulAddFusion joins."""
    for node in facts.ops("MatMul"):
        sizes, add = dims(node.inputs[0]), only_consumer(node.outputs[0], "Add")
        static = sizes is not None and (len(sizes) == 2 or all(isinstance(size, int) for size in sizes))
        if static and add is not None and rank(node.inputs[1]) == 2:
            yield node, add


def _both_integer(add: ir.Node, product: ir.Node) -> bool:
    """Whether the bias of the Gemm that the two become is int32 behind a DQ."""
    others = [value for value in add.inputs if value is not product.outputs[0]]
    return bool(others) and (dq := producer(others[0], DQ)) is not None and stored_type(dq) == DataType.INT32


RULES = (
    zero_scale,
    output_dtype,
    no_zero_point,
    s8_matmul_add,
    matmul_add,
    gemm_bias,
    gemm_zero_point,
    no_integer_kernel,
    no_output_q,
    dq_table,
    s8s8,
    weight_only,
    half_qdq,
    bf16_scale,
    float4,
    float8,
    cuda_qdq,
    saturation,
)
