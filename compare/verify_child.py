"""The process that opens an artifact for the first time: runs it on recorded cases and says whether it is right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..runtimes.child import runtime_of, serve
from .cases import replay, replaying
from .parity import check


def verify_cases(question: dict[str, Any]) -> dict[str, Any]:
    """Parity of question["artifact"] with the outputs in question["cases"]."""
    runtime, settings = runtime_of(question)
    pairs = replay(Path(question["cases"]))
    with runtime.open(Path(question["artifact"]), settings) as session:
        found = check(replaying(pairs), session, [case for case, _ in pairs], question["precision"])
    return found.model_dump(mode="json")


if __name__ == "__main__":
    serve(verify_cases)
