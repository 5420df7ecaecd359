"""ship: all of the route in one command."""

from __future__ import annotations

from typing import Annotated

import typer

from ..console import Progress, print_json, print_result, say
from .options import AllowOpt, BudgetOpt, DebugOpt, JsonOpt, OpsetOpt, OutFolder, RequireOpt, SourceArg, describe, load


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
    from .. import tables
    from ..export.calibration import load_calibration
    from ..output import check_output
    from ..pipeline import check_required
    from ..pipeline import ship as ship_all
    from ..recipe import make_recipe, plan

    recipe = make_recipe(source=source, targets=tuple(target), out=out, opset=opset, budget=budget, require=require)
    check_output(out)
    steps = plan(recipe.jobs)
    loaded = load(source, allow_code)
    lines = [*describe(loaded), *(f"{s.job}: will {s.does}, because {s.why}" for s in steps)]
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
