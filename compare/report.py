"""report.html: a whole run on one page that needs no network, made from the manifest and the latency samples.

The page is `report.html.j2` filled with tables; what goes into their cells is decided here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..manifest import Latency, Manifest, SiteRecord, TargetRecord
from ..spec import Job
from .latency import NONE, P90_FLOOR, milliseconds
from .latency_plot import MAX_DOTS, Series, draw

MARKS = {"passed": "\N{CHECK MARK}", "failed": "\N{BALLOT X}", "simulated": "~", "no device here": NONE}
STATUSES = ("lifted", "declined", "missed")
SHARED_STAGES = ("golden", "lifted")  # one column for all targets, where their counts agree


@dataclass(frozen=True)
class Cell:
    """One cell: `kind` is its CSS class, `note` a footnote's number (0 for none), `share` the length of a bar in %."""

    text: str
    kind: str = ""
    note: int = 0
    share: int = 0


@dataclass(frozen=True)
class Table:
    """A table with an optional title and lines before it; an empty `head` stands for no heading row."""

    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    title: str = ""
    lines: Sequence[str] = ()


@dataclass(frozen=True)
class Section:
    """A heading, a line on what is below it, and tables, below each other or (`side`) beside where there is room."""

    title: str
    intro: str
    tables: Sequence[Table]
    side: bool = False


@dataclass
class Notes:
    """Footnotes under a table; the same reason is given once."""

    reasons: list[str] = field(default_factory=list)

    def cell(self, text: str | None, reason: str, kind: str = "number") -> Cell:
        """`text`, or a dash whose footnote is `reason`."""
        if text is not None:
            return Cell(text, kind)
        if reason not in self.reasons:
            self.reasons.append(reason)
        return Cell(NONE, kind, note=self.reasons.index(reason) + 1)


