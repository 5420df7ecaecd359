"""What a target or a device takes at all: ops, opset, types, sizes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx_ir as ir

from ...spec import Precision
from ..schemas import schema_of
from ..sites import name_of
from .base import ALL, ORT, QUANTIZE, TRT, Facts, Found, rule

ORT_OPSET, ORT_IR = 26, 13  # of ONNX Runtime 1.31: it refuses newer ones at load
TRT_OPSET, TRT_IR = 25, 13  # of TensorRT 11's documentation, whose parser is built on ONNX 1.20
PROTOBUF = 2**31  # bytes of a message
CONTRIB = "com.microsoft"
# contrib ops that the parser of TensorRT-RTX 1.7 takes in every form that was tried
RTX_CONTRIB = frozenset({"Gelu", "MatMulNBits"})
# products and what an engine for compute capability 7.5 must compute in half
GEMMS = ("MatMul", "Gemm", "Einsum")
DataType = ir.DataType
TYPES: dict[DataType, Precision] = {
    DataType.BFLOAT16: "bf16",
    DataType.INT8: "int8",
    DataType.INT4: "int4",
    DataType.UINT4: "int4",
    DataType.FLOAT8E4M3FN: "fp8",
    DataType.FLOAT8E5M2: "fp8",
    DataType.FLOAT4E2M1: "nvfp4",
}


@rule(
    "ort-opset",
    ORT,
    "error",
    f"ONNX Runtime 1.31 loads opsets up to {ORT_OPSET}",
    "Stamp the graph with opset 23: `graphwright optimize` does where no node needs more.",
)
def ort_opset(facts: Facts) -> Iterable[Found]:
    if facts.opset > ORT_OPSET:
        yield None, f"the graph is of opset {facts.opset}"


@rule(
    "ort-ir-version",
    ORT,
    "error",
    f"ONNX Runtime 1.31 loads IR versions up to {ORT_IR}",
    "Set model.ir_version = 10: opset 23 needs nothing newer.",
)
def ort_ir(facts: Facts) -> Iterable[Found]:
    if (facts.model.ir_version or 0) > ORT_IR:
        yield None, f"the file is of IR version {facts.model.ir_version}"


@rule(
    "trt-opset",
    TRT,
    "warning",
    "TensorRT's parser is documented up to this opset; a newer form of an op may be refused or misread",
    "Lower the graph for the device, as in `--target tensorrt@jetson-orin`, or export it at an older opset.",
)
def trt_opset(facts: Facts) -> Iterable[Found]:
    ceiling = min([device.opset or TRT_OPSET for device in facts.devices] or [TRT_OPSET])
    if facts.opset > ceiling:
        yield None, f"the graph is of opset {facts.opset}, the parser takes {ceiling}"


@rule(
    "trt-ir-version",
    TRT,
    "warning",
    "TensorRT's parser is built on an ONNX of an older IR version",
    "Set model.ir_version = 10: opset 23 needs nothing newer.",
)
def trt_ir(facts: Facts) -> Iterable[Found]:
    ceiling = min([device.ir_version or TRT_IR for device in facts.devices] or [TRT_IR])
    if (facts.model.ir_version or 0) > ceiling:
        yield None, f"the file is of IR version {facts.model.ir_version}, the parser knows {ceiling}"


@rule(
    "trt-operator",
    TRT,
    "error",
    "TensorRT's parser has no such standard op (integer products and dynamic quantization among them: it takes Q/DQ)",
    "Write it in other ops, or quantize with QuantizeLinear and DequantizeLinear.",
)
def trt_operator(facts: Facts) -> Iterable[Found]:
    known = facts.ops_of_target.get("")
    if known is not None and facts.opset < 21:
        known |= {"GroupNormalization"}  # until then it had scales of groups, which TensorRT 10.3 knows
    for name, nodes in facts.nodes.items():
        if known is not None and nodes[0].domain == "" and name not in known:
            for node in nodes:
                yield node, f"the op {name}"


@rule(
    "trt-contrib-op",
    TRT,
    "error",
    "Ops of ONNX Runtime's own domain are no standard: TensorRT's parser looks for a plugin of that name, and on some "
    "(MultiHeadAttention) it crashes; of Gelu and MatMulNBits alone TensorRT-RTX was seen to build every form",
    "Optimize the original export for this target, not a graph that was fused for ONNX Runtime.",
)
def trt_contrib(facts: Facts) -> Iterable[Found]:
    taken = RTX_CONTRIB if facts.job.target == "tensorrt-rtx" else frozenset()
    for nodes in facts.nodes.values():
        if nodes[0].domain == CONTRIB and nodes[0].op_type not in taken:
            for node in nodes:
                yield node, f"the op {name_of(node)}"


@rule(
    "trt-scatter",
    TRT,
    "error",
    "TensorRT's parser takes no scatter that adds or multiplies to what is there",
    "Sum what falls on each place instead, as a product with a matrix of ones.",
)
def scatter(facts: Facts) -> Iterable[Found]:
    for node in facts.ops("ScatterElements", "ScatterND"):
        if (reduction := node.attributes.get_string("reduction", "none")) != "none":
            yield node, f"{node.op_type} with reduction {reduction}"


@rule(
    "trt-unnamed-dim",
    TRT,
    "error",
    "An engine is built for a range of each dynamic dim, and ranges are given by name",
    "Name the dim in the export (ModelSpec.dynamic).",
)
def unnamed_dims(facts: Facts) -> Iterable[Found]:
    for name, axis, dim in _dynamic(facts):
        if dim is None:
            yield None, f"axis {axis} of input {name!r} is dynamic and has no name"


@rule(
    "trt-no-range",
    TRT,
    "warning",
    "An engine is built for a range of each dynamic dim, and refuses sizes outside; where none is known, graphwright "
    "takes sizes from 1 on that may not be yours, and other builders ask for them",
    "Give the dim its range: ModelSpec.ranges, as (min, opt, max).",
)
def dynamic_dims(facts: Facts) -> Iterable[Found]:
    for dim in dict.fromkeys(dim for _, _, dim in _dynamic(facts)):
        if dim is not None and dim not in facts.ranges:
            yield None, f"the dim {dim!r} has no range"


def _dynamic(facts: Facts) -> Iterator[tuple[str | None, int, str | None]]:
    """(input, axis, name or None) of each dynamic dim."""
    for value in facts.model.graph.inputs:
        for axis, size in enumerate(value.shape or ()):
            if not isinstance(size, int):
                yield value.name, axis, size.value


@rule(
    "mixed-types",
    ALL,
    "error",
    "ONNX gives these inputs one type; ONNX Runtime and the strongly typed TensorRT refuse the graph",
    "Cast one of them; weights once, in the file.",
)
def mixed_types(facts: Facts) -> Iterable[Found]:
    for nodes in facts.nodes.values():
        schema = schema_of(nodes[0].op_type, facts.opset) if nodes[0].domain == "" else None
        if schema is None:
            continue
        names = [parameter.type_str for parameter in schema.inputs]
        last = schema.inputs[-1] if schema.inputs else None
        many = last is not None and last.option == last.option.Variadic and last.is_homogeneous
        for node in nodes:
            seen: dict[str, DataType] = {}
            for index, value in enumerate(node.inputs):
                if value is None or value.dtype is None or (index >= len(names) and not many):
                    continue
                name = names[min(index, len(names) - 1)]
                if seen.setdefault(name, value.dtype) != value.dtype:
                    yield node, f"{node.op_type} of {seen[name].name.lower()} and {value.dtype.name.lower()}"
                    break


@rule(
    "device-type",
    ALL,
    "error",
    "The device has no products in a type that the graph holds",
    "Lower the graph in a precision that the device has: `graphwright targets` lists them.",
)
def device_type(facts: Facts) -> Iterable[Found]:
    found: dict[Precision, ir.Node] = {}
    for nodes in facts.nodes.values():
        for node in nodes:
            for value in node.outputs if node.op_type == "QuantizeLinear" else node.inputs:
                precision = TYPES.get(value.dtype) if value is not None and value.dtype is not None else None
                # int8 that is no quantization is data: an index, a mask
                if precision and (precision != "int8" or node.op_type in QUANTIZE):
                    found.setdefault(precision, node)
    for device in facts.devices:
        for precision, node in found.items():
            if reason := device.lacks(precision):
                yield node, f"{precision} on {device.name}: {reason}"


@rule(
    "rtx-turing-fp32",
    ("tensorrt-rtx",),
    "error",
    "TensorRT-RTX has no float32 products for compute capability 7.5: the build fails",
    "Lower it in fp16 for this device, or use tensorrt.",
)
def turing(facts: Facts) -> Iterable[Found]:
    if not any(device.sm == 75 for device in facts.devices):
        return
    for node in facts.ops(*GEMMS):
        if node.outputs[0].dtype == DataType.FLOAT:
            yield node, f"{node.op_type} in float32"


@rule(
    "file-too-large",
    ALL,
    "error",
    "An ONNX file is one protobuf message, which ends at 2 GiB",
    "Save it with its weights beside it: onnx_ir.save(model, path, external_data=...), as graphwright does.",
)
def too_large(facts: Facts) -> Iterable[Found]:
    if not facts.as_is:  # graphwright writes large weights beside the graph
        return
    tensors = [value.const_value for value in facts.constants.values()]
    inside = sum(t.nbytes for t in tensors if t is not None and not isinstance(t, ir.ExternalTensor | ir.LazyTensor))
    if inside >= PROTOBUF:
        yield None, f"its weights take {inside / 2**30:.1f} GiB in the graph itself"


RULES = (
    ort_opset,
    ort_ir,
    trt_opset,
    trt_ir,
    trt_operator,
    trt_contrib,
    scatter,
    unnamed_dims,
    dynamic_dims,
    mixed_types,
    device_type,
    turing,
    too_large,
)
