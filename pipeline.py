"""The route on one page: source -> golden -> lifted -> precise -> target graph -> artifact -> verified -> measured."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
from rich.table import Table

from . import tables
from .artifact import Artifact, load
from .availability import builder_missing
from .compare.cases import record as record_cases
from .compare.cases import replaying
from .compare.latency import LatencyTable, bench
from .compare.report import write_report
from .compare.undefined import leave_out
from .compare.verify import CASES, example_feeds, spec_cases, typical_feeds, verify_recorded
from .errors import BuildError, DeviceError, Exit, GraphwrightError, ResourceError, UsageError, worst
from .export import OPSET, Source, load_source, open_reference
from .export.calibration import load_calibration
from .manifest import Manifest, TargetRecord, Tolerances, Tuning, Verified, write
from .output import output_folder
from .passes import Lifted, Optimized, Sampled, count_ops, is_measured, lift, optimize
from .passes.lint import lint
from .recipe import GB, Asked, Recipe, Step, is_tuned, make_recipe, plan
from .records import build_into, describe, keep_golden, lint_records, lower_into, start_manifest, write_folders
from .runtimes.child import NORMAL, Limits
from .spec import Calibration, Job, ModelSpec, pick
from .stages import GOLDEN, Ranges, Recorded, export_stage, optimize_for, ranges_of, reference_stage, sampled
from .store import Store
from .tuning import Tuned
from .tuning import tune as tune_forms

Progress = Callable[[str], None]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shipment:
    """What `ship` made: the manifest, the folder, the latency table, and the exit code that stands for all targets."""

    manifest: Manifest = field(repr=False)
    out: Path
    latency: LatencyTable | None = field(repr=False)
    code: Exit

    def __rich__(self) -> Table:
        return tables.shipment(self.manifest)

    def __str__(self) -> str:
        return tables.text(tables.shipment(self.manifest))

    @property
    def passed(self) -> bool:
        """Whether all that was asked holds."""
        return self.code is Exit.OK


@dataclass(frozen=True)
class Prepared:
    """What all targets of a run share."""

    recipe: Recipe
    golden: ir.Model
    lifted: Lifted
    ranges: Ranges
    recorded: Recorded
    cases: Path  # the same, on disk
    store: Store
    data: Sampled  # the recorded inputs, on which ranges of values are measured


def ship(
    source: str | Path | ModelSpec | Source,
    targets: Sequence[Asked],
    out: str | Path,
    *,
    opset: int = OPSET,
    ranges: Mapping[str, tuple[int, int, int]] | None = None,
    calibration: Calibration | str | None = None,
    tolerances: Mapping[str, Any] | Tolerances | None = None,
    budget: float = 20.0,
    require: bool = False,
    allow_code: bool = False,
    tune: bool = False,
    tune_seconds: float = 60.0,
    limits: Limits = NORMAL,
    progress: Progress = _log.info,
) -> Shipment:
    """Make, prove and measure `source` for each of `targets` (`target[@device][:precision]`), into the folder `out`.

    A target that fails is recorded, and the others go on. A target with options of its own is a pair of it and a dict.
    `ranges`: (min, opt, max) of dynamic dims, in place of the spec's. `calibration` replaces the spec's: samples, or
    where they lie. `tolerances`: `{"precisions": {"fp16": {"absolute": 0.02}}, "outputs": {...}}`, in place of parity's
    table. `budget`: seconds for the latency comparison; 0: none. `require`: a target that cannot run here is an error.
    `tune`: choose among a target's forms by measuring, `tune_seconds` for each target; what was chosen is kept in the
    store. `allow_code`: read a .pt2 program, which may hold code. `limits`: of time and memory, for each process in
    which a backend builds an artifact or first runs it. Raises UsageError, InputError, and BuildError where the model
    itself cannot be exported; nothing is then left in `out`.
    """
    text = source.name if isinstance(source, ModelSpec) else source.text if isinstance(source, Source) else str(source)
    given = {
        "source": text,
        "targets": targets,
        "out": Path(out),
        "opset": opset,
        "ranges": dict(ranges or {}),
        "calibration": calibration if isinstance(calibration, str) else None,
        "tolerances": tolerances or {},
        "budget": budget,
        "require": require,
        "allow_code": allow_code,
        "tune": tune,
        "tune_seconds": tune_seconds,
        "build_seconds": limits.seconds,
        "build_memory_gb": None if limits.bytes is None else limits.bytes / GB,
    }
    samples = None if isinstance(calibration, str) else calibration
    return run_recipe(make_recipe(given), source, samples, progress=progress)


def run_recipe(
    recipe: Recipe,
    source: str | Path | ModelSpec | Source | None = None,
    calibration: Calibration | None = None,
    *,
    progress: Progress = _log.info,
) -> Shipment:
    """What `ship` does, as a recipe has it; `source` and `calibration` themselves may stand for what it names."""
    steps = plan(recipe.jobs)
    check_required(steps, recipe.require)
    store = Store()
    with output_folder(recipe.out) as folder, store.scratch() as scratch:
        loaded = load_source(recipe.source if source is None else source, allow_code=recipe.allow_code)
        spec = as_asked(loaded.spec, recipe, calibration)
        shared = prepare(spec, recipe, store, scratch / CASES, progress)
        check_outputs(recipe.tolerances, shared.recorded)
        about = {"text": loaded.text, "kind": loaded.kind, "found": loaded.found}
        manifest = start_manifest(spec, about, shared.lifted, shared.ranges)
        manifest.tolerances = recipe.tolerances
        for step in steps:
            manifest.targets.append(make_target(step, shared, manifest, folder, progress))
        latency = measure(spec, manifest, folder, recipe.budget, progress) if recipe.budget else None
        keep_golden(shared.recorded, folder / GOLDEN)
        write_folders(manifest, folder)
        samples, machine = (latency.samples, latency.machine) if latency else ({}, {})
        write_report(manifest, samples, folder / "report.html", machine)
        write(manifest, folder)
    return Shipment(manifest, recipe.out, latency, exit_code(manifest, recipe.require))


def as_asked(spec: ModelSpec, recipe: Recipe, calibration: Calibration | None = None) -> ModelSpec:
    """The spec with the recipe's ranges and calibration data in place of its own."""
    if calibration is None and recipe.calibration is not None:
        calibration = load_calibration(recipe.calibration)
    given = spec.calibration if calibration is None else calibration
    return replace(spec, ranges={**spec.ranges, **recipe.ranges}, calibration=given)


