"""Choice by measurement: where a target has several forms for a class of sites, the fastest on this machine.

One class after the other is tried against the best so far: whole models, run in turns on the same inputs, in pairs of
blocks between rests. A form is taken only if the interval of its ratio lies above 1, and all that were taken must then
be faster together than the defaults, measured anew: of many tries one would else be taken by luck. What was found is
kept in the store under the graph, the processor, the versions and the shapes, so that it is measured once.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .compare.latency import ROUNDS_FLOOR, Samples, interval, machine, measure
from .passes import TARGETS, Lifted, Optimized, optimize
from .runtimes import RUNTIMES
from .spec import Feeds
from .stages import GRAPH, digest_of, save_graph
from .store import Store, key, own_digest, versions

SMALLEST_GAIN = 1.005  # a form is not taken for less: half a percent is no gain that a user sees
SECONDS = 2.0  # of measuring a form, at least; below, too few rounds
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Trial:
    """One form against the best before it; `ratio` above 1 is faster, `low` and `high` its 95% interval."""

    choice: str
    form: str
    against: str
    ratio: float
    low: float
    high: float
    rounds: int
    taken: bool


@dataclass(frozen=True)
class Tuned:
    """The forms that were the fastest, by class; what was measured, on what."""

    choices: dict[str, str]
    trials: list[Trial] = field(default_factory=list)
    shapes: list[dict[str, list[int]]] = field(default_factory=list)
    machine: dict[str, str | int] = field(default_factory=dict)
    stored: bool = False


def tune(
    lifted: Lifted,
    target: str,
    inputs: Sequence[Feeds],
    *,
    options: Mapping[str, Any] | None = None,
    budget: float = 60.0,
    store: Store | None = None,
    progress: Progress = lambda _: None,
) -> Tuned:
    """Measure the alternatives of `target` (`name[@device][:precision]`) on each of `inputs`, within `budget` seconds.

    What the user set in `options` is not tried. Raises what building or running a graph raises.
    """
    job = optimize(lifted, target, options=options).job
    open_classes = _alternatives(lifted, target, options or {})
    if not open_classes:
        return Tuned({})
    store = store or Store()
    shapes = [{name: list(array.shape) for name, array in feeds.items()} for feeds in inputs]
    facts = machine()
    parts = {"job": str(job), "graph": digest_of(lifted.model), "options": dict(options or {}), "shapes": shapes}
    acting = versions("onnxruntime", "onnxruntime-gpu", "openvino")
    stage = key("tune", **parts, cpu=facts["cpu"], cores=facts["cores"], versions=acting, own=own_digest())

    def write(folder: Path) -> None:
        made = _search(lifted, target, options, inputs, open_classes, budget, progress)
        (folder / "tuned.json").write_text(json.dumps(asdict(made)))

    folder, stored = store.take(stage, write)
    found = json.loads((folder / "tuned.json").read_text())
    trials = [Trial(**trial) for trial in found["trials"]]
    return Tuned(found["choices"], trials, shapes, facts, stored)


def _alternatives(lifted: Lifted, target: str, options: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """The classes that have a choice: several forms that give different graphs, and not set by the user."""
    job = optimize(lifted, target, options=options).job
    list_forms = TARGETS[job.target].alternatives
    if list_forms is None:
        return {}
    default = _spelled(optimize(lifted, target, options=options))
    found: dict[str, tuple[str, ...]] = {}
    for name, (first, *others) in list_forms(lifted.model).items():
        real = [
            form
            for form in others
            if _spelled(optimize(lifted, target, options=options, choices={name: form})) != default
        ]
        if real:
            found[name] = (first, *real)
    return found


def _spelled(optimized: Optimized) -> list[tuple[str, str, int]]:
    return [(node.domain, node.op_type, len(node.inputs)) for node in optimized.model.graph.all_nodes()]


def _search(
    lifted: Lifted,
    target: str,
    options: Mapping[str, Any] | None,
    inputs: Sequence[Feeds],
    classes: Mapping[str, tuple[str, ...]],
    budget: float,
    progress: Progress,
) -> Tuned:
    """Class by class, the best so far against each other form."""
    default = {name: forms[0] for name, forms in classes.items()}
    best, trials = default, list[Trial]()
    count = sum(len(forms) - 1 for forms in classes.values()) + 1

    def trial(name: str, form: str, against: str, other: Mapping[str, str], base: Mapping[str, str]) -> bool:
        progress(f"{name}: {form} against {against}, {len(trials) + 1} of {count}")
        graphs = [optimize(lifted, target, options=options, choices=choices) for choices in (base, other)]
        ratio, low, high, rounds = _compare(graphs, inputs, max(budget / count, SECONDS))
        taken = rounds >= ROUNDS_FLOOR and low > 1 and ratio > SMALLEST_GAIN
        trials.append(Trial(name, form, against, ratio, low, high, rounds, taken))
        progress(f"{name}: {form} is {ratio:.3f}x ({low:.3f} to {high:.3f}){', taken' if taken else ''}")
        return taken

    for name, forms in classes.items():
        for form in forms[1:]:
            other = best | {name: form}
            best = other if trial(name, form, best[name], other, best) else best
    if best != default and not trial("all classes", "those taken", "the defaults", best, default):
        best = default
    return Tuned(best, trials)


def _compare(graphs: Sequence[Optimized], inputs: Sequence[Feeds], budget: float) -> tuple[float, float, float, int]:
    """Speed of the second over the first: the geometric mean over `inputs`, its 95% interval, and the rounds."""
    with ExitStack() as stack:
        sessions = []
        for graph in graphs:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            save_graph(graph.model, folder / GRAPH)
            runtime = RUNTIMES[TARGETS[graph.job.target].runtime]
            sessions.append(stack.enter_context(runtime.open(folder / GRAPH, graph.settings)))
        calls = {
            f"{which} {number}": partial(session.run, feeds)
            for number, feeds in enumerate(inputs)
            for which, session in enumerate(sessions)
        }
        samples = measure(calls, budget)
    ratios = [_ratios(samples[f"0 {number}"], samples[f"1 {number}"]) for number in range(len(inputs))]
    rounds = min(map(len, ratios))
    if rounds < 2:
        return 1.0, 1.0, 1.0, rounds
    together = np.exp(np.mean([np.log(own[:rounds]) for own in ratios], axis=0))
    low, high = interval(together)
    return float(np.median(together)), low, high, rounds


def _ratios(first: Samples, second: Samples) -> np.ndarray:
    """Median of the first over median of the second, round by round."""
    return np.array([np.median(a) / np.median(b) for a, b in zip(first.blocks, second.blocks, strict=True)])
