"""The command: thin over the Python API. Results go to stdout, progress and prose to stderr."""

from __future__ import annotations

import signal
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import Progress, explain, print_json, print_result, say
from .errors import Exit, Interrupted, UsageError

if TYPE_CHECKING:
    from .export import Source
    from .spec import ModelSpec

app = typer.Typer(
    name="graphwright",
    help="A transformer in PyTorch or ONNX, to the fastest artifact a target can run, with proof of parity.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

SourceArg = Annotated[
    str,
    typer.Argument(help="file.py:name, package.module:name, Hugging Face folder, model.onnx, model.pt2 or zoo:name"),
]
TargetOpt = Annotated[str, typer.Option("--target", "-t", help="target[@device][:precision], of `graphwright targets`")]
JsonOpt = Annotated[bool, typer.Option("--json", help="print JSON on stdout")]
DebugOpt = Annotated[bool, typer.Option("--debug", help="show the traceback of an error")]
OpsetOpt = Annotated[int, typer.Option(help="opset of the golden graph, 18 to 23")]
OutFolder = Annotated[Path, typer.Option("--out", "-o", help="output folder")]
OutFile = Annotated[Path, typer.Option("--out", "-o", help="ONNX file to write")]
BudgetOpt = Annotated[float, typer.Option(help="seconds for measuring latency; 0: do not measure")]
RequireOpt = Annotated[bool, typer.Option("--require", help="exit 5 where a target cannot run here")]
AllowOpt = Annotated[bool, typer.Option("--allow-code", help="read a .pt2 program, which can run code that is in it")]
LATER = ("localize", "lint", "run", "bundle")


@app.command()
def ship(
    source: SourceArg,
    target: Annotated[list[str], typer.Option("--target", "-t", help="target[@device][:precision]; may be repeated")],
    out: OutFolder,
    calibration: Annotated[
        str | None, typer.Option(help="real inputs: .npz or .safetensors file or folder, or file.py:function")
    ] = None,
    opset: OpsetOpt = 23,
    budget: BudgetOpt = 20.0,
    require: RequireOpt = False,
    allow_code: AllowOpt = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the plan and stop")] = False,
    as_json: JsonOpt = False,
    debug: DebugOpt = False,  # noqa: ARG001 - read by main
) -> None:
    """All of it: export, lift, quantize, lower, build, verify, measure, report."""
    from . import tables
    from .export.calibration import load_calibration
    from .output import check_output
    from .pipeline import check_required
    from .pipeline import ship as ship_all
    from .recipe import make_recipe, plan

    recipe = make_recipe(source=source, targets=tuple(target), out=out, opset=opset, budget=budget, require=require)
    check_output(out)
    steps = plan(recipe.jobs)
    loaded = _load(source, allow_code)
    lines = [*_describe(loaded), *(f"{s.job}: will {s.does}, because {s.why}" for s in steps)]
    if dry_run and as_json:
        print_json({"plan": lines, "steps": [{"job": str(s.job), "does": s.does, "why": s.why} for s in steps]})
    elif dry_run:
        print_result("\n".join(lines))
    else:
        say("\n".join(lines))
    check_required(steps, require)
    if dry_run:
        return
    data = load_calibration(calibration) if calibration else None
    with Progress() as progress:
        made = ship_all(
            loaded,
            target,
            out,
            opset=opset,
            calibration=data,
            budget=budget,
            require=require,
            progress=progress,
        )
    if as_json:
        print_result(made.manifest.model_dump_json(indent=2))
    else:
        print_result(tables.shipment(made.manifest), *tables.reasons(made.manifest), f"report: {out / 'report.html'}")
    raise typer.Exit(made.code)


@app.command()
def export(
    source: SourceArg,
    out: OutFile,
    opset: OpsetOpt = 23,
    allow_code: AllowOpt = False,
    as_json: JsonOpt = False,
    debug: DebugOpt = False,  # noqa: ARG001
) -> None:
    """The golden graph: traced, its dynamic dims proved."""
    from .export import to_onnx

    loaded = _load(source, allow_code)
    say("\n".join(_describe(loaded)))
    _write_graph(to_onnx(loaded.spec, opset), out, as_json, {})


@app.command()
def optimize(
    source: SourceArg,
    out: OutFile,
    target: TargetOpt = "ort-cpu:fp32",
    explain: Annotated[bool, typer.Option("--explain", help="print every site and what became of it")] = False,
    opset: OpsetOpt = 23,
    allow_code: AllowOpt = False,
    as_json: JsonOpt = False,
    debug: DebugOpt = False,  # noqa: ARG001
) -> None:
    """The target graph: lifted, quantized and lowered, not built."""
    from .explanation import explain as explain_sites
    from .export import to_onnx
    from .passes import optimize as optimize_graph
    from .passes import parse_job
    from .records import site_records

    parse_job(target)
    spec = _load(source, allow_code).spec
    done = optimize_graph(to_onnx(spec, opset), target)
    sites = site_records(done.log)
    _write_graph(
        done.model,
        out,
        as_json,
        {"job": str(done.job), "sites": [site.model_dump() for site in sites], "proofs": done.lifted.prover.cost()},
    )
    if explain and not as_json:
        print_result(*explain_sites(sites, str(done.lifted.prover)))


@app.command()
def build(
    source: SourceArg,
    out: OutFolder,
    target: TargetOpt = "ort-cpu:fp32",
    opset: OpsetOpt = 23,
    allow_code: AllowOpt = False,
    as_json: JsonOpt = False,
    debug: DebugOpt = False,  # noqa: ARG001
) -> None:
    """One artifact, with recorded inputs and outputs to verify it by."""
    from .export import to_onnx
    from .output import check_output
    from .passes import optimize as optimize_graph
    from .passes import parse_job
    from .pipeline import build as build_graph

    check_output(out)
    parse_job(target)
    spec = _load(source, allow_code).spec
    made = build_graph(optimize_graph(to_onnx(spec, opset), target), out, spec=spec)
    if as_json:
        print_result(made.manifest.model_dump_json(indent=2))
    else:
        print_result(f"{made.label}: {made.path} ({made.path.stat().st_size / 1e6:.1f} MB)")


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="what `ship` or `build` wrote")],
    source: Annotated[str | None, typer.Option(help="compare with this model, not with recorded outputs")] = None,
    require: RequireOpt = False,
    allow_code: AllowOpt = False,
    as_json: JsonOpt = False,
    debug: DebugOpt = False,  # noqa: ARG001
) -> None:
    """Parity of what was built, on this device; without --source it needs no torch."""
    from . import tables
    from .finish import finish

    spec = _load_if_given(source, allow_code)
    with Progress() as progress:
        manifest, code = finish(folder, spec, require=require, progress=progress)
    if as_json:
        print_result(manifest.model_dump_json(indent=2))
    else:
        print_result(tables.shipment(manifest), *tables.reasons(manifest))
    raise typer.Exit(code)


