"""The verdict "simulated": a graph in half precision, run on the CPU in float32 that rounds where the device stores."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from ..errors import BuildError
from ..export.graph_session import open_graph
from ..manifest import Tolerances, Verified
from ..passes.lower.simulate import is_half, simulated
from ..spec import Precision
from .cases import Case, Reference
from .parity import check


def simulate(
    reference: Reference,
    model: ir.Model,
    cases: Iterable[Case],
    precision: Precision,
    why: str,
    given: Tolerances | None = None,
) -> Verified:
    """Parity of the target graph `model`, which cannot be run here for the reason `why`; `given`: see `tolerance`.

    In tolerance it is "simulated", never "passed"; out of it "failed": that graph is known to be wrong. A graph without
    half types, or with an op that the CPU has no kernel for, is "no device here".
    """
    if not is_half(model):
        return Verified(verdict="no device here", reason=why)
    try:
        session = open_graph(simulated(model), optimize=False)
    except BuildError as error:
        return Verified(verdict="no device here", reason=f"{why}; and not simulated on the CPU: {error}")
    with session:
        verified = check(reference, session, cases, precision, given)
    if verified.verdict == "passed":
        verified.verdict = "simulated"
        verified.reason = f"{why}; simulated on the CPU"
    else:
        verified.reason = f"in simulation on the CPU, {verified.reason}"
    return verified
