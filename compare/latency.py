"""Latency of several artifacts side by side: interleaved, rested, with a floor under every number.

What is measured is the wall time of one call as its caller sees it, inputs and outputs on the host, one client, calls
one after the other. Every contender takes its turn in every round, so load that comes and goes meets all of them, and
a ratio is only ever formed inside a round.
"""

from __future__ import annotations

import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Protocol

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..errors import GraphwrightError, ResourceError, UsageError
from ..manifest import Latency
from ..runtimes.base import Session
from ..spec import Feeds, pick

# Before a block nobody runs for REST seconds: a backend's idle worker threads spin for a while after a call, and a
# contender timed in that while finds its cores taken (measured: 37 ms in place of 6 ms with eight sessions open).
REST = 0.2
BLOCK = 0.1  # seconds that the counted calls of a block aim at, within MIN_CALLS to MAX_CALLS calls
MIN_CALLS, MAX_CALLS = 3, 30
WARM_SPREAD = 0.05  # warm is: the slowest of the last three calls took at most this much longer than the fastest
WARM_CALLS = 50
WARM_SHARE = 0.25  # of the budget, for all warm-ups together

# The fewest samples n at which the second largest of n is, with 99% confidence, no smaller than the quantile:
# P(Binomial(n, 1 - q) <= 1) <= 0.01, the early stopping rule of MLPerf Inference, gives 11 for q = 0.5, 64 for 0.9.
MEDIAN_FLOOR = 11
P90_FLOOR = 64
ROUNDS_FLOOR = 6  # with fewer, no two-sided 95% interval of a median exists: 2 * 0.5**5 > 0.05

