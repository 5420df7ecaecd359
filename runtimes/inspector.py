"""What TensorRT made of a graph: the precision that each product got, and whether an attention is one fused kernel.

Two witnesses speak the same language here. The engine inspector's JSON (`get_engine_information` at detailed verbosity)
tells of the engine itself, but needs a device. A parsed network is strongly typed, so its layers' types are those that
the engine must keep; it needs none. Both name ONNX nodes in their metadata: `[ONNX Layer: a]`, joined by control
characters where layers were fused.

TensorRT 10 writes a tensor's layout and type into one field, "Format/Datatype"; 11 into two. With dynamic shapes the
type may be absent ("N/A due to dynamic shapes"); a kernel's name says it then.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import BuildError

# as TensorRT spells types of tensors, and as its kernels' names do; the order is that of looking
_TYPES = {
    "bf16": r"bf16|bfloat16",
    "fp16": r"fp16|half|float16",
    "fp32": r"fp32|float|float32",
    "int8": r"int8",
    "fp8": r"fp8|float8\w*",
    "int4": r"int4",
    "nvfp4": r"fp4|float4\w*",
}
_KERNELS = {
    "int8": r"i8i8|i8i32|i8f32|imma",
    "fp8": r"e4m3|e5m2",
    "bf16": r"bf16",
    "fp16": r"f16f16|h16816|h1688|hmma|fp16",
    "tf32": r"tf32",
    "fp32": r"f32f32|sgemm",
}
_TENSOR_FIELDS = ("Format/Datatype", "Datatype", "DataType")
_MULTIPLIES = re.compile(r"gemm|gemv|conv|matrix|matmul|mha|fusion|einsum", re.IGNORECASE)
_FUSED = re.compile(r"mha|flash_?att", re.IGNORECASE)
_ONNX = re.compile(r"\[ONNX Layer: ([^\]]*)\]")


@dataclass(frozen=True)
class Layer:
    """One layer of an engine or network."""

    name: str
    kind: str
    tactic: str = ""
    nodes: tuple[str, ...] = ()  # of the ONNX graph
    precision: str = ""  # in which it computes; empty where that is not told

    @property
    def multiplies(self) -> bool:
        """Whether products are made in it, not data moved."""
        return bool(_MULTIPLIES.search(f"{self.kind} {self.name} {self.tactic}"))


@dataclass(frozen=True)
class Findings:
    """What was found of the products and attentions that were asked for."""

    precisions: dict[str, int]
    shortfall: list[str]
    unknown: list[str] = field(default_factory=list)  # nodes that no layer names


def nodes_of(metadata: str) -> tuple[str, ...]:
    """The ONNX nodes that a layer's metadata names."""
    return tuple(_ONNX.findall(metadata))


def read(document: str) -> list[Layer]:
    """The layers of an engine inspector's JSON. Raises BuildError where it is none, or lacks their details."""
    try:
        layers = json.loads(document)["Layers"]
        if any(isinstance(layer, str) for layer in layers):
            raise BuildError("The engine tells no more than its layers' names: build it with profiling=detailed.")
        return [_layer(layer) for layer in layers]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BuildError(
            f"The engine inspector's answer has no layers as TensorRT 10 and 11 write them: {error}"
        ) from (error)


def _layer(said: Mapping[str, Any]) -> Layer:
    tactic = str(said.get("TacticName", ""))
    typed = [_named(_TYPES, _type_of(tensor), whole=True) for tensor in said.get("Inputs", [])]
    found = next(filter(None, typed), "")
    kernel = _named(_KERNELS, tactic)
    # a tensor's type says float32 where the kernel rounds it to 10 bits
    precision = kernel if not found or (found, kernel) == ("fp32", "tf32") else found
    return Layer(
        str(said["Name"]), str(said.get("LayerType", "")), tactic, nodes_of(said.get("Metadata", "")), precision
    )


def _type_of(tensor: Mapping[str, Any]) -> str:
    return next((str(tensor[name]) for name in _TENSOR_FIELDS if name in tensor), "")


def _named(words: Mapping[str, str], text: str, *, whole: bool = False) -> str:
    for precision, pattern in words.items():
        if re.search(rf"\b(?:{pattern})\b" if whole else pattern, text, re.IGNORECASE):
            return precision
    return ""


def judge(
    layers: Iterable[Layer],
    products: Mapping[str, str],
    fused: Iterable[str] = (),
    call: Callable[[str], str] = str,
    *,
    tf32: bool = False,
) -> Findings:
    """What the `layers` are against what was asked: of each of the `products` a precision, of `fused` ones one kernel.

    `call`: how to call a node in messages. `tf32`: whether products in float32 may be rounded to it.
    """
    running: dict[str, list[Layer]] = {name: [] for name in products}
    for layer in layers:
        for node in dict.fromkeys(layer.nodes):
            if node in running:
                running[node].append(layer)
    counts, shortfall, unknown = Counter[str](), list[str](), list[str]()
    for node, asked in products.items():
        own = [layer for layer in running[node] if layer.multiplies] or running[node]
        got = next((layer.precision for layer in own if layer.precision), "")
        if not got:
            unknown.append(node)
            continue
        counts[got] += 1
        if got != asked and not (tf32 and (asked, got) == ("fp32", "tf32")):
            shortfall.append(f"{call(node)}: {asked} was asked, {got} is what the engine computes in")
    for node in fused:
        own = running.get(node, [])
        if own and not any(_FUSED.search(f"{layer.name} {layer.tactic}") for layer in own) and len(own) > 1:
            shortfall.append(f"{call(node)}: the attention is {len(own)} kernels, not one fused kernel")
    return Findings(dict(counts.most_common()), shortfall, unknown)
