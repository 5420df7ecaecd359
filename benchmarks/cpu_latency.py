"""Latency of four transformers on this machine's CPU: graphwright beside everything else that one can install.

    python benchmarks/cpu_latency.py [--budget 3600] [--threads 1 2] [--models minilm ...] [--shapes 1x128 ...]
                                     [--contenders graphwright ...] [--results FILE] [--write docs/performance.md]

Every contender is a process of its own that holds its model and times its own calls; one of them runs at a time, in
blocks with rests between them, and who begins moves on by one each round. None is timed whose outputs differ from
torch's. A ratio is formed inside a round and stands with its 95% interval. `--peers-python` runs the peers, and makes
their graphs, by the interpreter of another environment. Graphs are kept in `--cache`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import cpu_floor
import cpu_report
import numpy as np
from cpu_children import Child, Clock, Failure, Graphs, digest
from cpu_models import MODELS, Feeds
from cpu_report import Cell, Row
from cpu_table import BASE, CONTENDERS, LIMITS, PEERS, Contender
from rich.console import Console

from graphwright.compare import latency

LIMIT = 1e-4  # of the largest |a - b| over the largest |b| of an output: float32 in another order stays below 1e-5
LEAST = 5.0  # seconds of measuring at one size, whatever its profiles and its limits took
DEFAULT = ("minilm", "bert-base", "vit-b16", "gpt2")


BEGAN = time.monotonic()


def say(text: str) -> None:
    print(f"{time.monotonic() - BEGAN:6.0f} s  {text}", file=sys.stderr, flush=True)


class Bench:
    """The contenders of one model on so many threads, each in its process. Use it in a `with` block."""

    def __init__(self, model: str, threads: int, graphs: Graphs, contenders: Mapping[str, Contender]) -> None:
        self.model, self.threads, self.graphs, self.contenders = model, threads, graphs, contenders
        self.clock, self.stack = Clock(), ExitStack()
        self.children: dict[str, Child] = {}
        self.limits: dict[str, Child] = {}
        self.errors: dict[str, str] = {}

    def __enter__(self) -> Self:
        self.reference = self._open("torch", self.model)
        for name, contender in self.contenders.items():
            say(f"{self.model}, {self.threads} thread(s): opening {name}")
            try:
                source = self.graphs.source(contender, self.model, self.threads)
                self.children[name] = self._open(contender.engine, source, ours=bool(contender.target))
            except Failure as error:
                self.errors[name] = str(error)
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def cell(self, batch: int, length: int, budget: float) -> Cell:
        """Parity, profiles, limits and latency at one size, in about `budget` seconds."""
        end = time.monotonic() + budget
        cell = Cell(self.model, self.threads, batch, length, machine=facts(self.graphs))
        right = self._right(cell, MODELS[self.model].feeds(batch, length))
        for name, child in right.items():
            say(f"{cell.key}: profile of {name}")
            profile = child.ask("profile")["profile"]
            if profile is not None:
                cell.rows[name].shares, cell.rows[name].top = profile["shares"], profile["top"]
            if name == BASE:
                self._set_limits(cell, [(m, k, n) for m, k, n in profile["products"]])
        calls = {name: child.call for name, child in [*right.items(), *self.limits.items()]}
        left = max(end - time.monotonic(), LEAST)
        samples = latency.measure(calls, left, clock=self.clock, progress=lambda text: say(f"{cell.key}: {text}"))
        enter(cell, samples)
        return cell

    def _open(self, engine: str, source: str, *, ours: bool = False, fetch: int | None = None) -> Child:
        python = sys.executable if ours else self.graphs.peers
        return self.stack.enter_context(Child(python, engine, source, self.threads, self.clock, fetch))

    def _right(self, cell: Cell, feeds: Feeds) -> dict[str, Child]:
        """The children whose outputs are torch's; of the others the row says why they are not timed."""
        right = {}
        self.reference.feed(feeds)
        wanted = self.reference.outputs()
        for name in self.contenders:
            cell.rows[name] = row = Row(error=self.errors.get(name, ""))
            if name not in self.children:
                continue
            say(f"{cell.key}: outputs of {name}")
            try:
                self.children[name].feed(feeds)
                row.difference = difference(self.children[name].outputs(), wanted)
            except Failure as error:
                row.error = str(error)
                continue
            if row.difference <= LIMIT:
                right[name] = self.children[name]
            else:
                row.error = f"its outputs are off torch's by {row.difference:.1e}, allowed is {LIMIT:.0e}"
        return right

    def _set_limits(self, cell: Cell, products: list[cpu_floor.Product]) -> None:
        """The products of the model alone, and a large one, as rows of their own."""
        cell.gflop = cpu_floor.flops(products) / 1e9
        for name, limit in LIMITS.items():
            alone = cpu_floor.LARGE if name.startswith("sgemm") else products
            if name not in self.limits:
                self.limits[name] = self._open(limit.engine, self._limit_source(limit, alone), fetch=1)
            self.limits[name].feed(cpu_floor.feeds(alone))

    def _limit_source(self, limit: Contender, products: list[cpu_floor.Product]) -> str:
        if limit.engine == "torch":
            return "sgemm"
        weights = [(k, n) for _, k, n in products]
        path = self.graphs.folder / f"products-{digest(repr(weights), repr(list(cpu_floor.feeds(products))))}.onnx"
        return str(path if path.exists() else cpu_floor.graph(products, path))


