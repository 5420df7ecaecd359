"""Tables that a person reads on the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .availability import Available, Profile, in_words
from .compare.latency import NONE, milliseconds
from .manifest import Latency, LintRecord, Manifest, TargetRecord
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


def targets(found: Sequence[Available]) -> list[Table]:
    """What this machine does for each target; and its device profiles, each once."""
    head = plain(
        ("target", "precisions", "on this machine"),
        [(each.name, ", ".join(each.precisions), in_words(each.does, each.why)) for each in found],
    )
    head.columns[1].max_width, head.columns[2].max_width = 30, 52
    rows: dict[str, tuple[Profile, dict[str, list[str]]]] = {}
    for each in found:
        for profile in each.profiles:
            _, does = rows.setdefault(profile.name, (profile, {}))
            does.setdefault(profile.does, []).append(each.name)
    devices = plain(
        ("device", "is", "on this machine"),
        [
            (name, _device(profile), "; ".join(f"{kind} {', '.join(names)}" for kind, names in does.items()))
            for name, (profile, does) in rows.items()
        ],
    )
    devices.columns[1].max_width, devices.columns[2].max_width = 42, 38
    devices.caption = "target@device lowers for that device on any machine; --json tells why not more"
    devices.caption_justify = "left"
    return [head, devices]


def _device(profile: Profile) -> str:
    number = profile.compute_capability
    facts = [
        f"{profile.what} ({number})" if number and number not in profile.what else profile.what,
        *([f"TensorRT {profile.tensorrt}"] if profile.tensorrt else []),
        *([f"no {', '.join(profile.lacks)}"] if profile.lacks else []),
    ]
    return ", ".join(facts)


def lint_counts(found: Sequence[LintRecord]) -> list[str]:
    """How many lint rules found something, in words; empty where none did."""
    counts = {kind: sum(each.severity == kind for each in found) for kind in ("error", "warning")}
    return [f"lint: {count} {kind}{'s' * (count > 1)}" for kind, count in counts.items() if count]


def lint_lines(found: Sequence[LintRecord]) -> list[str]:
    """Three lines for each lint rule that found something: where, what, and the way out."""
    return [
        f"{each.severity} {each.rule}{_places(each)}\n    {each.message}\n    Way out: {each.way_out}" for each in found
    ]


def _places(found: LintRecord) -> str:
    more = found.count - len(found.places)
    places = [*found.places, *([f"{more} more"] if more and found.places else [])]
    return f" ({', '.join(places)})" if places else ""


def reasons(manifest: Manifest) -> list[str]:
    """A line for each target that is not built and verified, saying why; for each shortfall; for what lint found."""
    lines = []
    for record in manifest.targets:
        why, label = record.why, Job(record.target, record.precision, record.device)
        if why and not (record.status == "built" and record.verified.passed):
            lines.append(f"{label}: {why}")
        lines += [f"{label}: {each}" for each in record.shortfall]
        if record.lint:
            rules = ", ".join(f"{found.rule} ({found.count})" for found in record.lint)
            lines.append(f"{label}: {'; '.join(lint_counts(record.lint))}: {rules}")
    return lines
