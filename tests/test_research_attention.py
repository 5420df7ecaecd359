"""Attention as papers write it: each is exported, lifted to the op that is expected, and computes what torch does."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import graphwright as gw
from graphwright.compare.undefined import UndefinedRows
from graphwright.runtimes.reference import TorchSession

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
OPSETS = (18, 23)
LIMIT = 1e-5  # of |a - b| / max(1, |b|): float32, sums of at most 32 terms in another order
SIZES = (
    {"batch": 3, "sequence": 5, "keys": 9, "past": 4, "height": 3, "width": 7},
    {"batch": 1, "sequence": 1, "keys": 3, "past": 2, "height": 4, "width": 1},
)


@pytest.fixture(scope="module")
def benchmarks() -> Iterator[tuple[Any, Any]]:
    """benchmarks/research_attention.py, and benchmarks/coverage.py for its measure."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import coverage
        import research_attention

        yield research_attention, coverage
    finally:
        sys.path.remove(str(BENCHMARKS))


def names() -> list[str]:
    """The table's names, without importing torch for it."""
    text = (BENCHMARKS / "research_attention.py").read_text()
    return [line.split('"')[1] for line in text[text.index("RESEARCH = {") :].splitlines() if line.startswith('    "')]


def ways() -> list[Any]:
    """Each name at one of the opsets in turn, and at the other by `make test-full`."""
    return [
        pytest.param(name, opset, id=f"{name}-{opset}", marks=[] if (index + place) % 2 else [pytest.mark.full])
        for index, name in enumerate(names())
        for place, opset in enumerate(OPSETS)
    ]


def shapes(spec: gw.ModelSpec) -> Iterator[dict[str, np.ndarray]]:
    """The example's inputs; batch 3 with a row padded; batch 1 and the shortest lengths."""
    random = np.random.default_rng(1)
    example = {name: tensor.numpy() for name, tensor in spec.tensors.items()}
    yield example
    for sizes in SIZES:
        feeds: dict[str, np.ndarray] = {}
        for name, array in example.items():
            dims = spec.dynamic.get(name, {})
            shape = [sizes.get(dims.get(axis, ""), size) for axis, size in enumerate(array.shape)]
            if name == "mask":
                feeds[name] = np.ones(shape, array.dtype)
                feeds[name][1:2, -2:] = 0
            else:
                feeds[name] = random.standard_normal(shape).astype(array.dtype)
        yield feeds


@pytest.mark.parametrize(("name", "opset"), ways())
def test_a_paper_is_understood(name: str, opset: int, benchmarks: tuple[Any, Any]) -> None:
    research, coverage = benchmarks
    row = research.RESEARCH[name]
    spec = row.spec(name)
    golden = gw.to_onnx(spec, opset)
    with TorchSession(spec) as reference:
        pairs = [(feeds, reference.run(feeds)) for feeds in shapes(spec)]
    lifted = gw.lift(golden)
    sites = [site for site in lifted.log.sites if site.kind == "attention"]
    assert [site.status for site in sites] == ["lifted"] * len(row.sites), sites
    assert tuple(site.became for site in sites) == row.sites
    custom = [site for site in sites if site.became not in ("Attention", "graphwright.LinearAttention")]
    assert all(site.reason for site in custom)
    with UndefinedRows(lifted.model) as undefined:
        for model in (lifted.model, gw.optimize(lifted, target="ort-cpu").model):
            worst, left_out = coverage.difference(model, pairs, undefined)
            assert worst <= LIMIT
            assert not left_out


def test_the_table_is_whole(benchmarks: tuple[Any, Any]) -> None:
    assert names() == list(benchmarks[0].RESEARCH)
