"""Every architecture of the coverage bench in float16 and bfloat16, for the targets that take them: simulated, right.

One in `make test`, all thirty in `make test-full`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import graphwright as gw
from graphwright.compare.cases import Case, replaying
from graphwright.compare.simulated import simulate
from graphwright.compare.undefined import leave_out
from graphwright.runtimes.reference import TorchSession

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
FAST = ("llama",)  # rotary angles, RMS norms, a mask that is causal and padded


@pytest.fixture(scope="module")
def coverage() -> Iterator[Any]:
    """benchmarks/coverage.py, which imports its neighbour."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import coverage

        yield coverage
    finally:
        sys.path.remove(str(BENCHMARKS))


def names() -> list[Any]:
    """The table's names, without importing torch for it."""
    text = (BENCHMARKS / "architectures.py").read_text()
    table = text[text.index("ARCHITECTURES = {") :]
    listed = [line.split('"')[1] for line in table.splitlines() if line.startswith('    "')]
    return [pytest.param(name, marks=[] if name in FAST else [pytest.mark.full]) for name in listed]


@pytest.mark.parametrize("name", names())
def test_an_architecture_holds_in_half_precision(name: str, coverage: Any) -> None:
    spec = coverage.ARCHITECTURES[name].spec(name)
    lifted = gw.lift(gw.to_onnx(spec))
    with TorchSession(spec) as reference:
        recorded = [(Case(str(i), feeds), reference.run(feeds)) for i, feeds in enumerate(coverage.shapes(spec))]
    pairs = leave_out(lifted.model, recorded)
    feeds = [case.feeds for case, _ in pairs]
    for precision in ("fp16", "bf16"):
        for target in ("tensorrt", "ort-cuda"):
            for calibration in (None, feeds):
                done = gw.optimize(lifted, target, precision, calibration=calibration)
                verified = simulate(replaying(pairs), done.model, [case for case, _ in pairs], precision, "no GPU")
                assert verified.verdict == "simulated", (target, precision, verified.reason)
                assert not any(note.startswith("float32:") for note in done.trail.notes), "nothing needs an island"