def check_outputs(tolerances: Tolerances, recorded: Recorded) -> None:
    """Raise UsageError for a tolerance of an output that the model does not have, or that must be equal anyway."""
    outputs = recorded[0][1]
    for name in tolerances.outputs:
        if outputs[pick("output in the tolerances", name, outputs)].dtype.kind in "biu":
            raise UsageError(f"Output {name!r} is {outputs[name].dtype}: it must be equal. Leave its tolerance out.")


def prepare(spec: ModelSpec, recipe: Recipe, store: Store, cases: Path, progress: Progress) -> Prepared:
    """Export, lift, and the reference's outputs in every case of parity, written to `cases` too."""
    with _timed("export", progress) as say:
        golden = export_stage(spec, recipe.opset, store)
        say("from the store" if golden.stored else "traced, dynamic dims proved")
    with _timed("lift", progress) as say:
        lifted = lift(golden.model)
        done = sum(site.status == "lifted" for site in lifted.log.sites)
        say(f"{done} of {len(lifted.log.sites)} sites")
    with _timed("reference", progress) as say:
        ranges = ranges_of(golden.model, spec)
        recorded, stored = reference_stage(spec, golden, spec_cases(spec, ranges), store)
        recorded = leave_out(lifted.model, recorded)
        record_cases(replaying(recorded), [case for case, _ in recorded], cases)
        say(f"{len(recorded)} cases{' from the store' if stored else ''}")
    data = sampled([case for case, _ in recorded])
    return Prepared(recipe, golden.model, lifted, ranges, recorded, cases, store, data)


def make_target(step: Step, shared: Prepared, manifest: Manifest, folder: Path, progress: Progress) -> TargetRecord:
    """One target: quantize, lower, build, verify, as far as this machine can; what fails is recorded."""
    job, own = step.job, folder / step.job.folder
    own.mkdir()
    with _timed(str(job), progress) as say:
        try:
            tuned = tune_here(step, shared, progress)
            options, choices = shared.recipe.options[job], tuned.choices if tuned is not None else None
            data = shared.data if is_measured(job) else None
            optimized = optimize(shared.lifted, str(job), calibration=data, options=options, choices=choices)
            ops = {"golden": count_ops(shared.golden), "lifted": count_ops(shared.lifted.model)}
            record = describe(job, optimized, ops)
            record.tuning = None if tuned is None else Tuning.model_validate(asdict(tuned))
            absent = "" if "verify" in step.does else step.why
            if absent:
                record.lint = lint_records(lint(optimized, ranges=shared.ranges))
            if "build" not in step.does:
                lower_into(record, optimized, own, step.why)
            elif (unusable := build_here(record, optimized, shared, own)) is not None:
                lower_into(record, optimized, own, unusable)
                absent = unusable
            record.verified = verify_here(Artifact(own, manifest, record), shared, absent)
        except (BuildError, ResourceError) as error:
            record = failed(job, error)
            shutil.rmtree(own)
            own.mkdir()
        say(", ".join([record.status, record.verified.verdict, *tables.lint_counts(record.lint)]))
    return record


def tune_here(step: Step, shared: Prepared, progress: Progress) -> Tuned | None:
    """The fastest forms, measured on the first real sample (or the largest made one); None where none are asked for."""
    recipe = shared.recipe
    if not (recipe.tune and is_tuned(step)):
        return None
    return tune_forms(
        shared.lifted,
        str(step.job),
        [typical_feeds(shared.recorded)],
        options=recipe.options[step.job],
        budget=recipe.tune_seconds,
        store=shared.store,
        limits=recipe.limits,
        progress=progress,
    )


