"""export, optimize, build: one graph or one artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..console import print_json, print_result, say
from ..errors import UsageError
from .options import (
    AllowOpt,
    DebugOpt,
    JsonOpt,
    OpsetOpt,
    OutFile,
    OutFolder,
    RangeOpt,
    SetOpt,
    SourceArg,
    TargetOpt,
    describe,
    load,
)


def export(
    source: SourceArg,
    out: OutFile,
    opset: OpsetOpt = 23,
    range_: RangeOpt = None,
    allow_code: AllowOpt = False,
    as_json: JsonOpt = False,
    debug: DebugOpt = False,  # noqa: ARG001
) -> None:
    """The golden graph: traced, its dynamic dims proved."""
    from ..export import to_onnx

    loaded = load(source, allow_code, range_)
    say("\n".join(describe(loaded)))
    _write_graph(to_onnx(loaded.spec, opset), out, as_json, {})


def optimize(
    source: SourceArg,
    out: OutFile,
    target: TargetOpt = "ort-cpu:fp32",
    option: SetOpt = None,
    range_: RangeOpt = None,
    explain: Annotated[bool, typer.Option("--explain", help="print every site and what became of it")] = False,
    opset: OpsetOpt = 23,
    allow_code: AllowOpt = False,
    as_json: JsonOpt = False,
    debug: DebugOpt = False,  # noqa: ARG001
) -> None:
    """The target graph: lifted, quantized and lowered, not built."""
    from ..explanation import explain as explain_sites
    from ..export import to_onnx
    from ..passes import parse_job
    from ..records import site_records
    from ..stages import optimize_for
    from .given import options_of

    job = parse_job(target)
    options = options_of(option, [job])[job]
    spec = load(source, allow_code, range_).spec
    done = optimize_for(spec, to_onnx(spec, opset), target, options=options)
    sites = site_records(done.log)
    _write_graph(
        done.model,
        out,
        as_json,
        {
            "job": str(done.job),
            "sites": [site.model_dump() for site in sites],
            "proofs": done.lifted.prover.cost(),
            "notes": done.trail.notes,
        },
    )
    for note in done.trail.notes:
        say(note)
    if explain and not as_json:
        print_result(*explain_sites(sites, str(done.lifted.prover)))


def build(
    source: SourceArg,
    out: OutFolder,
    target: TargetOpt = "ort-cpu:fp32",
    option: SetOpt = None,
    range_: RangeOpt = None,
    opset: OpsetOpt = 23,
    allow_code: AllowOpt = False,
    as_json: JsonOpt = False,
    debug: DebugOpt = False,  # noqa: ARG001
) -> None:
    """One artifact, with recorded inputs and outputs to verify it by."""
    from ..export import to_onnx
    from ..output import check_output
    from ..passes import parse_job
    from ..pipeline import build as build_graph
    from ..pipeline import exit_code
    from .given import options_of

    check_output(out)
    job = parse_job(target)
    options = options_of(option, [job])[job]
    spec = load(source, allow_code, range_).spec
    made = build_graph(to_onnx(spec, opset), out, target=target, spec=spec, options=options)
    if as_json:
        print_result(made.manifest.model_dump_json(indent=2))
    else:
        size = f"{made.label}: {made.path} ({made.path.stat().st_size / 1e6:.1f} MB)"
        print_result(size, *(f"{made.label}: {short}" for short in made.record.shortfall))
    raise typer.Exit(exit_code(made.manifest))


def _write_graph(model: Any, out: Path, as_json: bool, facts: dict[str, Any]) -> None:
    from ..passes import count_ops
    from ..stages import save_graph
    from ..store import disk_errors

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
