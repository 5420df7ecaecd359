"""Regions of a graph as functions of domain `graphwright`: the same nodes, under the name of what they mean."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence

import onnx_ir as ir

from ...spec import SITE
from ..sites import inherit
from .functions import CORE, DOMAIN, INNER, VERSION, declare
from .values import constant, consumers

SMALL = 16  # elements of a constant that goes into the body; a larger one is an input


def between(starts: Iterable[ir.Node], end: ir.Node, limit: int = 256) -> list[ir.Node] | None:
    """Nodes on the ways from `starts` to `end`, both included, each after its own producers; None if too many.

    Where the region is closed these are all that its starts lead to, so the walk goes ahead, and only for one that is
    read outside back to where the graph begins.
    """
    first = dict.fromkeys(starts)
    inside = _ahead(first, end, limit) or _ahead(first, end, limit, _behind(end, first))
    if inside is None:
        return None
    found = dict[ir.Node, None]()
    _follow(end, inside, found)
    return list(found)


def _ahead(
    starts: Iterable[ir.Node], end: ir.Node, limit: int, within: Container[ir.Node] | None = None
) -> dict[ir.Node, None] | None:
    """What `starts` lead to, up to `end`; None if that is too much."""
    inside = dict.fromkeys(starts)
    ahead = [node for node in inside if node is not end]
    while ahead:
        for reader in (reader for value in ahead.pop().outputs for reader in consumers(value)):
            fits = reader.graph is end.graph and (within is None or reader in within)
            if fits and reader not in inside:
                inside[reader] = None
                ahead += [reader] if reader is not end else []
        if len(inside) > limit:
            return None
    return inside


def _behind(end: ir.Node, starts: Container[ir.Node]) -> set[ir.Node]:
    """What `end` is made of, down to `starts`."""
    ahead, back = [end], {end}
    while ahead:
        for value in ahead.pop().inputs:
            maker = value.producer() if value is not None else None
            if maker is not None and maker not in back:
                back.add(maker)
                ahead += [maker] if maker not in starts else []
    return back


def _follow(node: ir.Node, inside: Container[ir.Node], found: dict[ir.Node, None]) -> None:
    """What `node` is made of `inside`, and itself."""
    for maker in (value.producer() for value in node.inputs if value is not None):
        if maker is not None and maker in inside and maker not in found:
            _follow(maker, inside, found)
    found[node] = None


def is_closed(nodes: Sequence[ir.Node]) -> bool:
    """Whether nothing but the last node's result is read outside, and nothing has a body of its own."""
    return exits(nodes) == [nodes[-1]]


def exits(nodes: Sequence[ir.Node]) -> list[ir.Node] | None:
    """The last node, and those others whose result is read outside too.

    None where one of these has several results, or any node a body of its own.
    """
    inside = set(nodes)
    bodies = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    read = [
        node
        for node in nodes[:-1]
        if any(value.is_graph_output() or not inside.issuperset(consumers(value)) for value in node.outputs)
    ]
    closed = not any(attribute.type in bodies for node in nodes for attribute in node.attributes.values())
    return [nodes[-1], *read] if closed and all(len(node.outputs) == 1 for node in read) else None


def enclose(
    model: ir.Model, name: str, nodes: Sequence[ir.Node], core: ir.Node, ends: Sequence[ir.Node] = ()
) -> ir.Node:
    """A call, standing nowhere yet, of a function whose body is `nodes`; its outputs are those of `ends`.

    Without `ends` that is what the last node makes.
    The function is shared by all regions of the same structure; one of another structure gets a number behind its name.
    """
    body = dict.fromkeys(nodes)
    inputs: dict[ir.Value, None] = {}
    for node in nodes:
        for value in node.inputs:
            if value is not None and value.producer() not in body and not _goes_in(value):
                inputs[value] = None
    outputs = [node.outputs[0] for node in ends or nodes[-1:]]
    function = _function(model, name, list(inputs), nodes, core, outputs)
    declare(model, function)
    call = ir.node(function.name, list(inputs), domain=DOMAIN, num_outputs=len(outputs))
    return inherit(call, core)


def _goes_in(value: ir.Value) -> bool:
    array = constant(value)
    return array is not None and array.size <= SMALL


def _function(
    model: ir.Model,
    name: str,
    inputs: list[ir.Value],
    nodes: Sequence[ir.Node],
    core: ir.Node,
    outputs: list[ir.Value],
) -> ir.Function:
    number = 1
    while True:
        taken = name if number == 1 else f"{name}_{number}"
        made = _build(taken, inputs, nodes, core, outputs)
        known = model.functions.get(made.identifier())
        if known is None or _text(known) == _text(made):
            return made if known is None else known
        number += 1


def _build(
    name: str, inputs: list[ir.Value], nodes: Sequence[ir.Node], core: ir.Node, outputs: list[ir.Value]
) -> ir.Function:
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
            name=_name(node, index, core),
        )
        for place, (old, new) in enumerate(zip(node.outputs, copied.outputs, strict=True)):
            new.name = f"value{index}_{place}"
            values[old] = new
        made.append(copied)
    opsets = {"": 23, **{node.domain: VERSION for node in made if node.domain}}
    graph = ir.Graph(
        [values[value] for value in inputs], [values[value] for value in outputs], nodes=made, opset_imports=opsets
    )
    return ir.Function(DOMAIN, name, graph=graph, attributes=[])


def _name(node: ir.Node, index: int, core: ir.Node) -> str:
    """What a node is called in the body: a site of its own stays one."""
    if node is core:
        return CORE
    return f"{INNER}{node.metadata_props[SITE]}" if SITE in node.metadata_props else f"node{index}"


def _text(function: ir.Function) -> str:
    """What a function computes, for comparison; not its name."""
    lines = [str([value.name for value in function.outputs])]
    for node in function:
        attributes = sorted(
            (name, repr(a.as_tensor().numpy().tolist()) if a.type == ir.AttributeType.TENSOR else repr(a.value))
            for name, a in node.attributes.items()
        )
        names = [value.name if value is not None else "" for value in node.inputs]
        lines.append(f"{node.name} {node.op_type} {names} {[v.name for v in node.outputs]} {attributes}")
    return "\n".join(lines)
