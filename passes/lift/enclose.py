"""Regions of a graph as functions of domain `graphwright`: the same nodes, under the name of what they mean."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx_ir as ir

from ..sites import inherit
from .functions import CORE, DOMAIN, declare
from .values import constant, consumers

SMALL = 16  # elements of a constant that goes into the body; a larger one is an input


def between(starts: Iterable[ir.Node], end: ir.Node, limit: int = 256) -> list[ir.Node] | None:
    """Nodes on the ways from `starts` to `end`, both included, in the graph's order; None if there are too many."""
    reached = set(starts)
    ahead, back = [end], {end}
    while ahead:  # everything that `end` is made of, down to the starts
        node = ahead.pop()
        for maker in [] if node in reached else [v.producer() for v in node.inputs if v is not None]:
            if maker is not None and maker not in back and maker.graph is end.graph:
                back.add(maker)
                ahead.append(maker)
        if len(back) > 16 * limit:
            return None
    assert end.graph is not None
    inside, found = set(starts), []
    for node in end.graph:
        if node in inside or (node in back and any(v is not None and v.producer() in inside for v in node.inputs)):
            inside.add(node)
            found.append(node)
        if node is end:
            break
    return found if len(found) <= limit else None


def is_closed(nodes: Sequence[ir.Node]) -> bool:
    """Whether nothing but the last node's result is read outside."""
    inside = set(nodes)
    values = [value for node in nodes[:-1] for value in node.outputs]
    return all(not value.is_graph_output() and inside.issuperset(consumers(value)) for value in values)


def enclose(model: ir.Model, name: str, nodes: Sequence[ir.Node], core: ir.Node) -> ir.Node:
    """A call, standing nowhere yet, of a function whose body is `nodes`, the last of which makes its one output.

    The function is shared by all regions of the same structure; one of another structure gets a number behind its name.
    """
    body = dict.fromkeys(nodes)
    inputs: dict[ir.Value, None] = {}
    for node in nodes:
        for value in node.inputs:
            if value is not None and value.producer() not in body and not _goes_in(value):
                inputs[value] = None
    function = _function(model, name, list(inputs), nodes, core)
    declare(model, function)
    call = ir.node(function.name, list(inputs), domain=DOMAIN)
    return inherit(call, core)


def _goes_in(value: ir.Value) -> bool:
    array = constant(value)
    return array is not None and array.size <= SMALL


def _function(
    model: ir.Model, name: str, inputs: list[ir.Value], nodes: Sequence[ir.Node], core: ir.Node
) -> ir.Function:
    number = 1
    while True:
        taken = name if number == 1 else f"{name}_{number}"
        made = _build(taken, inputs, nodes, core)
        known = model.functions.get(made.identifier())
        if known is None or _text(known) == _text(made):
            return made if known is None else known
        number += 1


def _build(name: str, inputs: list[ir.Value], nodes: Sequence[ir.Node], core: ir.Node) -> ir.Function:
    values = {value: ir.Value(name=f"input{index}") for index, value in enumerate(inputs)}
    made: list[ir.Node] = []
    for index, node in enumerate(nodes):
        for value in node.inputs:
            tensor = ir.convenience.get_const_tensor(value) if value is not None and value not in values else None
            if value is not None and tensor is not None:
                constant_node = ir.node("Constant", [], {"value": ir.tensor(tensor.numpy())})
                constant_node.outputs[0].name = f"constant{len(made)}"
                values[value] = constant_node.outputs[0]
                made.append(constant_node)
        copied = ir.Node(
            node.domain,
            node.op_type,
            [None if value is None else values[value] for value in node.inputs],
            list(node.attributes.values()),
            num_outputs=len(node.outputs),
            name=CORE if node is core else f"node{index}",
        )
        for place, (old, new) in enumerate(zip(node.outputs, copied.outputs, strict=True)):
            new.name = f"value{index}_{place}"
            values[old] = new
        made.append(copied)
    graph = ir.Graph(
        [values[value] for value in inputs], [values[nodes[-1].outputs[0]]], nodes=made, opset_imports={"": 23}
    )
    return ir.Function(DOMAIN, name, graph=graph, attributes=[])


def _text(function: ir.Function) -> str:
    """What a function computes, for comparison; not its name."""
    lines = []
    for node in function:
        attributes = sorted(
            (name, repr(a.as_tensor().numpy().tolist()) if a.type == ir.AttributeType.TENSOR else repr(a.value))
            for name, a in node.attributes.items()
        )
        names = [value.name if value is not None else "" for value in node.inputs]
        lines.append(f"{node.name} {node.op_type} {names} {[v.name for v in node.outputs]} {attributes}")
    return "\n".join(lines)
