"""bench: artifacts opened, measured side by side, closed; absent devices and errors said by name."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pytest

from graphwright.compare.latency import (
    NONE,
    P90_FLOOR,
    bench,
)
from graphwright.errors import GraphwrightError, UsageError
from graphwright.runtimes.base import Session, TensorInfo

SHAPES = {"x": [1, 16]}
FEEDS = {"x": np.zeros((1, 16), np.float32)}


class Multiply(Session):
    """A real, small piece of work: `times` products of a small matrix."""

    inputs = (TensorInfo("x", "float32", (1, "n")),)
    outputs = (TensorInfo("y", "float32", (1, "n")),)
    provider = "numpy"

    def __init__(self, times: int) -> None:
        self.times = times
        self.weight = np.eye(16, dtype=np.float32)
        self.closed = False

    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        y = feeds["x"]
        for _ in range(self.times):
            y = y @ self.weight
        return {"y": y}

    def _close(self) -> None:
        self.closed = True


@dataclass
class Built:
    label: str
    reason: str | None = None
    times: int = 3
    opened: list[Multiply] = field(default_factory=list)

    def missing(self) -> str | None:
        return self.reason

    def open(self) -> Session:
        self.opened.append(Multiply(self.times))
        return self.opened[-1]


def test_bench_on_the_real_clock() -> None:
    here, absent, reference = Built("numpy:fp32"), Built("tensorrt:fp16", "no NVIDIA GPU"), Multiply(6)
    said: list[str] = []
    table = bench([here, absent], FEEDS, reference, budget=4.5, progress=said.append)
    assert list(table.rows) == ["torch", "numpy:fp32", "tensorrt:fp16"]
    assert set(table.samples) == {"torch", "numpy:fp32"}
    row = table.rows["numpy:fp32"]
    assert row.samples == len(table.samples["numpy:fp32"]) >= P90_FLOOR
    assert row.median_ms == pytest.approx(np.median(table.samples["numpy:fp32"]))
    assert (row.p90_ms or 0) >= (row.median_ms or 0) > 0
    assert here.opened[0].closed
    assert not reference.closed
    assert any(text.startswith("round 1,") for text in said)
    assert table.machine["numpy"] == np.__version__
    assert {"cpu", "cores", "load average before", "load average after"} <= set(table.machine)


def test_an_artifact_without_its_device_is_not_opened_and_has_no_numbers() -> None:
    absent = Built("tensorrt:fp16", "no NVIDIA GPU")
    table = bench([absent], FEEDS, budget=1)
    row = table.rows["tensorrt:fp16"]
    assert (row.median_ms, row.p90_ms, row.ratio_to_reference, row.samples) == (None, None, None, 0)
    assert row.verdict == "no device here: no NVIDIA GPU"
    assert row.inputs == {"x": [1, 16]}
    assert not absent.opened


def test_sessions_are_closed_when_one_raises() -> None:
    good, bad = Built("good"), Built("bad")
    with pytest.raises(GraphwrightError, match=r"^good: The inputs are x; came y"):
        bench([good, bad], {"y": FEEDS["x"]}, budget=2)
    assert [session.closed for session in good.opened + bad.opened] == [True, True]


def test_an_artifact_that_does_not_open_is_named() -> None:
    class Broken(Built):
        def open(self) -> Session:
            raise OSError("file is cut short")

    with pytest.raises(GraphwrightError, match=r"^broken raised OSError: file is cut short"):
        bench([Broken("broken")], FEEDS, budget=1)


def test_labels_must_differ_and_exist() -> None:
    with pytest.raises(UsageError, match=r"Two contenders have one label: a\."):
        bench([Built("a"), Built("a")], FEEDS)
    with pytest.raises(UsageError, match=r"Two contenders have one label: torch\."):
        bench([Built("torch")], FEEDS, Multiply(1))
    with pytest.raises(UsageError, match="Nothing to measure"):
        bench([], FEEDS)


def test_the_table_shows_names_as_they_are_and_dashes_for_missing_numbers() -> None:
    text = str(bench([Built("[red]odd[/red]", "no [bold]GPU")], FEEDS, budget=1))
    assert "[red]odd[/red]" in text
    assert "no [bold]GPU" in text
    assert text.count(NONE) == 3
