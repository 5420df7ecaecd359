"""What a lint rule is, what it sees of a graph, and what it finds."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import onnx_ir as ir

from ...devices import Device
from ...runtimes.base import Ranges
from ...spec import Job
from ..sites import name_of

Severity = Literal["error", "warning"]

ORT = ("ort-cpu", "ort-cuda")
TRT = ("tensorrt", "tensorrt-rtx")
ALL: tuple[str, ...] = ()  # every target

# ONNX's own quantization ops
QUANTIZE = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True)
class Facts:
    """A graph, with the job that it is for. Types are known as far as ONNX's inference tells."""

    model: ir.Model
    job: Job
    devices: tuple[Device, ...]  # none: this machine
    as_is: bool = False  # the file itself, not what graphwright would build of it
    ranges: Ranges = field(default_factory=dict)
    ops_of_target: Mapping[str, frozenset[str] | None] = field(default_factory=dict)  # domain -> ops; None: all

    @property
    def opset(self) -> int:
        """The opset of the standard ops."""
        return self.model.opset_imports.get("", 0)

    @property
    def x86(self) -> bool:
        """Whether a CPU that it is for is x86."""
        kinds = {device.kind for device in self.devices}
        return "x86-64" in kinds or (not kinds and platform.machine() in ("x86_64", "AMD64"))

    @cached_property
    def nodes(self) -> dict[str, list[ir.Node]]:
        """The nodes of the graph and of the bodies in it, by op; the name has the domain where that is not ONNX's."""
        found: dict[str, list[ir.Node]] = {}
        for node in self.model.graph.all_nodes():
            found.setdefault(name_of(node), []).append(node)
        return found

    def ops(self, *names: str) -> Iterator[ir.Node]:
        """The nodes of these ops, as in `MatMul` or `com.microsoft.MultiHeadAttention`."""
        for name in names:
            yield from self.nodes.get(name, ())

    @cached_property
    def constants(self) -> dict[str, ir.Value]:
        """The initializers of the graph and of the bodies in it, by name."""
        return {str(name): value for graph in self.model.graphs() for name, value in graph.initializers.items()}


# What a check yields: the node (None: the graph itself) and what of it is wrong
Found = tuple[ir.Node | None, str]
Check = Callable[[Facts], Iterable[Found]]


@dataclass(frozen=True)
class Rule:
    """One fact of the runtimes, as a check of time linear in the graph's nodes."""

    id: str
    targets: tuple[str, ...]  # none: all
    severity: Severity  # error: it is refused, or wrong there; warning: it is slow there, or not proved to be taken
    why: str  # the fact: what the runtime does with it
    way_out: str
    check: Check

    def applies(self, target: str) -> bool:
        """Whether it says anything about `target`."""
        return not self.targets or target in self.targets


def rule(id: str, targets: tuple[str, ...], severity: Severity, why: str, way_out: str) -> Callable[[Check], Rule]:  # noqa: A002
    """The function below it is the check of a rule."""
    return lambda check: Rule(id, targets, severity, why, way_out, check)


@dataclass(frozen=True)
class Finding:
    """One place where a rule says something."""

    rule: str
    severity: Severity
    path: str  # module path of the node; its name where the source has no paths; empty: the graph itself
    node: str
    message: str
    way_out: str