PACKAGES = ("numpy", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx-cu13-libs", "torch")

NONE = "\u2013"  # what stands where there is no number

Progress = Callable[[str], None]


class Artifact(Protocol):
    """What `bench` needs of a built thing."""

    @property
    def label(self) -> str:
        """Its name in the table."""

    def missing(self) -> str | None:
        """Why this machine cannot run it; None if it can."""

    def open(self) -> Session:
        """A session to call."""


@dataclass(frozen=True)
class Samples:
    """The counted calls of one contender in ns: one block a round, in time order."""

    blocks: tuple[tuple[int, ...], ...] = ()

    @property
    def ms(self) -> list[float]:
        """All calls in ms, in time order."""
        return [ns / 1e6 for block in self.blocks for ns in block]

    def __len__(self) -> int:
        return sum(map(len, self.blocks))


@dataclass(frozen=True)
class LatencyTable:
    """One row a contender, the samples behind it in ms, and the machine it was measured on."""

    rows: dict[str, Latency]
    samples: dict[str, list[float]]
    machine: dict[str, str | int]

    def table(self) -> Table:
        """The rows as a rich table; a number that has too few samples behind it is a dash."""
        table = Table()
        table.add_column("name", overflow="fold")
        for heading in ("median ms", "p90 ms", "ratio", "samples"):
            table.add_column(heading, justify="right")
        table.add_column("verdict", overflow="fold")
        for name, row in self.rows.items():
            ratio = NONE if row.ratio_to_reference is None else f"{row.ratio_to_reference:.2f}"
            numbers = (milliseconds(row.median_ms), milliseconds(row.p90_ms), ratio, str(row.samples))
            table.add_row(Text(name), *numbers, Text(row.verdict))
        return table

    def __rich__(self) -> Table:
        return self.table()

    def __str__(self) -> str:
        console = Console(width=140)
        with console.capture() as capture:
            console.print(self.table())
        return capture.get()


def milliseconds(value: float | None) -> str:
    """`value` in three significant digits, a dash for None."""
    if value is None:
        return NONE
    return f"{value:#.3g}" if value < 99.95 else f"{value:.0f}"


def bench(
    artifacts: Sequence[Artifact],
    inputs: Feeds,
    reference: Session | None = None,
    budget: float = 20.0,
    *,
    reference_name: str = "torch",
    progress: Progress | None = None,
) -> LatencyTable:
    """Measure `artifacts`, and `reference` (an open session) if given, on the same `inputs`.

    `budget` is in seconds and bounds the measuring; opening the artifacts comes on top. An artifact whose device is
    not here gets a row without numbers.

    Raises UsageError for nothing to measure, two artifacts of one label or a bad budget; an error of a contender is
    raised again with the contender's name.
    """
    base = None if reference is None else reference_name
    labels = [artifact.label for artifact in artifacts]
    _check_labels(labels if base is None else [base, *labels])
    absent = {artifact.label: reason for artifact in artifacts if (reason := artifact.missing()) is not None}
    facts = {**machine(), "load average before": _load()}
    contenders: dict[str, Callable[[], object]] = {}
    with ExitStack() as stack:
        if reference is not None:
            contenders[reference_name] = partial(reference.run, inputs)
        for artifact in artifacts:
            if artifact.label not in absent:
                with _blaming(artifact.label):
                    session = stack.enter_context(artifact.open())
                contenders[artifact.label] = partial(session.run, inputs)
        samples = measure(contenders, budget, progress=progress)
    facts["load average after"] = _load()
    shapes = {name: list(array.shape) for name, array in inputs.items()}
    rows = summarize(samples, base, shapes)
    order = labels if base is None else [base, *labels]
    rows = {name: _absent(absent[name], shapes) if name in absent else rows[name] for name in order}
    return LatencyTable(rows, {name: own.ms for name, own in samples.items()}, facts)


def measure(
    contenders: Mapping[str, Callable[[], object]],
    budget: float,
    *,
    progress: Progress | None = None,
    clock: Callable[[], int] = time.perf_counter_ns,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, Samples]:
    """Call the contenders in turns until `budget` seconds are spent; `clock` is in ns, `sleep` takes seconds.

    First each is warmed up until three calls in a row agree within WARM_SPREAD, or a cap. Then come rounds: every
    contender has one block of calls, after a rest and one call that is not counted; who begins moves on by one each
    round (a cyclic Latin square). A round that is begun is finished, since to drop slow rounds would flatter; one
    begins only if the longest so far would still fit. So a small budget gives few samples, perhaps none, and the
    budget is overrun by no more than one warm-up call, or by what a round takes longer than those before it.

    Raises UsageError for a bad budget; an error of a contender is raised again with the contender's name.
    """
    if not (math.isfinite(budget) and budget > 0):
        raise UsageError(f"The time budget must be a number of seconds above 0, but is {budget!r}.")
    say, watch = progress or (lambda _: None), _Watch(clock, sleep)
    began = watch.now()
    warm = _warm_up(contenders, budget, watch, say)
    if not contenders or len(warm) < len(contenders):
        return {name: Samples() for name in contenders}
    calls = {name: min(max(round(BLOCK * 1e9 / ns), MIN_CALLS), MAX_CALLS) for name, ns in warm.items()}
    expected = sum(round(REST * 1e9) + (calls[name] + 1) * ns for name, ns in warm.items())
    blocks: dict[str, list[tuple[int, ...]]] = {name: [] for name in contenders}
    names, longest, number = list(contenders), 0, 0
    while (start := watch.now()) + expected <= began + round(budget * 1e9):
        say(f"round {number + 1}, {(start - began) / 1e9:.0f} of {budget:g} s")
        first = number % len(names)
        for name in names[first:] + names[:first]:
            blocks[name].append(_block(name, contenders[name], calls[name], watch))
        number += 1
        expected = longest = max(longest, watch.now() - start)
    return {name: Samples(tuple(own)) for name, own in blocks.items()}


def summarize(
    samples: Mapping[str, Samples], reference: str | None, shapes: Mapping[str, list[int]]
) -> dict[str, Latency]:
    """The numbers and the verdict of each contender; outliers are kept.

    A median needs MEDIAN_FLOOR samples, a 90th percentile P90_FLOOR (where they come from stands beside them); below
    the floor there is no number. `ratio_to_reference` is the reference's median over the contender's own. The verdict
    gives the median of the ratios of each round's medians, with its 95% bootstrap interval over rounds: unlike the
    ratio of the two medians it is not moved by load that differs between rounds.

    Raises UsageError if `reference` is not among `samples`.
    """
    base = None if reference is None else samples[pick("reference", reference, samples)]
    medians = {name: _quantile(own, 0.5, MEDIAN_FLOOR) for name, own in samples.items()}
    rows = {}
    for name, own in samples.items():
        median, against = medians[name], None if reference is None else medians[reference]
        rows[name] = Latency(
            inputs={key: list(shape) for key, shape in shapes.items()},
            median_ms=median,
            p90_ms=_quantile(own, 0.9, P90_FLOOR),
            ratio_to_reference=against / median if against is not None and median is not None else None,
            samples=len(own),
            verdict=_verdict(name, own, reference, base),
        )
    return rows


def machine() -> dict[str, str | int]:
    """What this machine is, as far as it tells: processor, cores, memory, versions."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 0
    facts: dict[str, str | int] = {
        "cpu": _cpu_model(),
        "cores": cores,
        "memory": f"{psutil.virtual_memory().total / 2**30:.1f} GiB",
        "system": platform.platform(),
        "python": platform.python_version(),
    }
    installed = {found.name.lower(): found.version for found in metadata.distributions() if found.name}
    return facts | {name: installed[name] for name in PACKAGES if name in installed}


def _check_labels(labels: Sequence[str]) -> None:
    if not labels:
        raise UsageError("Nothing to measure: give at least one artifact.")
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise UsageError(f"Two contenders have one label: {', '.join(twice)}. Give each its own.")


@contextmanager
def _blaming(name: str) -> Iterator[None]:
    """Raise what the block raises again, of the same kind where the kind is ours, with `name` in front."""
    try:
        yield
    except GraphwrightError as error:
        raise type(error)(f"{name}: {error}") from error
    except MemoryError as error:
        raise ResourceError(f"{name}: memory ran out. Use smaller inputs or fewer contenders at once.") from error
    except Exception as error:
        raise GraphwrightError(f"{name} raised {type(error).__name__}: {error}") from error


@dataclass(frozen=True)
class _Watch:
    now: Callable[[], int]  # ns
    sleep: Callable[[float], None]  # seconds

    def time(self, call: Callable[[], object]) -> int:
        """ns of one call; at least 1, since a clock may be coarser than a call and times are divided by."""
        began = self.now()
        call()
        return max(self.now() - began, 1)


def _warm_up(
    contenders: Mapping[str, Callable[[], object]], budget: float, watch: _Watch, say: Progress
) -> dict[str, int]:
    """The ns of a warm call of each contender; those that `budget` left no time for are not in it."""
    deadline = watch.now() + round(budget * 1e9)
    share = round(budget * 1e9 * WARM_SHARE / max(len(contenders), 1))
    warm: dict[str, int] = {}
    for name, call in contenders.items():
        if watch.now() + round(REST * 1e9) >= deadline:
            break
        watch.sleep(REST)
        limit = min(watch.now() + share, deadline)
        times: list[int] = []
        with _blaming(name):
            while not _settled(times) and len(times) < WARM_CALLS and (not times or watch.now() < limit):
                times.append(watch.time(call))
        warm[name] = round(statistics.median(times[-3:]))
        state = "warm" if _settled(times) else "not steady yet"
        say(f"{name}: {state} after {len(times)} calls, about {milliseconds(warm[name] / 1e6)} ms")
    return warm


def _settled(times: Sequence[int]) -> bool:
    last = times[-3:]
    return len(last) == 3 and max(last) <= min(last) * (1 + WARM_SPREAD)


def _block(name: str, call: Callable[[], object], count: int, watch: _Watch) -> tuple[int, ...]:
    watch.sleep(REST)
    with _blaming(name):
        call()  # not counted: it wakes this contender's threads and refills its caches
        return tuple([watch.time(call) for _ in range(count)])


def _quantile(samples: Samples, q: float, floor: int) -> float | None:
    return float(np.quantile(samples.ms, q)) if len(samples) >= floor else None


def _verdict(name: str, own: Samples, reference: str | None, base: Samples | None) -> str:
    if len(own) < MEDIAN_FLOOR:
        return f"too few samples ({len(own)} of {MEDIAN_FLOOR}): raise --budget"
    if reference is None or base is None:
        return f"measured in {len(own.blocks)} rounds; no reference to compare with"
    if name == reference:
        return "the reference"
    if len(base) < MEDIAN_FLOOR:
        return f"too few samples of {reference} ({len(base)} of {MEDIAN_FLOOR}): raise --budget"
    return _comparison(own, base, reference)


def _comparison(own: Samples, base: Samples, reference: str) -> str:
    rounds = len(own.blocks)
    if rounds < ROUNDS_FLOOR:
        return f"too few rounds ({rounds} of {ROUNDS_FLOOR}) to compare with {reference}: raise --budget"
    middle, low, high = speedup(own, base)
    if round(low, 2) <= 1 <= round(high, 2):
        return f"no difference shown from {reference} (95% CI {low:.2f} to {high:.2f}, {rounds} rounds)"
    words = f"{middle:.2f}x faster than" if middle > 1 else f"slower: {middle:.2f}x the speed of"
    return f"{words} {reference} (95% CI {low:.2f} to {high:.2f}, {rounds} rounds)"


def speedup(own: Samples, base: Samples) -> tuple[float, float, float]:
    """How many times as fast as `base`: the median of the ratios of each round's medians, its 95% interval low, high.

    Both must be of one `measure`, with a round at least; fewer than ROUNDS_FLOOR rounds prove nothing.
    """
    ratios = np.array([np.median(b) / np.median(a) for a, b in zip(own.blocks, base.blocks, strict=True)])
    return float(np.median(ratios)), *interval(ratios)


def interval(ratios: np.ndarray) -> tuple[float, float]:
    """95% percentile bootstrap interval of the median; the seed is fixed, so the same samples give the same words."""
    picks = np.random.default_rng(0).integers(0, len(ratios), size=(2000, len(ratios)))
    low, high = np.quantile(np.median(ratios[picks], axis=1), [0.025, 0.975])
    return float(low), float(high)


def _absent(reason: str, shapes: Mapping[str, list[int]]) -> Latency:
    verdict = f"no device here: {reason}"
    return Latency(
        inputs=dict(shapes), median_ms=None, p90_ms=None, ratio_to_reference=None, samples=0, verdict=verdict
    )


def _cpu_model() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.lower().startswith("model name")]
    return next(iter(named), platform.processor() or platform.machine())


def _load() -> str:
    return f"{psutil.getloadavg()[0]:.2f}"