def build_here(record: TargetRecord, optimized: Optimized, shared: Prepared, folder: Path) -> str | None:
    """Build; None if it was done, else why the device that is here cannot be used (a library of it is missing)."""
    try:
        build_into(record, optimized, shared.ranges, folder, shared.store, shared.recipe.limits)
    except DeviceError as error:
        return str(error)
    return None


def verify_here(artifact: Artifact, shared: Prepared, absent: str) -> Verified:
    """Parity, where the device that is here can be used; simulated where it is `absent`."""
    try:
        return verify_recorded(artifact, shared.cases, shared.recipe.limits, absent=absent)
    except DeviceError as error:
        return verify_recorded(artifact, shared.cases, shared.recipe.limits, absent=str(error))


def failed(job: Job, error: GraphwrightError) -> TargetRecord:
    """The record of a target that could not be made."""
    never = Verified(verdict="no device here", reason="there is nothing to verify")
    return TargetRecord(
        target=job.target,
        precision=job.precision,
        device=job.device,
        status="failed",
        reason=str(error),
        failure="resources" if isinstance(error, ResourceError) else "build",
        verified=never,
    )


def measure(spec: ModelSpec, manifest: Manifest, folder: Path, budget: float, progress: Progress) -> LatencyTable:
    """Latency of the built targets and of the reference on the example inputs, entered into the manifest."""
    artifacts = [Artifact(folder / Job(r.target, r.precision, r.device).folder, manifest, r) for r in manifest.targets]
    name = manifest.reference.runtime
    with _timed("latency", progress) as say, open_reference(spec) as reference:
        table = bench(artifacts, example_feeds(spec), reference, budget, reference_name=name)
        say(f"{len(table.samples)} contenders, interleaved")
    manifest.reference.latency = table.rows[name]
    for artifact in artifacts:
        artifact.record.latency = table.rows[artifact.label]
    return table


def build(
    graph: Optimized | Lifted | ir.Model | str | Path,
    out: str | Path,
    *,
    target: str = "ort-cpu",
    precision: str = "",
    spec: ModelSpec | None = None,
    options: Mapping[str, Any] | None = None,
    limits: Limits = NORMAL,
) -> Artifact:
    """Build a target graph into the folder `out`; a golden graph or an ONNX file is optimized for `target` first.

    With `spec`, its dynamic ranges are the engine's, and inputs with the reference's outputs are kept in `out`, so that
    the artifact can be verified later without torch. `limits` are those of the process that builds. Raises DeviceError
    where this machine cannot build it, BuildError with the backend's own reason, ResourceError beyond the limits.
    """
    optimized = graph if isinstance(graph, Optimized) else optimize_for(spec, graph, target, precision, options)
    missing = builder_missing(optimized.job)
    if missing is not None:
        raise DeviceError(
            f"{optimized.job} cannot be built here: {missing}. `graphwright ship` lowers it all the same."
        )
    store, lifted = Store(), optimized.lifted
    ranges = ranges_of(lifted.model, spec)
    with output_folder(Path(out)) as folder:
        name = spec.name if spec else str(optimized.model.graph.name)
        manifest = start_manifest(spec, {"text": name}, lifted, ranges)
        record = describe(optimized.job, optimized, {"lifted": count_ops(lifted.model)})
        build_into(record, optimized, ranges, folder, store, limits)
        if spec is not None:
            golden = export_stage(spec, OPSET, store)
            recorded, _ = reference_stage(spec, golden, spec_cases(spec, ranges), store)
            keep_golden(leave_out(lifted.model, recorded), folder / GOLDEN)
            manifest.golden = GOLDEN
        manifest.targets.append(record)
        write(manifest, folder)
    return load(out)


def check_required(steps: list[Step], require: bool) -> None:
    """Raise DeviceError if a target is required that this machine cannot run."""
    absent = [f"{step.job} ({step.why})" for step in steps if "verify" not in step.does]
    if require and absent:
        raise DeviceError(f"--require: this machine cannot run {'; '.join(absent)}.")


def exit_code(manifest: Manifest, require: bool = False) -> Exit:
    """The code that stands for all targets' outcomes; with `require` a target without a verdict counts too."""
    failures = [record.failure for record in manifest.targets if record.status == "failed"]
    codes = [Exit.RESOURCES if failure == "resources" else Exit.BUILD for failure in failures]
    codes += [
        Exit.VERIFICATION for record in manifest.targets if record.verified.verdict == "failed" or record.shortfall
    ]
    codes += [Exit.DEVICE for record in manifest.targets if require and record.verified.passed is None]
    return worst(codes)


@contextmanager
def _timed(name: str, progress: Progress) -> Iterator[Callable[[str], None]]:
    """Reports a stage when it is done, with what it said and the seconds it took."""
    said: list[str] = []
    progress(f"{name} ...")
    start = time.perf_counter()
    yield said.append
    progress(f"{name}: {', '.join(said)} ({time.perf_counter() - start:.1f} s)")
