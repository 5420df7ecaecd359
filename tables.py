"""Tables that a person reads on the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .compare.latency import NONE, milliseconds
from .manifest import Latency, Manifest, TargetRecord
from .spec import Job

STYLES = {"passed": "green", "built": "green", "ok": "green", "failed": "red", "problem": "red", "lifted": "green"}


def plain(columns: Sequence[str], rows: Iterable[Sequence[str]], gap: int = 1) -> Table:
    """A table of text; words of a known meaning are coloured, and nothing is cut off."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, gap, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, style=STYLES.get(cell.split(", ")[-1], "")) for cell in row))
    return table


def text(table: Table) -> str:
    """A table as plain text."""
    console = Console(width=160, no_color=True, highlight=False)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def shipment(manifest: Manifest) -> Table:
    """Latency and parity of every target of a run; 80 columns wide."""
    reference, latency = manifest.reference, manifest.reference.latency
    first = [reference.runtime, "reference", NONE, NONE, *_times(latency), NONE]
    columns = ("target", "state", "max abs", "cosine", "ms", "p90", "x", "MB")
    table = plain(columns, [first, *map(_row, manifest.targets)], gap=0)
    for column in table.columns[2:]:
        column.justify = "right"
    legend = "max abs: largest difference; cosine: of the worst row; ms, p90: median and 90th percentile of one call"
    if latency is not None:
        shapes = ", ".join(f"{name} {shape}" for name, shape in latency.inputs.items())
        legend += f" on {shapes}; x: times faster than {reference.runtime}"
    table.caption, table.caption_justify = legend, "left"
    return table


def _row(record: TargetRecord) -> list[str]:
    worst, outputs = record.verified.worst, record.verified.outputs
    return [
        str(Job(record.target, record.precision, record.device)),
        f"{record.status}, {record.verified.verdict.removesuffix(' here')}",
        f"{max(output.max_abs for output in outputs):.1e}" if worst and outputs else NONE,
        f"{min(output.cosine for output in outputs):.5f}" if worst and outputs else NONE,
        *_times(record.latency),
        f"{record.build.bytes / 1e6:.1f}" if record.build else NONE,
    ]


def _times(latency: Latency | None) -> list[str]:
    if latency is None:
        return [NONE, NONE, NONE]
    ratio = latency.ratio_to_reference
    return [milliseconds(latency.median_ms), milliseconds(latency.p90_ms), NONE if ratio is None else f"{ratio:.2f}"]


def reasons(manifest: Manifest) -> list[str]:
    """One line for each target that is not built and verified, saying why; and one for each shortfall."""
    lines = []
    for record in manifest.targets:
        why = record.why
        if why and not (record.status == "built" and record.verified.passed):
            lines.append(f"{Job(record.target, record.precision, record.device)}: {why}")
        lines += [f"{Job(record.target, record.precision, record.device)}: {each}" for each in record.shortfall]
    return lines
