"""Attention weights, read forwards: from softmax to the product with V.

What may stand there: casts between float types, a NaN guard, zeros for what the mask forbids anyway, idle Dropout,
Transposes and Reshapes that keep queries and keys apart, and gates: factors that are the same for all keys, which go to
the result.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from ..base import MisfitError, UnsayableError
from .frames import Frame, Group
from .masks import uniform
from .scores import CUSTOM, Factor, is_binary, is_float, is_idle_dropout, reshaped, scaled, transposed
from .values import consumers, dims, is_constant, producer, rank, scalar

JUDGING = frozenset(
    {"Cast", "Equal", "IsInf", "IsNaN", "Not", "ReduceMin", "ReduceMax", "ReduceSum", "ReduceProd", "Greater", "Less"}
)


@dataclass(frozen=True)
class Weights:
    """The product with V, and what stood between softmax and it."""

    end: ir.Node
    value: ir.Value
    flipped: bool  # V^T W^T instead of W V
    frame: Frame
    scale: float
    gates: tuple[Factor, ...]
    flags: tuple[ir.Value, ...]  # masks that weights were zeroed by
    spelling: tuple[str, ...]
    nodes: tuple[ir.Node, ...]


class WeightReader:
    """Reads the weights of one softmax, whose scores lie in `frame`; softmax is over the axis of `keys`."""

    def __init__(self, softmax: ir.Node, frame: Frame, keys: Group) -> None:
        self.weights = softmax.outputs[0]
        self.frame, self.keys = frame, keys
        self.scale = 1.0
        self.gates: list[Factor] = []
        self.flags: list[ir.Value] = []
        self.spelling: list[str] = []
        self.nodes: list[ir.Node] = [softmax]

    def read(self) -> Weights:
        """Raises MisfitError for the first thing that may not stand there."""
        while True:
            if (guard := _nan_guard(self.weights)) is not None:
                self._pass(*guard, "NaN guard")
                continue
            node = _reader(self.weights)
            if node.op_type == "MatMul":
                return self._end(node)
            self._step(node)

    def _pass(self, *nodes: ir.Node | str) -> None:
        self.nodes += [node for node in nodes if isinstance(node, ir.Node)]
        self.spelling += [text for text in nodes if isinstance(text, str)]
        self.weights = self.nodes[-1].outputs[0]

    def _step(self, node: ir.Node) -> None:
        if node.op_type in ("Mul", "Div"):
            self._gate(node)
        elif node.op_type == "Where" and self._is_zeroed(node):
            self.flags += [value for value in node.inputs[:1] if value is not None]
            self._pass(*_judges(node.inputs[0]), node, "zeroed weights")
        elif node.op_type == "Transpose":
            self.frame = transposed(self.frame, node)
            self._pass(node)
        elif node.op_type in ("Reshape", "Unsqueeze", "Squeeze"):
            self.frame = reshaped(self.frame, node)
            self._pass(node)
        elif _is_same(node):
            self._pass(node)
        else:
            raise _between(node)

    def _gate(self, node: ir.Node) -> None:
        step = scaled(node)
        other = next((value for value in node.inputs if value is not self.weights), None)
        if step is not None:
            self.scale *= step[1]
            self._pass(node, "scaled weights")
        elif other is None or (node.op_type == "Div" and node.inputs[0] is not self.weights):
            raise _between(node)
        elif same_for(self.keys, other, self.frame):
            self.gates.append(Factor(other, self.frame, node.op_type == "Div"))
            self._pass(node, "gate")
        elif node.op_type == "Mul" and is_binary(other):
            self.flags.append(other)
            self._pass(node, "zeroed weights")  # for what the mask forbids; the proof tells if it is anything else
        else:
            raise _between(node)

    def _is_zeroed(self, node: ir.Node) -> bool:
        """Where(forbidden, 0, weights), Where(allowed, weights, 0); the proof tells if the mask is another one."""
        return any(uniform(value) == 0 for value in node.inputs[1:]) and self.weights in node.inputs[1:]

    def _end(self, node: ir.Node) -> Weights:
        index = 0 if node.inputs[0] is self.weights else 1
        other = node.inputs[1 - index]
        assert other is not None
        if is_constant(other) and rank(other) == 2:
            raise UnsayableError("a linear layer stands between softmax and the product with V", CUSTOM)
        queries: Group = "rows" if self.keys == "columns" else "columns"
        last = [axis.group for axis in self.frame.axes[-2:]]
        wanted: list[Group] = [queries, self.keys] if index == 0 else [self.keys, queries]
        lead = self.frame.where("lead")
        if last != wanted or list(lead) != list(range(len(self.frame.axes) - 2)):
            raise MisfitError(
                "the product behind softmax is not over the keys, or batch and heads are transposed there"
            )
        return Weights(
            node,
            other,
            index == 1,
            self.frame,
            self.scale,
            tuple(self.gates),
            tuple(self.flags),
            tuple(self.spelling),
            (*self.nodes, node),
        )


def _between(node: ir.Node) -> MisfitError:
    name = "SinkAttention" if node.op_type == "Slice" else CUSTOM
    return UnsayableError(f"{node.op_type} stands between softmax and the product with V", name)


def _judges(condition: ir.Value | None) -> list[ir.Node]:
    """What finds out that a row has no allowed key: all(scores == -inf), any(isnan(weights)), and the like."""
    found: list[ir.Node] = []
    node = producer(condition)
    while node is not None and node.op_type in JUDGING:
        found.append(node)
        node = producer(node.inputs[0])
    return found


def same_for(keys: Group, value: ir.Value, frame: Frame) -> bool:
    """Whether `value`, broadcast to a tensor in `frame`, is the same for all keys."""
    own = dims(value)
    if own is None or len(own) > len(frame.axes):
        return False
    own = [*[1] * (len(frame.axes) - len(own)), *own]
    return all(own[position] == 1 for position in frame.where(keys))


def _reader(weights: ir.Value) -> ir.Node:
    # a Shape is how exporters spell the operand of a Reshape: it reads no numbers
    readers = [node for node in consumers(weights) if node.op_type != "Shape"]
    if len(readers) > 1 and all(node.op_type == "MatMul" for node in readers):
        readers = readers[:1]  # the same weights for several V: an attention each
    if len(readers) != 1 or weights.is_graph_output():
        raise UnsayableError("the attention weights are read more than once, or are an output of the graph", CUSTOM)
    return readers[0]


def _is_same(node: ir.Node) -> bool:
    """Whether `node` gives the weights as they are, but for their float type."""
    if node.op_type == "Dropout":
        return is_idle_dropout(node)
    return node.op_type == "Identity" or (node.op_type == "Cast" and is_float(node.outputs[0].dtype))


def _nan_guard(weights: ir.Value) -> tuple[ir.Node, ir.Node] | None:
    """IsNaN and Where of Where(IsNaN(w), 0, w), which exporters write for rows with no allowed key."""
    readers = consumers(weights)
    checks = [node for node in readers if node.op_type == "IsNaN"]
    choices = [node for node in readers if node.op_type == "Where"]
    if len(readers) != 2 or len(checks) != 1 or len(choices) != 1 or weights.is_graph_output():
        return None
    condition, zero, kept = choices[0].inputs
    fits = condition is checks[0].outputs[0] and scalar(zero) == 0 and kept is weights
    return (checks[0], choices[0]) if fits else None
