"""How large a graph's values get on real data: the float graph is run, each value reduced to its ends where it stands.

The reductions are part of the graph that is run, and ONNX Runtime is told to take its nodes in their order, so that no
tensor lives longer than it would without them: the memory is that of a plain run.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from ...export.graph_session import open_graph
from ...spec import Feeds
from ..lift.values import add_constant, dim

MOST = 32  # inputs that are looked at; the margin covers what the others would add

# what they give was among what they got
_VIEWS = frozenset({"Reshape", "Transpose", "Unsqueeze", "Squeeze", "Identity", "Flatten", "Expand", "Tile", "Split"})


@dataclass
class Ranges:
    """What was seen of the values of a graph, by name, over all inputs. Infinities and NaN do not count."""

    inputs: int = 0
    peaks: dict[str, float] = field(default_factory=dict)  # largest |entry|
    scores: dict[str, float] = field(default_factory=dict)  # of an Attention, by its result: largest |scaled score|
    offsets: dict[str, float] = field(default_factory=dict)  # of a LayerNormalization: largest |mean| / deviation

    def peak(self, value: ir.Value) -> float | None:
        """The largest |entry| of `value` that was seen; None if it was not looked at."""
        node = value.producer()
        while node is not None and node.domain == "" and node.op_type in _VIEWS and node.inputs[0] is not None:
            value = node.inputs[0]
            node = value.producer()
        return self.peaks.get(str(value.name))


class Sampled:
    """Inputs of a model. How large its values get on them is measured once, for all targets and precisions."""

    def __init__(self, samples: Callable[[], Iterable[Feeds]]) -> None:
        self.samples = samples
        self._ranges: Ranges | None = None

    def ranges(self, model: ir.Model) -> Ranges:
        """Of `model`, which must be the same graph each time; see `measure`."""
        if self._ranges is None:
            self._ranges = measure(model, self.samples())
        return self._ranges


def measure(model: ir.Model, samples: Iterable[Feeds]) -> Ranges:
    """Run `model`, float32 and unchanged, on `samples`; of an endless supply the first 32 are taken.

    Raises BuildError where ONNX Runtime has no kernel for the graph, InputError where a sample does not fit it.
    """
    listed = itertools.islice(samples, MOST)
    probed = model.clone()
    found = Ranges()
    probes = list(_probes(probed, found))
    if not probes:
        return found
    probed.graph.outputs[:] = [end for _, _, ends in probes for end in ends]
    with open_graph(probed, in_order=True) as session:
        for feeds in listed:
            found.inputs += 1
            numbers = {name: float(array) for name, array in session.run(feeds).items()}
            for table, key, ends in probes:
                sizes = [abs(numbers[str(end.name)]) for end in ends]
                table[key] = max(table.get(key, 0.0), *(size for size in sizes if math.isfinite(size)), 0.0)
    return found


Probe = tuple[dict[str, float], str, list[ir.Value]]  # the table and the key where its largest |entry| belongs


def _probes(model: ir.Model, found: Ranges) -> Iterator[Probe]:
    graph, nodes = model.graph, list(model.graph)
    for value in graph.inputs:
        if _is_float(value):
            yield found.peaks, str(value.name), _ends(graph, value)
    for node in nodes:
        name = str(node.outputs[0].name)
        if node.domain == "" and node.op_type in _VIEWS:
            continue
        for value in filter(_is_float, node.outputs):
            yield found.peaks, str(value.name), _ends(graph, value)
        if node.domain == "" and node.op_type == "Attention" and (scores := _scores(graph, node)) is not None:
            yield found.scores, name, _ends(graph, scores)
        if node.domain == "" and node.op_type == "LayerNormalization" and len(node.outputs) == 1:
            node.resize_outputs(3)
            mean, inverse = node.outputs[1:]
            for value in (mean, inverse):
                value.name, value.type = f"probe.norm.{value.index()}.{name}", ir.TensorType(ir.DataType.FLOAT)
            yield found.offsets, name, _ends(graph, _append(graph, "Mul", [mean, inverse]))


def _scores(graph: ir.Graph, node: ir.Node) -> ir.Value | None:
    """The scaled products of queries and keys, in front of soft-cap and mask; None where they cannot be said.

    ONNX Runtime can give them itself, but takes their shape for another one and gives them the wrong memory.
    """
    query, key = node.inputs[:2]
    heads, fewer, size = dim(query, 1), dim(key, 1), dim(query, 3)
    if query is None or key is None or not all(isinstance(each, int) for each in (heads, fewer, size)):
        return None
    scale = node.attributes.get_float("scale", 1 / math.sqrt(int(size or 1)))
    if heads != fewer:  # queries of the heads that share one of K, one behind the other
        shape = add_constant(graph, f"probe.shape.{fewer}.{size}", np.array([0, fewer, -1, size], np.int64))
        query = _append(graph, "Reshape", [query, shape], node)
    turned = _append(graph, "Transpose", [key], node, perm=[0, 1, 3, 2])
    products = _append(graph, "MatMul", [query, turned], node)
    return _append(graph, "Mul", [products, add_constant(graph, f"probe.scale.{scale:g}", np.array(scale, np.float32))])


def _ends(graph: ir.Graph, value: ir.Value) -> list[ir.Value]:
    """The highest and the lowest entry of `value`; infinite where it has none."""
    return [_append(graph, op_type, [value], keepdims=0) for op_type in ("ReduceMax", "ReduceMin")]


def _append(
    graph: ir.Graph, op_type: str, inputs: list[ir.Value], before: ir.Node | None = None, **attributes: int | list[int]
) -> ir.Value:
    """A node of float32 in front of `before`, else right behind what gives its first input."""
    node = ir.node(op_type, inputs, attributes)
    node.outputs[0].name, node.outputs[0].type = f"probe.{len(graph)}", ir.TensorType(ir.DataType.FLOAT)
    last = inputs[0].producer()
    if before is None and last is not None:
        graph.insert_after(last, node)
    else:
        graph.insert_before(before or graph[0], node)
    return node.outputs[0]


def _is_float(value: ir.Value) -> bool:
    return isinstance(value.type, ir.TensorType) and value.dtype == ir.DataType.FLOAT