@app.command()
def bench(
    folders: Annotated[list[Path], typer.Argument(help="what `ship` or `build` wrote; may be several")],
    source: Annotated[str | None, typer.Option(help="measure this model too, as the reference")] = None,
    budget: BudgetOpt = 20.0,
    allow_code: AllowOpt = False,
    as_json: JsonOpt = False,
    debug: DebugOpt = False,  # noqa: ARG001
) -> None:
    """Latency of artifacts, interleaved, on the recorded inputs."""
    import contextlib

    from .artifact import load_all
    from .compare.latency import bench as measure
    from .compare.verify import example_feeds, recorded, typical_feeds
    from .export import open_reference

    artifacts = [artifact for folder in folders for artifact in load_all(folder)]
    spec = _load_if_given(source, allow_code)
    feeds = example_feeds(spec) if spec else typical_feeds(recorded(artifacts[0]))
    with contextlib.ExitStack() as stack, Progress() as progress:
        reference = stack.enter_context(open_reference(spec)) if spec else None
        table = measure(artifacts, dict(feeds), reference, budget, progress=progress)
    if as_json:
        print_json({"rows": {name: row.model_dump() for name, row in table.rows.items()}, "machine": table.machine})
    else:
        print_result(table.table())


@app.command()
def models(as_json: JsonOpt = False, debug: DebugOpt = False) -> None:  # noqa: ARG001
    """The models of the zoo."""
    from . import tables
    from .models.registry import ENTRIES

    rows = [
        {"name": e.name, "kind": e.kind, "paper": e.paper, "configurations": e.configurations} for e in ENTRIES.values()
    ]
    if as_json:
        print_json(rows)
        return
    cells = [
        (e.name, e.kind, e.paper, ", ".join(f"{n} ({c / 1e6:.1f} M)" for n, c in e.configurations.items()))
        for e in ENTRIES.values()
    ]
    print_result(tables.plain(("name", "kind", "paper", "configurations"), cells))