def difference(outputs: list[np.ndarray], wanted: list[np.ndarray]) -> float:
    """The largest |a - b| over the largest |b|, of the output where it is worst; infinite where it is no number."""
    if [each.shape for each in outputs] != [each.shape for each in wanted]:
        raise Failure(f"its outputs are {[each.shape for each in outputs]}, torch's {[each.shape for each in wanted]}")
    worst = max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(outputs, wanted, strict=True))
    return worst if np.isfinite(worst) else float("inf")


def enter(cell: Cell, samples: Mapping[str, latency.Samples]) -> None:
    """The times into the rows, and how they compare."""
    rows = {name: cell.rows.get(name) or cell.limits.setdefault(name, Row()) for name in samples}
    for name, own in samples.items():
        row = rows[name]
        row.samples, row.rounds = len(own), len(own.blocks)
        row.median_ms = statistics.median(own.ms) if len(own) else None
        if BASE in samples and row.rounds:
            row.ratio = ratio(own, samples[BASE])
    peers = {name: row.median_ms for name, row in cell.rows.items() if row.median_ms and name in PEERS}
    best = {min(peers, key=peers.__getitem__)} if peers else set()
    ort = {name: ms for name, ms in peers.items() if CONTENDERS[name].engine == "onnxruntime"}
    best |= {min(ort, key=ort.__getitem__)} if ort else set()
    for name, row in cell.rows.items():
        if CONTENDERS[name].target and row.rounds:
            row.against = {peer: ratio(samples[name], samples[peer]) for peer in sorted(best)}
    large = [row.median_ms for name, row in cell.limits.items() if name.startswith("sgemm")]
    cell.peak = max((cpu_floor.flops(cpu_floor.LARGE) / 1e6 / ms for ms in large if ms), default=0.0)


def ratio(own: latency.Samples, base: latency.Samples) -> cpu_report.Ratio:
    """How many times as fast as `base`, with the interval where there are rounds enough for one."""
    middle, low, high = latency.speedup(own, base)
    return (middle, low, high) if len(own.blocks) >= latency.ROUNDS_FLOOR else (middle, None, None)


def facts(graphs: Graphs) -> dict[str, str | int]:
    """The machine, the versions of the peers, the day."""
    return {**latency.machine(), **graphs.versions(), "date": time.strftime("%Y-%m-%d")}


def run(asked: argparse.Namespace, graphs: Graphs) -> list[Cell]:
    """The cells in turn, each with its share of the time that is left, by the size of its products."""
    end = time.monotonic() + asked.budget
    chosen = {name: CONTENDERS[name] for name in CONTENDERS if name == BASE or name in asked.contenders}
    todo = {
        (threads, model): [shape for shape in MODELS[model].shapes if not asked.shapes or shape in asked.shapes]
        for threads in asked.threads
        for model in asked.models
    }
    left = sum(weight(model, *shape) for (_, model), shapes in todo.items() for shape in shapes)
    cells = []
    console = Console(width=100)
    for (threads, model), shapes in todo.items():
        if time.monotonic() > end:
            say(f"the budget of {asked.budget:g} s is spent: {model} on {threads} thread(s) is not measured")
            continue
        with Bench(model, threads, graphs, chosen) as bench:
            for shape in shapes:
                share = weight(model, *shape) / left
                left -= weight(model, *shape)
                batch, length = shape
                cells.append(bench.cell(batch, length, max(end - time.monotonic(), 0) * share))
                console.print(cpu_report.table(cells[-1]), *cpu_report.remarks(cells[-1]), "", sep="\n")
                if asked.results:
                    cpu_report.keep(cells, asked.results)
    return cells


def weight(model: str, batch: int, length: int) -> float:
    """The work at one size: rests, profiles and compilations, and blocks of at least four calls at 100 GFLOP/s."""
    products: float = MODELS[model].flops * batch * length
    return 0.8 + 4 * products / 100e9


def shape(text: str) -> tuple[int, int]:
    batch, _, length = text.partition("x")
    return int(batch), int(length)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=3600, help="seconds for all")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--models", nargs="+", default=list(DEFAULT), choices=DEFAULT)
    parser.add_argument("--shapes", type=shape, nargs="+", help="batch x length, as 1x128")
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=list(CONTENDERS))
    parser.add_argument("--peers-python", default=sys.executable, help="the interpreter of the peers' environment")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "graphwright-benchmark")
    parser.add_argument("--results", type=Path, help="keep the numbers in this file, in place of older ones")
    parser.add_argument("--write", type=Path, help="replace the tables between the markers of this file")
    asked = parser.parse_args()
    cells = run(asked, Graphs(asked.cache, asked.peers_python))
    if asked.write:
        cpu_report.write(asked.write, cpu_report.read(asked.results) if asked.results else cells)


if __name__ == "__main__":
    main()
