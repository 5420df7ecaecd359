"""Every architecture of the coverage bench: exported, every attention lifted, every output right, a smaller graph.

Each is exported once in `make test`, the four ways of exporting taken in turn; all four in `make test-full`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
WAYS = ((18, "sdpa"), (23, "eager"), (23, "sdpa"), (18, "eager"))


@pytest.fixture(scope="module")
def coverage() -> Any:
    """benchmarks/coverage.py, which imports its neighbour."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import coverage

        yield coverage
    finally:
        sys.path.remove(str(BENCHMARKS))


def names() -> list[str]:
    """The table's names, without importing torch for it."""
    text = (BENCHMARKS / "architectures.py").read_text()
    table = text[text.index("ARCHITECTURES = {") :]
    return [line.split('"')[1] for line in table.splitlines() if line.startswith('    "')]


def ways() -> list[Any]:
    listed = []
    for index, name in enumerate(names()):
        for number, (opset, attention) in enumerate(WAYS):
            marks = [] if number == index % len(WAYS) else [pytest.mark.full]
            listed.append(pytest.param(name, opset, attention, marks=marks, id=f"{name}-{opset}-{attention}"))
    return listed


@pytest.mark.parametrize(("name", "opset", "attention"), ways())
def test_an_architecture_is_understood(name: str, opset: int, attention: str, coverage: Any) -> None:
    row = coverage.measure(name, opset, attention)
    assert not row.error
    assert not row.missed
    assert row.lifted == row.sites
    assert row.worst <= coverage.LIMIT
    assert row.after < row.before
    assert row.holds


def test_there_are_thirty_architectures_of_seventy_sites(coverage: Any) -> None:
    assert len(names()) == 30 == len(coverage.ARCHITECTURES)
    assert sum(architecture.sites for architecture in coverage.ARCHITECTURES.values()) == 70
