"""What the CPU benchmark says: a table for a terminal, JSON to keep, Markdown for the documentation."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cpu_profile import CLASSES
from cpu_table import BASE, CONTENDERS
from rich.table import Table

from graphwright.compare.latency import NONE, milliseconds

Ratio = tuple[float, float | None, float | None]  # how many times as fast: the middle, its 95% interval if one exists
HEADINGS = ("limit", *(kind.replace("attention", "attn") for kind in CLASSES))


@dataclass
class Row:
    """One contender at one size."""

    median_ms: float | None = None
    samples: int = 0
    rounds: int = 0
    ratio: Ratio | None = None  # to BASE
    against: dict[str, Ratio] = field(default_factory=dict)  # of graphwright's rows, to the peers that matter
    difference: float | None = None  # from torch, largest |a - b| over the largest |b|
    shares: dict[str, float] = field(default_factory=dict)  # of the time, by class
    top: dict[str, float] = field(default_factory=dict)  # of the time, by op type
    error: str = ""  # why it was not timed


@dataclass
class Cell:
    """All contenders of one model at one size and number of threads."""

    model: str
    threads: int
    batch: int
    length: int
    gflop: float = 0.0  # of the products with weights
    peak: float = 0.0  # GFLOP/s of a large product, the better of the libraries
    rows: dict[str, Row] = field(default_factory=dict)
    limits: dict[str, Row] = field(default_factory=dict)
    machine: dict[str, str | int] = field(default_factory=dict)

    @property
    def size(self) -> str:
        return f"{self.batch}x{self.length}"

    @property
    def key(self) -> str:
        return f"{self.model} {self.size}, {threads(self.threads)}"

    def share(self, row: Row) -> float | None:
        """What the products would take at the machine's own limit, as a share of the latency."""
        return self.gflop / self.peak / (row.median_ms / 1e3) if row.median_ms and self.peak else None

    def where(self, row: Row) -> list[str]:
        """The share of the limit, and the shares of the time by class."""
        shares = [f"{row.shares[kind]:.0%}" if row.shares else "" for kind in CLASSES]
        return [percent(self.share(row)), *shares]


def table(cell: Cell) -> Table:
    """At most 100 columns wide."""
    title = f"{cell.key}: products {cell.gflop:.1f} GFLOP, limit {cell.peak:.0f} GFLOP/s"
    made = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0))
    made.add_column("")
    for heading in ("ms", f"x {BASE} (95%)", *HEADINGS, "off"):
        made.add_column(heading, justify="right", no_wrap=True)
    for name, row in cell.rows.items():
        if not row.error:
            numbers = milliseconds(row.median_ms), ratio(row.ratio), *cell.where(row)
            made.add_row(name, *numbers, f"{row.difference:.0e}")
    for name, row in cell.limits.items():
        made.add_row(name, milliseconds(row.median_ms), style="dim")
    return made


def remarks(cell: Cell) -> list[str]:
    """What the table does not hold: how ours compare with the best peers, who was not timed and why."""
    lines = []
    for name, row in cell.rows.items():
        lines += [f"{name}: {ratio(found)} times as fast as {peer}" for peer, found in row.against.items()]
        lines += [f"{name}: not timed, {row.error}"] if row.error else []
    return lines


def threads(count: int) -> str:
    return f"{count} thread" if count == 1 else f"{count} threads"


def ratio(found: Ratio | None) -> str:
    if found is None:
        return NONE
    middle, low, high = found
    return f"about {middle:.2f}" if low is None else f"{middle:.2f} ({low:.2f}-{high:.2f})"


def percent(share: float | None) -> str:
    return NONE if share is None else f"{share:.0%}"


def keep(cells: list[Cell], path: Path) -> None:
    """Write the cells into a file of results, in place of older ones of the same model, size and threads."""
    found = {cell.key: cell for cell in [*(read(path) if path.exists() else []), *cells]}
    path.write_text(json.dumps([asdict(cell) for cell in found.values()], indent=1))


def read(path: Path) -> list[Cell]:
    cells = []
    for kept in json.loads(path.read_text()):
        for part in ("rows", "limits"):
            kept[part] = {name: Row(**row) for name, row in kept[part].items()}
        cells.append(Cell(**kept))
    return cells


def write(path: Path, cells: list[Cell]) -> None:
    """Put the tables between the two markers of `path`."""
    start, end = "<!-- tables -->", "<!-- end of tables -->"
    before, _, rest = path.read_text().partition(start)
    path.write_text(f"{before}{start}\n{markdown(cells)}\n{end}{rest.partition(end)[2]}")


def markdown(cells: list[Cell]) -> str:
    """Two tables for each model and number of threads: the latencies, and where the time of ours goes."""
    groups: dict[tuple[str, int], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.model, cell.threads), []).append(cell)
    facts = [f"{key} {value}" for key, value in cells[-1].machine.items() if key != "system"] if cells else []
    parts = [f"Measured on: {', '.join(facts)}."]
    for (model, count), group in groups.items():
        parts += [f"## {model}, {threads(count)}", _latencies(group), _times(group)]
    return "\n\n".join(parts)


def _latencies(group: list[Cell]) -> str:
    lines = [_line(["ms, ratio", *(cell.size for cell in group), "mean ratio"]), "|---|" + "--:|" * (len(group) + 1)]
    names = dict.fromkeys(name for cell in group for name in cell.rows)
    for name in names:
        rows = [cell.rows.get(name, Row()) for cell in group]
        ratios = [row.ratio[0] for row in rows if row.ratio]
        mean = f"{statistics.geometric_mean(ratios):.2f}" if len(ratios) == len(rows) else NONE
        lines.append(_line([name, *map(_latency, rows), mean]))
    for name in dict.fromkeys(name for cell in group for name in cell.limits):
        lines.append(_line([f"*{name}*", *(milliseconds(cell.limits[name].median_ms) for cell in group), ""]))
    for name in filter(ours, names):
        for peers, engine in (("ONNX Runtime peer", "onnxruntime"), ("peer", "")):
            found = [_best(cell.rows.get(name, Row()), engine) for cell in group]
            lines.append(_line([f"*{name.split()[-1]} to the best {peers}*", *found, ""]))
    errors = [f"- {cell.size}, {name}: {row.error}" for cell in group for name, row in cell.rows.items() if row.error]
    return "\n".join([*lines, *([""] if errors else []), *errors])


def ours(name: str) -> bool:
    return bool(CONTENDERS[name].target)


def _best(row: Row, engine: str) -> str:
    """The ratio to the fastest peer, or to the fastest of that engine."""
    found = [peer for peer in row.against if not engine or CONTENDERS[peer].engine == engine]
    peer = min(found, key=lambda peer: row.against[peer][0], default="")
    return f"{ratio(row.against[peer])} {peer}" if peer else NONE


def _latency(row: Row) -> str:
    return "not timed" if row.error else f"{milliseconds(row.median_ms)}, {ratio(row.ratio)}"


def _times(group: list[Cell]) -> str:
    lines = [_line(["where the time goes", "size", *HEADINGS]), "|---|---|" + "--:|" * len(HEADINGS)]
    for name in filter(ours, dict.fromkeys(name for cell in group for name in cell.rows)):
        for cell in group:
            row = cell.rows.get(name, Row())
            lines += [_line([name, cell.size, *cell.where(row)])] if row.median_ms else []
    return "\n".join(lines)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
