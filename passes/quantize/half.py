"""float16 or bfloat16, strongly typed: every cast is in the graph; inputs and outputs keep their types.

islands.py says which ops compute in half. Here their inputs are cast: a constant is converted, a computed value gets
one Cast that all readers share, and a number that was cast from integers is cast from these at once. The mask of an
Attention is clipped into the range of half: float32's lowest number must not become -inf, which a row of padding would
turn into NaN. Bodies of If, Loop and Scan stay float32; what they read from outside is cast at their border.

Legal cases: 1. the types of all values are known; 2. ops whose ONNX schema takes and gives the half type, others stay
float32.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, ShapeInferencePass

from ...errors import BuildError
from ..base import GraphPass
from ..lift.values import add_constant, constant, insert
from ..sites import path_of
from .intervals import bound_values
from .islands import BODIES, PRODUCTS, Extents, Plan, Planner, is_float, is_mask
from .ranges import Ranges, Sampled
from .rounding import HalfType, Weights

TOLD = 5  # islands that are named; the others are counted


@dataclass
class _State:
    """What is known of one graph on the way through it."""

    graph: ir.Graph
    floats: set[ir.Value]  # float32 before this pass
    weights: Weights
    casts: dict[tuple[ir.Value, ir.DataType, bool], ir.Value] = field(default_factory=dict)


class HalfPrecision(GraphPass):
    """float32 -> `dtype` wherever it is safe. On the inputs of `data` the values' ranges are measured."""

    def __init__(self, dtype: ir.DataType, data: Sampled | None = None) -> None:
        super().__init__()
        self.half, self.data = HalfType(dtype), data

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        ShapeInferencePass()(model)
        _check_types(graph)
        weights = Weights(self.half)
        seen = self.data.ranges(model) if self.data is not None else None
        extents = Extents(self.half, bound_values(graph), seen)
        planner = Planner(graph, model.opset_imports[""], weights, extents)
        plan = planner.run()
        state = _State(graph, planner.floats, weights)
        for node in list(graph):
            if node.op_type != "Cast":  # says its own type, and takes any
                self._type(state, node, node in plan.half)
        self._keep_outputs(state)
        RemoveUnusedNodesPass()(model)
        self.notes += self._notes(graph, plan, seen, weights)
        return ir.passes.PassResult(model, True)

    def _type(self, state: _State, node: ir.Node, in_half: bool) -> None:
        wanted = self.half.dtype if in_half else ir.DataType.FLOAT
        for index, value in enumerate(node.inputs):
            if value is not None and value in state.floats and value.dtype != wanted:
                node.replace_input_with(index, self._cast(state, node, value, wanted, in_half and is_mask(node, index)))
        for inner in _inside(node):
            for index, value in enumerate(inner.inputs):
                if value is not None and value in state.floats and value.dtype == self.half.dtype:
                    inner.replace_input_with(index, self._cast(state, node, value, ir.DataType.FLOAT, clip=False))
        for value in node.outputs if in_half else ():
            if value in state.floats:
                value.type = ir.TensorType(wanted)  # not .dtype: clones of a graph share their type objects

    def _cast(self, state: _State, node: ir.Node, value: ir.Value, dtype: ir.DataType, clip: bool) -> ir.Value:
        """`value` as `dtype`: a converted constant, or one Cast that all readers share."""
        if (value, dtype, clip) in state.casts:
            return state.casts[value, dtype, clip]
        array = constant(value)
        if array is not None and dtype == self.half.dtype:
            name = f"{value.name}.{'clipped.' if clip else ''}{self.half}"
            made = add_constant(state.graph, name, state.weights.convert(array, clip))
        else:
            source = self._clipped(state, node, value) if clip else _uncast(value)
            made = insert(node, "Cast", [source], to=int(dtype))
            made.shape, made.type = value.shape, ir.TensorType(dtype)
        state.casts[value, dtype, clip] = made
        return made

    def _clipped(self, state: _State, node: ir.Node, value: ir.Value) -> ir.Value:
        bounds = (("min", -self.half.largest), ("max", self.half.largest))
        ends = [add_constant(state.graph, f"half.{name}", np.array(end, np.float32)) for name, end in bounds]
        made = insert(node, "Clip", [value, *ends])
        made.shape, made.type = value.shape, value.type
        return made

    def _keep_outputs(self, state: _State) -> None:
        """Outputs stay float32 under their names."""
        graph = state.graph
        for index, value in enumerate(list(graph.outputs)):
            if value in state.floats and value.dtype == self.half.dtype:
                name, value.name = value.name, f"{value.name}.{self.half}"
                cast = ir.node("Cast", [value], {"to": int(ir.DataType.FLOAT)})
                cast.outputs[0].name, cast.outputs[0].shape = name, value.shape
                cast.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
                graph.append(cast)
                graph.outputs[index] = cast.outputs[0]

    def _notes(self, graph: ir.Graph, plan: Plan, seen: Ranges | None, weights: Weights) -> Iterator[str]:
        """What a user should know: how much is half, what is not and why, what the weights lost."""
        products = [node for node in graph if node.domain == "" and node.op_type in PRODUCTS]
        how = f"ranges measured on {seen.inputs} inputs" if seen is not None else "ranges by rules alone, no data"
        yield f"{sum(node in plan.half for node in products)} of {len(products)} products in {self.half}; {how}"
        told = collections.Counter(f"{node.op_type} at {path_of(node)}: {why}" for node, why in plan.islands.items())
        yield from (f"float32: {text}" for text in list(told)[:TOLD])
        if len(told) > TOLD:
            yield f"float32: {len(told) - TOLD} more"
        yield str(weights.tally)


def _uncast(value: ir.Value) -> ir.Value:
    """Of a number that was cast to float32 from integers or booleans, these: one cast is enough."""
    node = value.producer()
    source = node.inputs[0] if node is not None and node.domain == "" and node.op_type == "Cast" else None
    return source if source is not None and source.dtype is not None and not is_float(source) else value


def _inside(node: ir.Node) -> Iterator[ir.Node]:
    """The nodes of the bodies of If, Loop and Scan, at any depth."""
    if node.op_type in BODIES:
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                yield from attribute.as_graph().all_nodes()


def _check_types(graph: ir.Graph) -> None:
    for node in graph:
        if node.domain == "" and any(value.type is None for value in node.outputs if value.name):
            raise BuildError(f"The type of what {node.op_type} at {path_of(node)} gives could not be inferred.")
