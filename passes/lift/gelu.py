"""Gelu, whatever the exporter spelled: x * (1 + erf(x / sqrt 2)) / 2 in any order of factors, and its tanh form.

From each Erf or Tanh that is a function of one tensor x, the region grows forward through elementwise ops whose other
operand is a constant, x, or inside the region. After each step the region, run on sample points, is compared with the
Gelu of ONNX opset 20 (exact, or approximate="tanh"). The function decides, not the spelling.

Legal cases: 1. x is one tensor, of the region's rank and type: casts inside are looked through, those around the region
stay around the Gelu, which computes in its own type; 2. every constant has one element; 3. nothing outside of the
region reads a value between the Erf or Tanh and the region's end, and none is an output of the graph.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from ..prover import ProvedPass
from ..sites import inherit
from .pointwise import POINTS, argument, equal, erf, grow, sources

_TANH_ARGUMENT = math.sqrt(2 / math.pi) * (POINTS + 0.044715 * POINTS**3)
# of each core; in float16 the two could not be told apart by their values, which differ by 4.7e-4
FORMS = {
    "Erf": {"none": POINTS * (1 + erf(POINTS / math.sqrt(2))) / 2},
    "Tanh": {"tanh": POINTS * (1 + np.tanh(_TANH_ARGUMENT)) / 2},
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
        for source in sources(core):
            region = grow(core, source, FORMS[core.op_type], "Gelu")
            if region.form:
                gelu = inherit(ir.node("Gelu", [source], {"approximate": region.form}), core)
                return self.replace("gelu", region.end, gelu, f"{core.op_type} form")
            fed = argument(core, source) if core.op_type == "Tanh" else None
            is_site |= fed is not None and equal(fed, _TANH_ARGUMENT, source.dtype)
            if region.steps > furthest:
                furthest, reason = region.steps, region.reason
        if is_site:
            self.log.missed("gelu", core, core.op_type, reason)
        return False
