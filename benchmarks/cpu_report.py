"""What the CPU benchmark says: tables for a terminal, JSON to keep, Markdown for the documentation."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cpu_profile import CLASSES
from cpu_table import BASE, CONTENDERS
from rich.table import Table

from graphwright.compare.latency import NONE, milliseconds

Ratio = tuple[float, float, float]  # middle, and the 95% interval of it


@dataclass
class Row:
    """One contender at one size; the ratios are how many times as fast it is."""

    median_ms: float | None = None
    samples: int = 0
    rounds: int = 0
    ratio: Ratio | None = None  # to BASE
    to_best: Ratio | None = None  # graphwright's rows: to the fastest ONNX Runtime peer
    difference: float | None = None  # from torch, largest |a - b| over the largest |b|
    shares: dict[str, float] = field(default_factory=dict)  # of the time, by class
    top: dict[str, float] = field(default_factory=dict)  # of the time, by op type
    error: str = ""


@dataclass
class Cell:
    """All contenders of one model at one size and number of threads."""

    model: str
    threads: int
    batch: int
    length: int
    gflop: float = 0.0  # of the products with weights
    best_peer: str = ""
    rows: dict[str, Row] = field(default_factory=dict)
    limits: dict[str, Row] = field(default_factory=dict)
    peak: float = 0.0  # GFLOP/s of a large product, the better of the libraries
    machine: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return f"{self.model} {self.threads} {self.size}"

    @property
    def size(self) -> str:
        return f"{self.batch}x{self.length}"

    def share(self, row: Row) -> float | None:
        """Of the latency, what the products would take at the machine's own limit."""
        return self.gflop / self.peak / (row.median_ms / 1e3) if row.median_ms and self.peak else None


def table(cell: Cell) -> Table:
    """At most 100 columns wide."""
    threads = f"{cell.threads} thread{'s' if cell.threads > 1 else ''}"
    title = f"{cell.model}, {cell.size}, {threads}: products {cell.gflop:.1f} GFLOP, limit {cell.peak:.0f} GFLOP/s"
    made = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    made.add_column("")
    for heading in ("ms", f"x {BASE} (95%)", "limit", *(kind.replace("attention", "attn") for kind in CLASSES), "off"):
        made.add_column(heading, justify="right", no_wrap=True)
    for name, row in cell.rows.items():
        if not row.error:
            shares = [f"{row.shares[kind]:.0%}" if row.shares else "" for kind in CLASSES]
            numbers = milliseconds(row.median_ms), ratio(row.ratio), percent(cell.share(row))
            made.add_row(name, *numbers, *shares, f"{row.difference:.0e}")
    for name, row in cell.limits.items():
        made.add_row(name, milliseconds(row.median_ms), style="dim")
    return made


def remarks(cell: Cell) -> list[str]:
    """What does not fit into the table: who beat whom, who was not timed and why."""
    lines = [
        f"{name}: {ratio(row.to_best)} of the best ONNX Runtime peer ({cell.best_peer})"
        for name, row in cell.rows.items()
        if row.to_best
    ]
    return lines + [f"{name}: not timed, {row.error}" for name, row in cell.rows.items() if row.error]


def ratio(found: Ratio | None) -> str:
    return NONE if found is None else f"{found[0]:.2f} ({found[1]:.2f}-{found[2]:.2f})"


def percent(share: float | None) -> str:
    return NONE if share is None else f"{share:.0%}"


def write(path: Path, cells: list[Cell]) -> None:
    """Put the tables between the two markers of `path`."""
    start, end = "<!-- tables -->", "<!-- end of tables -->"
    before, _, rest = path.read_text().partition(start)
    path.write_text(f"{before}{start}\n{markdown(cells)}\n{end}{rest.partition(end)[2]}")


def markdown(cells: list[Cell]) -> str:
    return ""


def keep(cells: list[Cell], path: Path) -> list[Cell]:
    """Write the cells into a file of results, in place of older ones of the same sizes; all that are in it then."""
    found = {cell.key: cell for cell in [*(read(path) if path.exists() else []), *cells]}
    path.write_text(json.dumps([asdict(cell) for cell in found.values()], indent=1))
    return list(found.values())


def read(path: Path) -> list[Cell]:
    cells = []
    for kept in json.loads(path.read_text()):
        for part in ("rows", "limits"):
            kept[part] = {name: Row(**row) for name, row in kept[part].items()}
        cells.append(Cell(**kept))
    return cells
