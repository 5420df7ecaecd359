"""Gelu, whatever the exporter spelled: x * (1 + erf(x / sqrt 2)) / 2 in any order of factors, and its tanh form.

From each Erf or Tanh that is a function of one tensor x, the region grows forward through elementwise ops whose other
operand is a constant, x, or inside the region. After each step the region, run on sample points, is compared with the
Gelu of ONNX opset 20 (exact, or approximate="tanh"). The function decides, not the spelling.

Legal cases: 1. x is one tensor, of the region's rank; 2. every constant has one element; 3. nothing outside of the
region reads a value between the Erf or Tanh and the region's end, and none is an output of the graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..prover import ProvedPass
from ..sites import inherit
from .values import consumers, rank, scalar

# Where erf and tanh bend; float64, so that equality is equality of functions
POINTS = np.concatenate([np.linspace(-6.0, 6.0, 97), [-20.0, -1e-3, 1e-3, 20.0]])
# Exporters write sqrt(2) and its kin with 6 to 17 digits: 1e-5 covers the shortest; the two forms differ by 4.7e-4
TOLERANCE = 1e-5
DEPTH = 16  # no spelling of Gelu is deeper

Known = dict[ir.Value, np.ndarray | None]
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
_TANH_ARGUMENT = math.sqrt(2 / math.pi) * (POINTS + 0.044715 * POINTS**3)
_FORMS = {
    "none": POINTS * (1 + _ERF(POINTS / math.sqrt(2))) / 2,
    "tanh": POINTS * (1 + np.tanh(_TANH_ARGUMENT)) / 2,
}


class LiftGelu(ProvedPass):
    """A region that computes Gelu -> one `Gelu`."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in list(model.graph.all_nodes()):
            if node.domain == "" and node.op_type == "Gelu":
                self.log.lifted("gelu", node, "Gelu")
            elif node.domain == "" and node.op_type in ("Erf", "Tanh"):
                modified |= self._lift(node)
        return ir.passes.PassResult(model, modified)

    def _lift(self, core: ir.Node) -> bool:
        # of Tanh only one that is fed like a Gelu is a site: others are plain activations or soft-caps. An Erf is
        # nothing else than a Gelu in a transformer.
        is_site, furthest, reason = core.op_type == "Erf", -1, ""
        for source in _sources(core):
            region = _grow(core, source)
            if region.form:
                gelu = inherit(ir.node("Gelu", [source], {"approximate": region.form}), core)
                return self.replace("gelu", region.end, gelu, f"{core.op_type} form")
            is_site |= region.fed
            if region.steps > furthest:
                furthest, reason = region.steps, region.reason
        if is_site:
            self.log.missed("gelu", core, core.op_type, reason)
        return False


@dataclass(frozen=True)
class Region:
    """How far the ops behind a core could be read as a function of one tensor."""

    end: ir.Node
    steps: int
    form: str = ""  # of the Gelu that it is
    fed: bool = False  # whether the core's argument is that of the tanh form
    reason: str = ""


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


def _grow(core: ir.Node, source: ir.Value) -> Region:
    """The region of `core` over `source`, as far as it goes: it ends where it is a Gelu."""
    known: Known = {source: POINTS}
    argument = _evaluate(core.inputs[0], known)
    fed = core.op_type == "Tanh" and argument is not None and _equal(argument, _TANH_ARGUMENT)
    result, node, steps = _evaluate(core.outputs[0], known), core, 0
    while result is not None:
        for form, wanted in _FORMS.items():
            if _equal(result, wanted) and rank(node.outputs[0]) == rank(source):
                return Region(node, steps, form)
        if node.outputs[0].is_graph_output() or len(consumers(node.outputs[0])) != 1:
            reason = f"{node.op_type}, before the Gelu is complete, is read by several nodes or is an output"
            return Region(node, steps, "", fed, reason)
        node = consumers(node.outputs[0])[0]
        if node.domain != "" or node.op_type not in _ELEMENTWISE:
            return Region(node, steps, "", fed, f"the function that ends before {node.op_type} is no Gelu")
        result, steps = _evaluate(node.outputs[0], known), steps + 1
    reason = f"{node.op_type} has an operand that is neither a constant nor the Gelu's input"
    return Region(node, steps - 1, "", fed, reason)


def _equal(result: np.ndarray, wanted: np.ndarray) -> bool:
    return bool(np.allclose(result, wanted, rtol=TOLERANCE, atol=TOLERANCE))


def _evaluate(
    value: ir.Value | None, known: dict[ir.Value, np.ndarray | None], depth: int = DEPTH
) -> np.ndarray | None:
    """`value` on the sample points, as a function of the region's input; None if it is not one."""
    if value is None or depth == 0:
        return None
    if value in known:
        return known[value]
    number = scalar(value)
    if number is not None:
        return np.float64(number) * np.ones(())
    node = value.producer()
    if node is None or node.domain != "" or node.op_type not in _ELEMENTWISE:
        return None
    operands = [_evaluate(operand, known, depth - 1) for operand in node.inputs]
    known[value] = None
    if all(operand is not None for operand in operands):
        with np.errstate(all="ignore"):
            known[value] = _ELEMENTWISE[node.op_type](*operands)
    return known[value]
