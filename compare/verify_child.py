"""The process that opens an artifact for the first time: runs it on recorded cases and says whether it is right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..export.onnx_file import read_onnx
from ..manifest import Tolerances
from ..runtimes.child import runtime_of, serve
from .cases import replay, replaying
from .parity import check
from .simulated import simulate


def verify_cases(question: dict[str, Any]) -> dict[str, Any]:
    """Parity of question["artifact"] with the outputs in question["cases"]; of its graph in simulation, if absent."""
    pairs = replay(Path(question["cases"]))
    tolerances = Tolerances.model_validate_json(json.dumps(question["tolerances"]))
    cases, precision = [case for case, _ in pairs], question["precision"]
    if question["absent"]:
        graph = read_onnx(Path(question["artifact"]))
        found = simulate(replaying(pairs), graph, cases, precision, question["absent"], tolerances)
        return found.model_dump(mode="json")
    runtime, settings = runtime_of(question)
    with runtime.open(Path(question["artifact"]), settings) as session:
        found = check(replaying(pairs), session, cases, precision, tolerances)
    return found.model_dump(mode="json")


if __name__ == "__main__":
    serve(verify_cases)
