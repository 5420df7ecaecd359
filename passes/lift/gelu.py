"""Gelu, whatever the exporter spelled: x * (1 + erf(x / sqrt 2)) / 2 in any order of factors, and its tanh form.

From each Erf or Tanh that is a function of one tensor x, the region grows forward through elementwise ops whose other
operand is a constant, x, or inside the region. After each step the region, run on sample points, is compared with the
Gelu of ONNX opset 20 (exact, or approximate="tanh"). The function decides, not the spelling.

Legal cases: 1. x is one tensor of the scores' shape; 2. every constant has one element; 3. no value inside the region
is read outside of it, or is an output of the graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from ..base import GraphPass
from ..sites import inherit
from .values import consumers, scalar

# Where erf and tanh bend; float64, so that equality is equality of functions
POINTS = np.concatenate([np.linspace(-6.0, 6.0, 97), [-20.0, -1e-3, 1e-3, 20.0]])
# Exporters write sqrt(2) and its kin with 6 to 17 digits: 1e-5 covers the shortest; the two forms differ by 4.7e-4
TOLERANCE = 1e-5

_ERF = np.vectorize(math.erf, otypes=[np.float64])
_ELEMENTWISE: dict[str, Callable[..., np.ndarray]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": np.divide,
    "Pow": np.power,
    "Neg": np.negative,
    "Erf": _ERF,
    "Tanh": np.tanh,
}
_FORMS = {
    "none": POINTS * (1 + _ERF(POINTS / math.sqrt(2))) / 2,
    "tanh": POINTS * (1 + np.tanh(math.sqrt(2 / math.pi) * (POINTS + 0.044715 * POINTS**3))) / 2,
}


class LiftGelu(GraphPass):
    """A region that computes Gelu -> one `Gelu`."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in list(model.graph):
            if node.domain == "" and node.op_type == "Gelu":
                self.log.lifted("gelu", node, "Gelu")
            elif node.domain == "" and node.op_type in ("Erf", "Tanh"):
                modified |= self._lift(model.graph, node)
        return ir.passes.PassResult(model, modified)

    def _lift(self, graph: ir.Graph, core: ir.Node) -> bool:
        reason = ""
        for source in _sources(core):
            end, reason = _grow(core, source)
            if end is not None:
                gelu = _replace(graph, core, source, end, form=reason)
                self.log.lifted("gelu", gelu, f"{core.op_type} form")
                return True
        # a Tanh may be a plain activation or a soft-cap; an Erf is nothing else than a Gelu in a transformer
        if core.op_type == "Erf":
            self.log.missed("gelu", core, "Erf", reason)
        return False


def _replace(graph: ir.Graph, core: ir.Node, source: ir.Value, end: ir.Node, form: str) -> ir.Node:
    gelu = inherit(ir.node("Gelu", [source], {"approximate": form}), core)
    gelu.outputs[0].shape, gelu.outputs[0].type = end.outputs[0].shape, end.outputs[0].type
    ir.convenience.replace_nodes_and_values(graph, end, [end], [gelu], end.outputs, gelu.outputs)
    return gelu


def _sources(core: ir.Node, limit: int = 12) -> list[ir.Value]:
    """Values that the argument of `core` is computed from by elementwise ops, nearest first."""
    found: dict[ir.Value, None] = {}
    ahead = [core.inputs[0]]
    while ahead and len(found) < limit:
        value = ahead.pop(0)
        if value is None or value in found or scalar(value) is not None:
            continue
        found[value] = None
        node = value.producer()
        if node is not None and node.domain == "" and node.op_type in _ELEMENTWISE:
            ahead.extend(node.inputs)
    return list(found)


def _grow(core: ir.Node, source: ir.Value) -> tuple[ir.Node | None, str]:
    """The last node of a Gelu's region over `source`, and its form; or None and the reason."""
    known = {source: POINTS}
    result = _evaluate(core.outputs[0], known)
    node = core
    while result is not None:
        for form, wanted in _FORMS.items():
            if np.allclose(result, wanted, rtol=TOLERANCE, atol=TOLERANCE):
                return node, form
        if node.outputs[0].is_graph_output() or len(consumers(node.outputs[0])) != 1:
            return None, f"{node.op_type} is read by several nodes before the Gelu is complete"
        node = consumers(node.outputs[0])[0]
        if node.op_type not in _ELEMENTWISE:
            return None, f"the function that ends before {node.op_type} is no Gelu"
        result = _evaluate(node.outputs[0], known)
    return None, f"{node.op_type} has an operand that is neither a constant nor the Gelu's input"


def _evaluate(value: ir.Value | None, known: dict[ir.Value, np.ndarray]) -> np.ndarray | None:
    """`value` on the sample points, as a function of the region's input; None if it is not one."""
    if value is None:
        return None
    if value in known:
        return known[value]
    number = scalar(value)
    if number is not None:
        return np.float64(number) * np.ones(())
    node = value.producer()
    if node is None or node.domain != "" or node.op_type not in _ELEMENTWISE:
        return None
    operands = [_evaluate(operand, known) for operand in node.inputs]
    if any(operand is None for operand in operands):
        return None
    with np.errstate(all="ignore"):
        known[value] = _ELEMENTWISE[node.op_type](*operands)
    return known[value]
