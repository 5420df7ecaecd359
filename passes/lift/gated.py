"""Gated units: an activation times another tensor -> one function of domain `graphwright`.

    Silu(gate) * up   ->   graphwright.SwiGLU(gate, up)
    Gelu(gate) * up   ->   graphwright.GeGLU(gate, up; approximate)

Both are read from the lifted activations (this pass runs behind those of gelu.py and silu.py). Legal cases: 1. either
order of the product; gate and up from two projections, or the parts of a packed one: they are taken as they come;
2. gate and up are two tensors of one known shape (a product that broadcasts is a gate of channels, say); 3. nothing
else reads the activation, and it is no output of the graph.

Source: Shazeer, "GLU Variants Improve Transformer" (2020).
"""

from __future__ import annotations

import onnx_ir as ir

from ..base import MisfitError
from ..prover import ProvedPass
from ..sites import inherit
from .functions import Definition
from .silu import is_silu
from .values import consumers, same_shape

KIND = "gate"

SWIGLU = Definition("""
SwiGLU (gate, up) => (y) {
    [core_silu] s = Sigmoid(gate)
    a = Mul(gate, s)
    [core] y = Mul(a, up)
}""")

GEGLU = Definition("""
GeGLU <approximate: string = "none"> (gate, up) => (y) {
    [core_gelu] a = Gelu <approximate: string = @approximate> (gate)
    [core] y = Mul(a, up)
}""")


class LiftGated(ProvedPass):
    """An activation times another tensor of its shape -> `SwiGLU` or `GeGLU`."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in list(model.graph.all_nodes()):
            if is_silu(node) or (node.domain == "" and node.op_type == "Gelu"):
                modified |= self._lift(model, node)
        return ir.passes.PassResult(model, modified)

    def _lift(self, model: ir.Model, activation: ir.Node) -> bool:
        product = _product(activation.outputs[0], activation.inputs[0])
        if product is None:
            return False
        spelling = f"{activation.op_type} times up"
        try:
            gate, up = _read(activation, product)
        except MisfitError as misfit:
            self.log.missed(KIND, activation, spelling, str(misfit))
            return False
        if is_silu(activation):
            new = SWIGLU.call(model, [gate, up])
        else:
            new = GEGLU.call(model, [gate, up], approximate=activation.attributes.get_string("approximate", "none"))
        return self.replace(KIND, product, inherit(new, product), spelling)


def _product(made: ir.Value, gate: ir.Value | None) -> ir.Node | None:
    """The Mul by another tensor of the same shape that reads the activation, or reads it behind a Cast."""
    for node in consumers(made):
        if node.op_type == "Cast" and node.domain == "":
            found = _product(node.outputs[0], gate)
            if found is not None:
                return found
        if node.op_type == "Mul" and node.domain == "":
            up = _other(node, made)
            if up is not made and up is not gate and up.const_value is None and same_shape(up, made):
                return node
    return None


def _other(product: ir.Node, made: ir.Value) -> ir.Value:
    up = product.inputs[1] if product.inputs[0] is made else product.inputs[0]
    assert up is not None
    return up


def _read(activation: ir.Node, product: ir.Node) -> tuple[ir.Value, ir.Value]:
    """Gate and up. Raises MisfitError."""
    made, gate = activation.outputs[0], activation.inputs[0]
    assert gate is not None
    if made not in product.inputs:
        raise MisfitError("a Cast stands between the activation and the product")
    if made.is_graph_output() or len(consumers(made)) != 1:
        raise MisfitError("the activation is read more than once, or is an output of the graph")
    return gate, _other(product, made)