def write_report(
    manifest: Manifest, samples: Mapping[str, Sequence[float]], out: Path, machine: Mapping[str, object]
) -> None:
    """Write the page to the file `out`. Raises OSError if it cannot be written.

    `samples`: ms of each call in time order, by `target:precision`, and by the reference's runtime for the reference.
    `machine`: facts by name, shown as they are.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    notes, series = Notes(), _series(manifest, samples)
    drawn = {one.name for one in series}
    page = environment.get_template("report.html.j2").render(
        title=_title(manifest),
        reference=_reference(manifest),
        verdicts=[_headline(record) for record in manifest.targets],
        summary=_summary(manifest, notes),
        notes=notes.reasons,
        plot=draw(series, manifest.reference.runtime),
        max_dots=MAX_DOTS,
        inputs=_measured_inputs(manifest),
        undrawn=[name for name in map(_label, manifest.targets) if name not in drawn],
        sections=_sections(manifest, machine),
    )
    out.write_text(page, encoding="utf-8")


def _sections(manifest: Manifest, machine: Mapping[str, object]) -> list[Section]:
    return [
        Section("Parity", "Each output against the reference, over all cases.", _parity(manifest.targets)),
        *_lint(manifest.targets),
        *_tuning(manifest.targets),
        Section("Sites", "What was recognised in the graph, and what was not and why.", _sites(manifest)),
        Section("Operators", "How many of each the graph holds, stage by stage.", _operators(manifest.targets)),
        Section("Build", "How each artifact was made.", [_build(record) for record in manifest.targets], side=True),
        Section("Run", "What was built, and where.", [_source(manifest), _facts("Machine", machine)], side=True),
        Section("Files", "sha256 of each.", [_digests(manifest.targets)]),
    ]


def _title(manifest: Manifest) -> str:
    return manifest.source.get("name") or next(iter(manifest.source.values()), "model")


def _reference(manifest: Manifest) -> str:
    reference = manifest.reference
    return f"{reference.runtime} {reference.version}, {reference.precision}"


def _label(record: TargetRecord) -> str:
    return str(Job(record.target, record.precision, record.device))


def _headline(record: TargetRecord) -> tuple[str, Cell]:
    """One target in plain words; the speed of a wrong artifact is not praised."""
    verified = record.verified
    if record.status in ("failed", "skipped"):
        words = f"{'not built' if record.status == 'failed' else 'skipped'}: {record.reason or 'no reason recorded'}"
        return _label(record), Cell(words, "failed" if record.status == "failed" else "none")
    words = "wrong results" if verified.verdict == "failed" else verified.verdict
    words += f" ({verified.reason})" if verified.reason and verified.verdict != "passed" else ""
    if verified.verdict in ("passed", "simulated"):
        words += f", {record.latency.verdict if record.latency else 'not timed'}"
    words = f"lowered, not built; {words}" if record.status == "lowered" else words
    return _label(record), Cell(words, verified.verdict.split()[0])


def _summary(manifest: Manifest, notes: Notes) -> Table:
    head = ["target", "status", "parity", "worst max abs", "min cosine", "median ms", "p90 ms", "ratio", "size"]
    return Table(head, [_reference_row(manifest, notes), *(_target_row(record, notes) for record in manifest.targets)])


def _reference_row(manifest: Manifest, notes: Notes) -> list[Cell]:
    reference = manifest.reference
    itself = [notes.cell(None, "it is the reference", kind) for kind in ("", "number", "number")]
    times = _times(reference.latency, "the reference was not timed", notes)
    size = notes.cell(None, "the reference is not built")
    return [Cell(f"{reference.runtime}:{reference.precision}", "name"), Cell("reference"), *itself, *times, size]


def _target_row(record: TargetRecord, notes: Notes) -> list[Cell]:
    verdict, worst, build = record.verified.verdict, record.verified.worst, record.build
    made = record.status in ("built", "lowered")
    why = record.why or ("" if verdict in ("passed", "failed") else verdict)
    return [
        Cell(_label(record), "name"),
        Cell(record.status, "failed" if record.status == "failed" else ""),
        notes.cell(f"{MARKS[verdict]} {verdict}" if made else None, why, verdict.split()[0] if made else ""),
        notes.cell(_small(worst.max_abs) if worst else None, why or "not recorded"),
        notes.cell(_cosine(worst.cosine) if worst else None, why or "not recorded"),
        *_times(record.latency, why or "not timed", notes),
        notes.cell(_size(build.bytes) if build else None, why or "not recorded"),
    ]


def _times(latency: Latency | None, why: str, notes: Notes) -> list[Cell]:
    """Median, p90 and ratio."""
    if latency is None:
        return [notes.cell(None, why) for _ in range(3)]
    few = f"a 90th percentile needs {P90_FLOOR} samples, here are {latency.samples}"
    ratio = latency.ratio_to_reference
    return [
        notes.cell(None if latency.median_ms is None else milliseconds(latency.median_ms), latency.verdict),
        notes.cell(
            None if latency.p90_ms is None else milliseconds(latency.p90_ms),
            latency.verdict if latency.median_ms is None else few,
        ),
        notes.cell(None if ratio is None else f"{ratio:.2f}", latency.verdict),
    ]


def _parity(targets: Iterable[TargetRecord]) -> list[Table]:
    head = ["output", "verdict", "max abs", "max rel", "min cosine", "mean cosine", "reason"]
    tables = []
    for record in targets:
        rows = [
            [
                Cell(output.output, "name"),
                Cell(f"{MARKS[output.verdict]} {output.verdict}", output.verdict),
                Cell(_small(output.max_abs), "number"),
                Cell(_small(output.max_rel), "number"),
                Cell(_cosine(output.cosine), "number"),
                Cell(_cosine(output.mean_cosine), "number"),
                _long(output.reason),
            ]
            for output in record.verified.outputs
        ]
        tables.append(Table(head, rows, _label(record), _parity_lines(record)))
    return tables


def _parity_lines(record: TargetRecord) -> list[str]:
    verified, worst = record.verified, record.verified.worst
    if record.status in ("failed", "skipped"):
        return [f"not compared: {record.reason or record.status}"]
    lines = [f"{verified.verdict}: {verified.reason}" if verified.reason else verified.verdict]
    if verified.cases:
        lines[0] += f"; {verified.cases} cases, {verified.rows:,} rows"
    if worst:
        case = f" in case {worst.case}" if worst.case else ""
        lines.append(f"Largest difference: {worst.output}{case}, shape {_shape(worst.shape)}.")
    return [*lines, f"Tolerance: {verified.tolerance}"] if verified.tolerance else lines


def _lint(targets: Iterable[TargetRecord]) -> list[Section]:
    """What lint found in graphs of targets that did not run here; no section where it found nothing."""
    rows = [
        [
            Cell(_label(record), "name"),
            Cell(found.severity, "failed" if found.severity == "error" else ""),
            Cell(found.rule, "name"),
            Cell(str(found.count), "number"),
            *(_long(text) for text in (", ".join(found.places), found.message, found.way_out)),
        ]
        for record in targets
        for found in record.lint
    ]
    head = ["target", "severity", "rule", "places", "first ones", "what", "way out"]
    intro = "Targets that did not run here: what they will refuse or run slowly."
    return [Section("Lint", intro, [Table(head, rows)])] if rows else []


def _tuning(targets: Iterable[TargetRecord]) -> list[Section]:
    """The forms that were measured against each other; no section where none were."""
    rows = [
        [
            *(Cell(text, "name") for text in (_label(record), trial.choice, trial.form, trial.against)),
            *(Cell(text, "number") for text in (f"{trial.ratio:.3f}", f"{trial.low:.3f} to {trial.high:.3f}")),
            *(Cell("taken" if trial.taken else "", "passed"), _long(trial.reason)),
        ]
        for record in targets
        for trial in (record.tuning.trials if record.tuning else ())
    ]
    head = ["target", "class of sites", "form", "against", "times as fast", "95% interval", "", "reason"]
    return (
        [Section("Chosen by measuring", "Whole models in turns, on this machine.", [Table(head, rows)])] if rows else []
    )


def _sites(manifest: Manifest) -> list[Table]:
    head = ["module path", "written as", "status", "is", "reason", "proved"]
    attention = [
        [
            *(Cell(site.path, "name"), Cell(site.spelling), _status(site.status), Cell(site.became)),
            *(_long(site.reason), _long(site.proof)),
        ]
        for site in manifest.sites
        if site.kind == "attention"
    ]
    kinds = sorted({site.kind for site in manifest.sites}, key=lambda kind: (kind != "attention", kind))
    became = [[Cell(kind, "name"), *(Cell(_became(record, kind)) for record in manifest.targets)] for kind in kinds]
    return [
        Table(["kind", "found", *STATUSES, "why not lifted"], [_count(manifest.sites, kind) for kind in kinds]),
        Table(["kind", *map(_label, manifest.targets)], became, "What they became"),
        Table(head, attention, "Attention, site by site"),
    ]


def _count(sites: Sequence[SiteRecord], kind: str) -> list[Cell]:
    own = [site for site in sites if site.kind == kind]
    found: Counter[str] = Counter(site.status for site in own)
    why = Counter(f"{site.status}: {site.reason or 'no reason recorded'}" for site in own if site.status != "lifted")
    return [
        Cell(kind, "name"),
        Cell(str(len(own)), "number"),
        *(Cell(str(found[status]), "number") for status in STATUSES),
        _long("; ".join(f"{reason} ({count})" for reason, count in why.most_common())),
    ]


def _long(text: str) -> Cell:
    return Cell(text, "long" if len(text) > 20 else "")


def _became(record: TargetRecord, kind: str) -> str:
    lowered = record.sites[kind].lowered_to if kind in record.sites else {}
    return ", ".join(f"{count} {op}" for op, count in lowered.items()) or NONE


def _status(status: str) -> Cell:
    return Cell(status, "passed" if status == "lifted" else "failed" if status == "missed" else "")


def _operators(targets: Sequence[TargetRecord]) -> list[Table]:
    columns = _stages(targets)
    names = sorted({op for counts in columns.values() for op in counts})
    most = {op: max(counts.get(op, 0) for counts in columns.values()) for op in names}
    longest = max(most.values(), default=0)
    rows = [[Cell("all", "name"), *(Cell(str(sum(counts.values())), "number") for counts in columns.values())]]
    for op in sorted(filter(lambda op: most[op], names), key=lambda op: -most[op]):
        rows.append([Cell(op, "name"), *(_bar(counts.get(op, 0), longest) for counts in columns.values())])
    return [Table(["operator", *columns], rows if columns else [])]


def _bar(count: int, longest: int) -> Cell:
    return Cell(str(count), "number", share=math.ceil(100 * count / longest)) if count else Cell("0", "number zero")


def _stages(targets: Sequence[TargetRecord]) -> dict[str, dict[str, int]]:
    """Counts by column heading; the stages before the target count once where they agree."""
    columns: dict[str, dict[str, int]] = {}
    for stage in SHARED_STAGES:
        every = [record.ops[stage] for record in targets if stage in record.ops]
        if every and all(counts == every[0] for counts in every):
            columns[stage] = every[0]
    for record in targets:
        columns |= {f"{_label(record)} {s}": counts for s, counts in record.ops.items() if s not in columns}
    return columns


def _build(record: TargetRecord) -> Table:
    achieved = ", ".join(f"{count} in {kind}" for kind, count in record.precision_achieved.items())
    facts: dict[str, object] = {"compute operators": achieved} if achieved else {}
    facts |= {f"precision {number}": note for number, note in enumerate(record.notes, start=1)}
    if record.build is None:
        return _facts(_label(record), {"not built": record.reason or record.verified.verdict, **facts})
    build = record.build
    facts |= {"runtime": build.runtime, "built in": f"{build.seconds:.1f} s", "size": _size(build.bytes)}
    facts |= {"artifact": record.artifact, "graph": record.graph}
    facts |= {f"version of {name}": version for name, version in build.versions.items()}
    facts |= {f"option {name}": value for name, value in build.options.items()}
    facts |= {f"note {number}": note for number, note in enumerate(build.notes, start=1)}
    return _facts(_label(record), facts)


def _source(manifest: Manifest) -> Table:
    facts: dict[str, object] = {f"source {name}": value for name, value in manifest.source.items()}
    facts["reference"] = _reference(manifest)
    facts |= {f"dim {dim} (min, opt, max)": sizes for dim, sizes in manifest.dynamic.items()}
    return _facts("Source", facts)


def _facts(title: str, facts: Mapping[str, object]) -> Table:
    rows = [
        [Cell(name), Cell(", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value), "name")]
        for name, value in facts.items()
        if value != ""
    ]
    return Table([], rows, title)


def _digests(targets: Iterable[TargetRecord]) -> Table:
    rows = [
        [Cell(_label(record), "name"), Cell(file, "name"), Cell(digest, "name")]
        for record in targets
        for file, digest in record.sha256.items()
    ]
    return Table(["target", "file", "sha256"], rows)


def _measured_inputs(manifest: Manifest) -> str:
    rows = [manifest.reference.latency, *(record.latency for record in manifest.targets)]
    inputs = next((row.inputs for row in rows if row), None)
    return ", ".join(f"{name} {_shape(shape)}" for name, shape in inputs.items()) if inputs else ""


def _small(value: float) -> str:
    return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:.3g}"


def _cosine(value: float) -> str:
    """Six decimals, cut and not rounded: only what is 1 reads 1."""
    return f"{math.floor(value * 1e6) / 1e6:.6f}" if math.isfinite(value) else str(value)


def _size(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"


def _shape(shape: Iterable[int]) -> str:
    return "\N{MULTIPLICATION SIGN}".join(map(str, shape)) or "scalar"


def _series(manifest: Manifest, samples: Mapping[str, Sequence[float]]) -> list[Series]:
    """What is drawn: the reference, the targets, and whatever else was measured."""
    rows = {manifest.reference.runtime: manifest.reference.latency}
    rows |= {_label(record): record.latency for record in manifest.targets}
    names = dict.fromkeys([*rows, *samples])
    return [Series(name, samples[name], rows.get(name)) for name in names if samples.get(name)]
