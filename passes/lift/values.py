"""Questions about values that every lift rule asks: constants, producers, consumers."""

from __future__ import annotations

from collections.abc import Container, Sequence

import numpy as np
import onnx_ir as ir

from ..sites import inherit


def constant(value: ir.Value | None) -> np.ndarray | None:
    """The value's array if it is a constant of the graph (an initializer or a Constant node)."""
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    return None if tensor is None else tensor.numpy()


def scalar(value: ir.Value | None) -> float | None:
    """The value as a float if it is a constant of one element."""
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    # a large one is not touched: it may lie on disk
    return float(tensor.numpy().reshape(())) if tensor is not None and tensor.size == 1 else None


def is_constant(value: ir.Value | None) -> bool:
    """Whether the value is a constant of the graph; its data, which may lie on disk, is not touched."""
    return value is not None and ir.convenience.get_const_tensor(value) is not None


def producer(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    """The node that makes `value`, if it is a standard op of one of `op_types` (any, if none is named)."""
    node = value.producer() if value is not None else None
    if node is None or node.domain != "" or (op_types and node.op_type not in op_types):
        return None
    return node


def consumers(value: ir.Value) -> list[ir.Node]:
    """Nodes that read `value`, once each."""
    return list(dict.fromkeys(value.consumers()))


def only_consumer(value: ir.Value, *op_types: str) -> ir.Node | None:
    """The one node that reads `value`, if there is just one, of `op_types`, and `value` is no output of the graph."""
    readers = consumers(value)
    if len(readers) != 1 or value.is_graph_output() or (op_types and readers[0].op_type not in op_types):
        return None
    return readers[0]


def only_sum(node: ir.Node) -> tuple[ir.Node, ir.Value] | None:
    """The Add that alone reads the result of `node`, in its graph, and what is added there."""
    add = only_consumer(node.outputs[0], "Add")
    if add is None or add.domain != "" or add.graph is not node.graph:
        return None
    other = add.inputs[1] if add.inputs[0] is node.outputs[0] else add.inputs[0]
    return None if other is None else (add, other)


def split_scalar(node: ir.Node) -> tuple[ir.Value, float] | None:
    """For a commutative node of two inputs: the other input and the constant of one element; else None."""
    first, second = node.inputs
    for value, other in ((first, second), (second, first)):
        number = scalar(other)
        if number is not None and value is not None and scalar(value) is None:
            return value, number
    return None


def rank(value: ir.Value | None) -> int | None:
    """Rank of `value`, if known."""
    return len(value.shape) if value is not None and value.shape is not None else None


def dim(value: ir.Value | None, axis: int) -> int | str | None:
    """Size or symbol of an axis; None if unknown."""
    if value is None or value.shape is None or not -len(value.shape) <= axis < len(value.shape):
        return None
    size = value.shape[axis]
    return size if isinstance(size, int) else size.value


def dims(value: ir.Value | None) -> list[int | str | None] | None:
    """Sizes and symbols of all axes; None if the rank is unknown."""
    if value is None or value.shape is None:
        return None
    return [dim(value, axis) for axis in range(len(value.shape))]


def same_shape(one: ir.Value, other: ir.Value) -> bool:
    """Whether both have one shape, every dim of it known by size or name."""
    found = dims(one)
    return found is not None and None not in found and found == dims(other)


def broadcast(values: Sequence[ir.Value]) -> ir.Shape | None:
    """The shape of an elementwise op on `values`; None if the rank of one is unknown."""
    ranks = [len(value.shape) for value in values if value.shape is not None]
    if len(ranks) < len(values):
        return None
    dims: list[int | str | None] = []
    for axis in range(-max(ranks), 0):
        sizes = {dim(value, axis) for value, own in zip(values, ranks, strict=True) if own >= -axis} - {1}
        numbers = [size for size in sizes if isinstance(size, int)]  # all else is that number, or 1
        dims.append(numbers[0] if numbers else sizes.pop() if len(sizes) == 1 else None if sizes else 1)
    return ir.Shape(dims)


def add_constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """An initializer holding `array`; one of the same name and content is reused."""
    taken, number = name, 1
    while (old := graph.initializers.get(taken)) is not None:
        known = constant(old)
        same = known is not None and (known.dtype, known.shape) == (array.dtype, array.shape)
        if same and known is not None and known.tobytes() == array.tobytes():
            return old
        taken, number = f"{name}.{number}", number + 1
    value = ir.Value(name=taken, const_value=ir.tensor(array, name=taken), shape=ir.Shape(array.shape))
    value.type = ir.TensorType(ir.DataType.from_numpy(array.dtype))
    graph.register_initializer(value)
    return value


def insert(before: ir.Node, op_type: str, inputs: Sequence[ir.Value | None], **attributes: object) -> ir.Value:
    """A new standard op in front of `before`, of the same module path; its (first) output."""
    node = ir.node(op_type, list(inputs), {k: v for k, v in attributes.items() if v is not None})  # type: ignore[misc]
    assert before.graph is not None
    before.graph.insert_before(before, inherit(node, before))
    return node.outputs[0]


def once(before: ir.Node, op_type: str, inputs: Sequence[ir.Value]) -> ir.Value:
    """The elementwise op on `inputs`, of the first one's type; made in front of `before` if the graph has none yet."""
    for node in inputs[0].consumers():
        if node.op_type == op_type and list(node.inputs) == list(inputs) and node.graph is before.graph:
            return node.outputs[0]
    made = insert(before, op_type, inputs)
    made.type, made.shape = inputs[0].type, broadcast(inputs)
    return made


def follows_from(value: ir.Value, sources: Container[ir.Value], limit: int = 64) -> bool:
    """Whether one of `sources` is among what `value` is computed from, in at most `limit` steps."""
    ahead, seen = [value], set[ir.Value]()
    while ahead and len(seen) <= limit:
        value = ahead.pop(0)
        if value in sources:
            return True
        node = value.producer()
        if node is not None and value not in seen:
            ahead += [operand for operand in node.inputs if operand is not None]
        seen.add(value)
    return False


def shape_only(value: ir.Value, limit: int = 64) -> bool:
    """Whether `value` follows from constants and the sizes of tensors alone, in at most `limit` steps."""
    ahead, seen = [value], set[ir.Value]()
    while ahead:
        value = ahead.pop()
        if value in seen or is_constant(value):
            continue
        seen.add(value)
        node = value.producer()
        if node is None or node.domain != "" or len(seen) > limit:
            return False
        if node.op_type not in ("Shape", "Size"):
            ahead += [operand for operand in node.inputs if operand is not None]
    return True
