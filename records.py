"""What a run writes down of each target: built into its folder, entered into the manifest."""

from __future__ import annotations

import time
from dataclasses import asdict
from itertools import chain, zip_longest
from pathlib import Path

from .compare.cases import record as record_cases
from .compare.cases import replaying
from .manifest import Build, LintRecord, Manifest, Reference, SiteCount, SiteRecord, TargetRecord, Verified, write
from .passes import TARGETS, Lifted, Optimized, SiteLog, count_ops, count_precisions, lowered_to
from .passes.lint import Lint, grouped
from .runtimes import BuildResult
from .runtimes.child import NORMAL, Limits
from .spec import Job, ModelSpec
from .stages import GOLDEN, GRAPH, Ranges, Recorded, build_stage, copy_file, save_graph
from .store import Store, hash_file, versions

GOLDEN_BYTES = 8 << 20  # of recorded inputs and outputs that travel with an artifact


def start_manifest(spec: ModelSpec | None, source: dict[str, str], lifted: Lifted, ranges: Ranges) -> Manifest:
    """A manifest without targets yet."""
    is_torch = spec is not None and hasattr(spec.module, "state_dict")
    runtime, package = ("torch", "torch") if is_torch else ("onnxruntime", "onnxruntime")
    found = versions(package, f"{package}-gpu")
    return Manifest(
        source={"name": spec.name if spec else source["text"], **source},
        reference=Reference(runtime=runtime, precision="fp32", version=next(iter(found.values()), "")),
        dynamic={dim: list(bounds) for dim, bounds in ranges.items()},
        sites=site_records(lifted.log),
        targets=[],
    )


def site_records(log: SiteLog) -> list[SiteRecord]:
    """The sites of a log as the manifest has them."""
    return [SiteRecord(**asdict(site)) for site in log.sites]


def describe(job: Job, optimized: Optimized, before: dict[str, dict[str, int]]) -> TargetRecord:
    """What is known of a target before it is built."""
    counts = {
        kind: SiteCount(
            found=len(sites),
            lifted=sum(site.status == "lifted" for site in sites),
            lowered_to=lowered_to(optimized.model, kind),
        )
        for kind, sites in optimized.log.kinds().items()
    }
    counts.setdefault("attention", SiteCount(found=0, lifted=0))
    return TargetRecord(
        target=job.target,
        precision=job.precision,
        device=job.device,
        options=optimized.settings.model_dump(mode="json"),
        status="lowered",
        sites=counts,
        precision_achieved=count_precisions(optimized.model),
        ops={**before, "target": count_ops(optimized.model)},
        notes=optimized.trail.notes,
        verified=Verified(verdict="no device here", reason="not verified yet"),
    )


def build_into(
    record: TargetRecord, optimized: Optimized, ranges: Ranges, folder: Path, store: Store, limits: Limits = NORMAL
) -> None:
    """Save the target graph in `folder`, build it there, and enter both into the record."""
    start = time.perf_counter()
    save_graph(optimized.model, folder / GRAPH)
    result, stored = build_stage(optimized, ranges, folder, store, limits)
    record.graph, record.sha256 = GRAPH, digests(folder)
    runtime = TARGETS[optimized.job.target].runtime
    enter_build(record, result, runtime, folder, time.perf_counter() - start, ["taken from the store"] * stored)


def enter_build(
    record: TargetRecord, result: BuildResult, runtime: str, folder: Path, seconds: float, notes: list[str]
) -> None:
    """Enter what was built in `folder` into the record."""
    record.status, record.reason, record.artifact = "built", "", result.artifact
    record.build = Build(
        runtime=runtime,
        versions=result.versions,
        options=result.options,
        seconds=round(seconds, 3),
        bytes=(folder / result.artifact).stat().st_size,
        notes=[*result.notes, *notes],
    )
    if result.ops:
        record.ops["runtime"] = result.ops
    if result.precisions:
        record.precision_achieved = result.precisions
    record.shortfall = result.shortfall


def lint_records(found: Lint) -> list[LintRecord]:
    """What lint found, by rule."""
    return [LintRecord(**asdict(group)) for group in grouped(found.findings)]


def lower_into(record: TargetRecord, optimized: Optimized, folder: Path, why: str) -> None:
    """Save the target graph alone, for another machine to build."""
    save_graph(optimized.model, folder / GRAPH)
    record.graph, record.sha256, record.reason = GRAPH, digests(folder), why


def keep_golden(recorded: Recorded, path: Path) -> None:
    """Write as many of the recorded cases as fit, the grid's and real ones by turns, so that both kinds are kept."""
    made = [case for case, _ in recorded if not case.real]
    real = [case for case, _ in recorded if case.real]
    mixed = [case for case in chain.from_iterable(zip_longest(made, real)) if case is not None]
    record_cases(replaying(recorded), mixed, path, GOLDEN_BYTES)


def write_folders(manifest: Manifest, folder: Path) -> None:
    """Each target's folder becomes an artifact of its own; in the run's manifest its files get its folder's name."""
    manifest.golden = GOLDEN
    for index, record in enumerate(manifest.targets):
        own = folder / Job(record.target, record.precision, record.device).folder
        copy_file(folder / GOLDEN, own / GOLDEN)
        alone = manifest.model_copy(deep=True)
        alone.targets = [record]
        write(alone, own)
        manifest.targets[index] = record.prefixed(own.name)


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file in `folder`, by name."""
    return {file.name: hash_file(file) for file in sorted(folder.iterdir()) if file.is_file()}
