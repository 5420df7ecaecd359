"""Quantized graphs on TensorRT: what its parser and builder refuse of Q and DQ."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from ..lift.values import rank
from .base import QUANTIZE, TRT, Facts, Found, rule
from .quantized import DQ, argument, numbers, quantizes_activation, stored

DataType = ir.DataType
# types that TensorRT stores quantized numbers in; uint8 with zero point 0 parses, and is its own rule's
TAKEN = (
    *(DataType.INT8, DataType.UINT8, DataType.INT4, DataType.FLOAT4E2M1),
    *(DataType.FLOAT8E4M3FN, DataType.FLOAT8E8M0),
)
FLOAT8 = (DataType.FLOAT8E4M3FN, DataType.FLOAT8E5M2)
HALF = (DataType.FLOAT16, DataType.BFLOAT16)


@rule(
    "trt-scale-positive",
    TRT,
    "error",
    "TensorRT refuses a scale of zero or less",
    "Give a channel of zeros the scale 1.",
)
def scale(facts: Facts) -> Iterable[Found]:
    for node in facts.ops(*QUANTIZE):
        if (least := min(numbers(argument(node, 1)), default=1.0)) <= 0:
            yield node, f"its scale goes down to {least:g}"


@rule(
    "trt-zero-point",
    TRT,
    "error",
    "TensorRT quantizes symmetrically: every zero point must be zero",
    "Quantize activations to int8 with zero point 0.",
)
def zero_point(facts: Facts) -> Iterable[Found]:
    for node in facts.ops(*QUANTIZE):
        if any(numbers(argument(node, 2))):
            yield node, "its zero point is not zero"


@rule(
    "trt-int32-bias",
    TRT,
    "error",
    "TensorRT has no DQ of int32",
    "Keep biases in float.",
)
def int32_bias(facts: Facts) -> Iterable[Found]:
    for node in facts.ops(DQ):
        if stored(node) == DataType.INT32:
            yield node, "it dequantizes int32"


@rule(
    "trt-quantized-type",
    TRT,
    "error",
    "TensorRT quantizes to int8, int4, float8 (e4m3) and float4 (e2m1) alone",
    "Quantize to int8, or weights to int4 in blocks.",
)
def quantized_type(facts: Facts) -> Iterable[Found]:
    for node in facts.ops(*QUANTIZE):
        kind = stored(node)
        if kind is not None and kind not in TAKEN and kind != DataType.INT32:
            yield node, f"it is of type {kind.name.lower()}"


@rule(
    "trt-scale-type",
    TRT,
    "warning",
    "TensorRT's header asks a scale in float16 or bfloat16 to be of the data's type; TensorRT-RTX 1.7 was seen to take "
    "another",
    "Give scales in float32, or in the data's type.",
)
def scale_type(facts: Facts) -> Iterable[Found]:
    for node in facts.ops("QuantizeLinear"):
        kind, data = argument(node, 1), argument(node, 0)
        if kind is not None and kind.dtype in HALF and data is not None and data.dtype not in (kind.dtype, None):
            yield node, f"its scale is {kind.dtype.name.lower()} and its data {str(data.dtype).lower()}"


@rule(
    "trt-activation-channels",
    TRT,
    "warning",
    "TensorRT supports one scale for each channel for weights alone; TensorRT-RTX 1.7 builds it for activations, "
    "unproved",
    "Give the activation one scale.",
)
def activation_channels(facts: Facts) -> Iterable[Found]:
    for node in facts.ops("QuantizeLinear"):
        channels = (rank(argument(node, 1)) or 0) == 1 and len(numbers(argument(node, 1))) != 1
        if channels and quantizes_activation(node):
            yield node, "its scale has one number for each channel"


@rule(
    "trt-block-axis",
    TRT,
    "error",
    "TensorRT takes blocks along the last dim or the one before it",
    "Quantize along another axis, or transpose the weight.",
)
def block_axis(facts: Facts) -> Iterable[Found]:
    for node in facts.ops(*QUANTIZE):
        size, axis = rank(argument(node, 0)), node.attributes.get_int("axis", 1)
        if node.attributes.get_int("block_size", 0) and size is not None and axis % size < size - 2:
            yield node, f"its blocks lie along axis {axis} of {size}"


@rule(
    "trt-scalar",
    TRT,
    "warning",
    "TensorRT's header asks the input of Q and DQ to be no scalar; TensorRT-RTX 1.7 was seen to take one",
    "Leave a single number in float.",
)
def scalar(facts: Facts) -> Iterable[Found]:
    for node in facts.ops(*QUANTIZE):
        if rank(argument(node, 0)) == 0:
            yield node, "its input is a single number"


@rule(
    "trt-int8-and-fp8",
    TRT,
    "warning",
    "TensorRT's guides ask for int8 or float8 in one network, not both; TensorRT-RTX 1.7 builds both, unproved",
    "Quantize all of it in one of the two.",
)
def mixed(facts: Facts) -> Iterable[Found]:
    kinds = {stored(node): node for node in facts.ops("QuantizeLinear")}
    if DataType.INT8 in kinds and not set(FLOAT8).isdisjoint(kinds):
        yield kinds[DataType.INT8], "it is int8 in a graph that holds float8 too"


@rule(
    "trt-uint8",
    TRT,
    "warning",
    "TensorRT's header says that uint8 cannot stand for quantized numbers; TensorRT-RTX 1.7 builds it, unproved",
    "Quantize to int8.",
)
def uint8(facts: Facts) -> Iterable[Found]:
    for node in facts.ops(*QUANTIZE):
        if stored(node) == DataType.UINT8 and not any(numbers(argument(node, 2))):
            yield node, "it is of type uint8"


RULES = (
    uint8,
    scale,
    zero_point,
    int32_bias,
    quantized_type,
    scale_type,
    activation_channels,
    block_axis,
    scalar,
    mixed,
)
