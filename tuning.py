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
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from .compare.latency import ROUNDS_FLOOR, machine
from .errors import BuildError, InputError, ResourceError
from .passes import TARGETS, Lifted, Optimized, optimize
from .runtimes import RUNTIMES
from .runtimes.child import NORMAL, PYTHON, Limits, about, ask, error_of
from .spec import Feeds
from .stages import GRAPH, digest_of, save_graph
from .store import Store, key, own_digest, versions

COMMAND = (*PYTHON, "graphwright.tuning_child")
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
    reason: str = ""  # why it could not be measured, or not well enough


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
    limits: Limits = NORMAL,
    progress: Progress = lambda _: None,
) -> Tuned:
    """Measure the alternatives of `target` (`name[@device][:precision]`) on each of `inputs`, within `budget` seconds.

    What the user set in `options` is not tried. A form that cannot be run, or not within `limits`, is not taken.
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
        made = _search(lifted, target, options, inputs, open_classes, budget, limits, progress)
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
    limits: Limits,
    progress: Progress,
) -> Tuned:
    """Class by class, the best so far against each other form."""
    default = {name: forms[0] for name, forms in classes.items()}
    best, trials = default, list[Trial]()
    count = sum(len(forms) - 1 for forms in classes.values()) + 1

    def trial(name: str, form: str, against: str, other: Mapping[str, str], base: Mapping[str, str]) -> bool:
        progress(f"{name}: {form} against {against}, {len(trials) + 1} of {count}")
        graphs = [optimize(lifted, target, options=options, choices=choices) for choices in (base, other)]
        try:
            ratio, low, high, rounds = _compare(graphs, inputs, max(budget / count, SECONDS), limits)
        except (BuildError, InputError, ResourceError) as error:
            trials.append(Trial(name, form, against, 1.0, 1.0, 1.0, 0, taken=False, reason=str(error)))
            progress(f"{name}: {form} cannot be measured: {error}")
            return False
        taken = rounds >= ROUNDS_FLOOR and low > 1 and ratio > SMALLEST_GAIN
        few = f"too few rounds ({rounds} of {ROUNDS_FLOOR}): give more seconds" if rounds < ROUNDS_FLOOR else ""
        trials.append(Trial(name, form, against, ratio, low, high, rounds, taken, few))
        progress(f"{name}: {form} is {ratio:.3f}x ({low:.3f} to {high:.3f}){', taken' if taken else ''}")
        return taken

    for name, forms in classes.items():
        for form in forms[1:]:
            other = best | {name: form}
            best = other if trial(name, form, best[name], other, best) else best
    if best != default and not trial("all classes", "those taken", "the defaults", best, default):
        best = default
    return Tuned(best, trials)


def _compare(
    graphs: Sequence[Optimized], inputs: Sequence[Feeds], budget: float, limits: Limits
) -> tuple[float, float, float, int]:
    """Speed of the second over the first: the geometric mean over `inputs`, its 95% interval, and the rounds.

    In a process of its own: a kernel that crashes on a form costs the form alone.
    """
    job, settings = graphs[0].job, graphs[0].settings
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number, graph in enumerate(graphs):
            (folder / str(number)).mkdir()
            save_graph(graph.model, folder / str(number) / GRAPH)
        for number, feeds in enumerate(inputs):
            save_file({key: np.ascontiguousarray(array) for key, array in feeds.items()}, folder / f"{number}.inputs")
        question = {
            **about(RUNTIMES[TARGETS[job.target].runtime], settings),
            "graphs": [str(folder / str(number) / GRAPH) for number in range(len(graphs))],
            "inputs": [str(folder / f"{number}.inputs") for number in range(len(inputs))],
            "seconds": budget,
        }
        answer, _ = ask(COMMAND, f"The comparison of two forms for {job}", question, limits)
    if "error" in answer:
        raise error_of(answer, answer["message"])
    return answer["ratio"], answer["low"], answer["high"], answer["rounds"]