@app.command()
def targets(as_json: JsonOpt = False, debug: DebugOpt = False) -> None:  # noqa: ARG001
    """The targets, their precisions and devices, and what of them this machine can run."""
    from . import tables
    from .passes.lower import TARGETS
    from .runtimes import RUNTIMES

    rows = []
    for target in TARGETS.values():
        runtime = RUNTIMES[target.runtime]
        run, make = runtime.missing(), runtime.builder_missing()
        here = "runs" if run is None else f"builds ({run})" if make is None else f"lowers ({run})"
        devices = [device for device in target.devices if device]
        rows.append(
            {
                "name": target.name,
                "precisions": list(target.precisions),
                "devices": devices,
                "needs": target.needs,
                "here": here,
            }
        )
    if as_json:
        print_json(rows)
        return
    cells = [(str(r["name"]), ", ".join(r["precisions"]), ", ".join(r["devices"]), str(r["here"])) for r in rows]
    print_result(tables.plain(("target", "precisions", "devices", "on this machine"), cells))


@app.command()
def doctor(as_json: JsonOpt = False, debug: DebugOpt = False) -> None:  # noqa: ARG001
    """What this machine has, what it lacks for each target, and how to mend it."""
    from . import tables
    from .doctor import examine

    findings = examine()
    if as_json:
        print_json([finding.__dict__ for finding in findings])
    else:
        print_result(tables.plain(("what", "state", "detail"), [(f.name, f.state, f.detail) for f in findings]))


@app.command()
def schema(as_json: JsonOpt = False, debug: DebugOpt = False) -> None:  # noqa: ARG001
    """The JSON Schema of manifest.json."""
    from .manifest import Manifest

    print_json(Manifest.model_json_schema())


@app.command()
def clean(as_json: JsonOpt = False, debug: DebugOpt = False) -> None:  # noqa: ARG001
    """Empty the store of stages."""
    from .store import Store

    count, size = Store().clean()
    if as_json:
        print_json({"objects": count, "bytes": size})
    else:
        print_result(f"removed {count} stages, {size / 1e6:.1f} MB")


def _not_yet(name: str) -> None:
    @app.command(name, context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, hidden=True)
    def later() -> None:
        raise UsageError(f"`graphwright {name}` is not in this version.")


for _name in LATER:
    _not_yet(_name)


def main() -> None:
    """Run the command line; every error ends in one paragraph and its exit code."""
    signal.signal(signal.SIGINT, _interrupted)
    signal.signal(signal.SIGTERM, _interrupted)
    try:
        app()  # ends in SystemExit: 0, 2 for usage, or what a command raised as typer.Exit
    except Interrupted as error:
        sys.exit(error.code)
    except Exception as error:  # noqa: BLE001 - the last place: each becomes a message and an exit code
        if "--debug" in sys.argv:
            traceback.print_exc()
        sys.exit(explain(error))


def _interrupted(number: int, _: object) -> None:
    raise Interrupted(Exit.INTERRUPTED if number == signal.SIGINT else Exit.TERMINATED)


def _load(source: str, allow_code: bool) -> Source:
    from .export import load_source

    return load_source(source, allow_code=allow_code)


def _load_if_given(source: str | None, allow_code: bool) -> ModelSpec | None:
    if source is None and allow_code:
        raise UsageError("--allow-code is for a .pt2 program, given as --source: leave it out.")
    return None if source is None else _load(source, allow_code).spec


def _describe(source: Source) -> list[str]:
    """The head of a plan: what the model is and what is fed to it."""
    spec = source.spec
    lines = [f"{spec.name}: {source.found} (from {source.text})"]
    for name, tensor in spec.tensors.items():
        axes = spec.dynamic.get(name, {})
        dims = ", ".join(axes.get(axis, str(size)) for axis, size in enumerate(tensor.shape))
        lines.append(f"  {name}: {str(tensor.dtype).removeprefix('torch.')} [{dims}]")
    return [*lines, *(f"  {dim}: {low} to {high}" for dim, (low, _, high) in spec.ranges.items())]


def _write_graph(model: Any, out: Path, as_json: bool, facts: dict[str, Any]) -> None:
    from .passes import count_ops
    from .stages import save_graph
    from .store import disk_errors

    if out.is_dir() or out.suffix != ".onnx":
        raise UsageError(f"--out must name an ONNX file, as in model.onnx, but is {out}.")
    part = out.with_name(f".{out.name}.part")
    with disk_errors(out.parent):
        try:
            save_graph(model, part)
            part.replace(out)
        finally:
            part.unlink(missing_ok=True)
    facts = {
        "file": str(out),
        "nodes": len(model.graph),
        "opset": model.opset_imports[""],
        "ops": count_ops(model),
        **facts,
    }
    if as_json:
        print_json(facts)
    else:
        print_result(f"{out}: {facts['nodes']} nodes, opset {facts['opset']}")


if __name__ == "__main__":
    main()
