"""SiLU, its kin with a factor (quick gelu) and HardSwish, whatever the exporter spelled.

    x * sigmoid(x)           ->   graphwright.Silu(x)
    x * sigmoid(alpha * x)   ->   graphwright.QuickGelu(x; alpha)
    x * clip(x + 3, 0, 6) / 6   ->   HardSwish(x) (opset 14)

From each Sigmoid, Exp, HardSigmoid or Clip that is a function of one tensor x the region grows as that of a Gelu does
(see pointwise.py), in any order of factors, with sigmoid as 1 / (1 + exp(-x)) too. Legal cases: 1. x is one tensor, of
the region's rank and type; 2. every constant has one element, alpha is positive; 3. nothing outside of the region reads
a value inside of it, and none is an output of the graph. A sigmoid that gates something else is no site.

Sources: Elfwing et al., "Sigmoid-Weighted Linear Units" (2017); Hendrycks and Gimpel, "Gaussian Error Linear Units"
(2016), whose sigmoid approximation has alpha = 1.702; ONNX operator specification, HardSwish-14.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..prover import ProvedPass
from ..sites import inherit
from .functions import DOMAIN, Definition
from .pointwise import POINTS, Forms, argument, equal, grow, sigmoid, sources
from .values import consumers

SILU = Definition("""
Silu (x) => (y) {
    [core] s = Sigmoid(x)
    y = Mul(x, s)
}""")

QUICK_GELU = Definition("""
QuickGelu <alpha: float = 1.702> (x) => (y) {
    a = Constant <value_float: float = @alpha> ()
    factor = CastLike(a, x)
    u = Mul(x, factor)
    [core] s = Sigmoid(u)
    y = Mul(x, s)
}""")

HARD_SWISH = {"hard_swish": POINTS * np.clip(POINTS + 3, 0, 6) / 6}
_NAMES = {"Sigmoid": "Silu", "Exp": "Silu", "Clip": "HardSwish", "HardSigmoid": "HardSwish"}


class LiftSilu(ProvedPass):
    """A region that computes SiLU, quick gelu or HardSwish -> one node."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in list(model.graph.all_nodes()):
            if node.domain == "" and node.op_type == "HardSwish":
                self.log.lifted("hard_swish", node, "HardSwish")
            elif node.domain == "" and node.op_type in _NAMES:
                modified |= self._lift(model, node)
        return ir.passes.PassResult(model, modified)

    def _lift(self, model: ir.Model, core: ir.Node) -> bool:
        for source in sources(core):
            alpha, forms = _forms(core, source)
            region = grow(core, source, forms, _NAMES[core.op_type])
            if region.form:
                new = inherit(_make(model, region.form, source, alpha), core)
                return self.replace(region.form, region.end, new, f"{core.op_type} form")
            # what a site's factor is: the other uses of a sigmoid are gates
            readers = consumers(region.end.outputs[0])
            if alpha and any(node.op_type == "Mul" and source in node.inputs for node in readers):
                self.log.missed(next(iter(forms)), core, core.op_type, region.reason)
                return False
        return False


def _forms(core: ir.Node, source: ir.Value) -> tuple[float, Forms]:
    """What may become of a core that is fed with alpha times `source`; (0, ...) if it is not."""
    if core.op_type in ("Clip", "HardSigmoid"):
        return 0.0, HARD_SWISH
    fed = argument(core, source)
    alpha = float(fed[-1] / POINTS[-1]) if fed is not None and fed.shape == POINTS.shape else 0.0
    if alpha == 0 or fed is None or not equal(fed, alpha * POINTS, source.dtype):
        return 0.0, {}
    if core.op_type == "Exp":
        alpha = -alpha
    if alpha < 0:
        return 0.0, {}
    form = "silu" if np.isclose(alpha, 1, rtol=1e-6) else "quick_gelu"
    return alpha, {form: POINTS * sigmoid(alpha * POINTS)}


def _make(model: ir.Model, form: str, source: ir.Value, alpha: float) -> ir.Node:
    if form == "hard_swish":
        return ir.node("HardSwish", [source])
    return SILU.call(model, [source]) if form == "silu" else QUICK_GELU.call(model, [source], alpha=alpha)


def is_silu(node: ir.Node | None) -> bool:
    """Whether `node` calls Silu."""
    return node is not None and node.domain == DOMAIN and node.op_type == SILU.function.name
