"""Functions of domain `graphwright`: what the standard cannot say, each with a body of standard ops.

A `Definition` is written as ONNX text. `call` makes a node of it and declares the function in the model, once. The
body's node that stands for the whole (its core) is named `core`: behind `inline` it bears the mark of the site. A node
that is a site of its own inside of it (the norm of a residual and norm) is named `core_` and its kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from ...spec import SITE
from .values import add_constant, constant

DOMAIN = "graphwright"
VERSION = 1
CORE = "core"  # name of the node of a body that stands for the site
INNER = "core_"  # start of the name of one that is a site of a kind of its own


@dataclass(frozen=True)
class Definition:
    """A function as ONNX text: `Name <attributes> (inputs) => (outputs) { nodes }`, of opset 23."""

    text: str

    @cached_property
    def function(self) -> ir.Function:
        """The function; its body is shared by all models that it is declared in: never change it."""
        header = f'<opset_import: ["": 23], domain: "{DOMAIN}">'
        return ir.serde.deserialize_function(onnx.parser.parse_function(header + self.text))

    def call(self, model: ir.Model, inputs: Sequence[ir.Value | None], **attributes: float | int | str) -> ir.Node:
        """A node that stands nowhere yet; its outputs have no type or shape."""
        declare(model, self.function.clone())
        outputs = len(self.function.outputs)
        return ir.node(self.function.name, list(inputs), attributes, domain=DOMAIN, num_outputs=outputs)


def declare(model: ir.Model, function: ir.Function) -> None:
    """Make `function` known to the model, if it is not."""
    model.functions.setdefault(function.identifier(), function)
    model.opset_imports.setdefault(DOMAIN, VERSION)


def inline(model: ir.Model) -> bool:
    """Every function of the domain by its body, in place; whether there was one. Cores bear the mark of their site.

    Constants that a body makes in its input's type (CastLike) are initializers afterwards.
    """
    calls = [node for node in model.graph.all_nodes() if node.domain == DOMAIN]
    for node in calls:
        kind = node.metadata_props.pop(SITE, None)
        body = model.functions[node.op_identifier()]
        for inner in body:
            if inner.name == CORE and kind is not None:
                inner.metadata_props[SITE] = kind
            elif inner.name is not None and inner.name.startswith(INNER):
                inner.metadata_props[SITE] = inner.name.removeprefix(INNER)
    InlinePass(lambda function: function.domain == DOMAIN)(model)
    model.opset_imports.pop(DOMAIN, None)
    if calls:
        _settle_constants(model)
    return bool(calls)


def _settle_constants(model: ir.Model) -> None:
    """CastLike(constant, x) -> an initializer of x's type."""
    for node in list(model.graph.all_nodes()):
        value, like = node.inputs if node.domain == "" and node.op_type == "CastLike" else (None, None)
        array = constant(value)
        if value is None or array is None or like is None or like.dtype is None or node.graph is None:
            continue
        settled = add_constant(model.graph, f"{value.name}.settled", array.astype(like.dtype.numpy()))
        ir.convenience.replace_all_uses_with(node.outputs, [settled])
        node.graph.remove(node, safe=True)
        made = value.producer()
        if made is not None and made.graph is not None and not value.uses():
            made.graph.remove(made, safe=True)
