"""A graph in half precision as one in float32 that rounds where the other stores: what a CPU can run in its place.

Every value of float16 or bfloat16 becomes one of float32 that went through a Cast to the half type and back, so that it
holds what the half type would hold: rounded to the nearest, infinite where it overflows. In between each node computes
in float32, as the kernels of GPUs do that add up in float32. What such a kernel rounds inside of a node (weights of an
attention, say) is not rounded here.

    y = MatMul(x, w), all float16   ->   y = Cast(Cast(MatMul(x, w), FLOAT16), FLOAT), all float32
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import NameFixPass, ShapeInferencePass

HALVES = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
_FLOAT = ir.DataType.FLOAT
_CODES = frozenset(map(int, HALVES))
_TYPES = frozenset({"to", "dtype", "output_dtype", "softmax_precision"})  # attributes that hold a type


def is_half(model: ir.Model) -> bool:
    """Whether anything in the graph, or in a body of it, is float16 or bfloat16."""
    values = (value for graph in model.graphs() for value in _values(graph))
    return any(value.dtype in HALVES for value in values) or any(
        node.attributes.get_int(name, 0) in _CODES for node in model.graph.all_nodes() for name in _TYPES
    )


def simulated(model: ir.Model) -> ir.Model:
    """A copy that computes the same in float32; inputs and outputs keep their names, shapes and types."""
    copy = model.clone()
    ShapeInferencePass()(copy)  # what lowering made has no type yet
    halves = {value: value.dtype for graph in copy.graphs() for value in _values(graph) if value.dtype in HALVES}
    border = [(value, halves[value]) for value in copy.graph.inputs if value in halves]
    for graph in list(copy.graphs()):
        for value in graph.initializers.values():
            if value in halves:
                _widen_constant(value)
        for node in list(graph):
            _widen(node)
            for value in node.outputs:
                if value in halves:
                    _round(node, value, halves[value], keep=graph is copy.graph)
    for value in halves:
        value.type = ir.TensorType(_FLOAT)
    for value, dtype in border:
        _widen_input(copy.graph, value, dtype)
    NameFixPass()(copy)
    return copy


def _values(graph: ir.Graph) -> Iterable[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs


def _widen_constant(value: ir.Value) -> None:
    assert value.const_value is not None
    array = value.const_value.numpy().astype(np.float32)
    value.const_value = ir.tensor(array, name=value.name)


def _widen(node: ir.Node) -> None:
    """What says a half type in the node says float32."""
    for name, attribute in list(node.attributes.items()):
        if attribute.type == ir.AttributeType.INT and name in _TYPES and attribute.as_int() in _CODES:
            node.attributes[name] = ir.AttrInt64(name, int(_FLOAT))
        elif attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype in HALVES:
            tensor = ir.tensor(attribute.as_tensor().numpy().astype(np.float32))
            node.attributes[name] = ir.AttrTensor(name, tensor)


def _round(node: ir.Node, value: ir.Value, dtype: ir.DataType, keep: bool) -> None:
    """Let all that read `value` read it rounded; with `keep` an output of the graph stays half."""
    graph = node.graph
    assert graph is not None
    readers, places = list(value.uses()), [i for i, output in enumerate(graph.outputs) if output is value]
    stored = _cast(value, dtype)
    widened = _cast(stored.outputs[0], _FLOAT)
    graph.insert_after(node, [stored, widened])
    for reader, index in readers:
        reader.replace_input_with(index, widened.outputs[0])
    for index in places:
        made = stored.outputs[0] if keep else widened.outputs[0]
        made.name, value.name = value.name, f"{value.name}.exact"
        graph.outputs[index] = made


def _widen_input(graph: ir.Graph, value: ir.Value, dtype: ir.DataType) -> None:
    """An input of the graph keeps its type."""
    readers = list(value.uses())
    cast = _cast(value, _FLOAT)
    value.type = ir.TensorType(dtype)
    graph.insert_before(graph[0], cast)
    for reader, index in readers:
        reader.replace_input_with(index, cast.outputs[0])


def _cast(value: ir.Value, dtype: ir.DataType) -> ir.Node:
    node = ir.node("Cast", [value], {"to": int(dtype)})
    node.outputs[0].type, node.outputs[0].shape = ir.TensorType(dtype), value.shape
    return node
