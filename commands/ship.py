"""ship: all of the route in one command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..console import Progress, print_json, print_result, say
from ..errors import UsageError
from .options import DebugOpt, JsonOpt, RangeOpt, SetOpt, describe

if TYPE_CHECKING:
    from ..export import Source
    from ..recipe import Recipe, Step
    from ..recipe_file import Said


def ship(
    source: Annotated[
        str | None,
        typer.Argument(
            help="file.py:name, package.module:name, Hugging Face folder, model.onnx, model.pt2 or zoo:name"
        ),
    ] = None,
    target: Annotated[
        list[str] | None, typer.Option("--target", "-t", help=r"target\[@device][:precision]; may be repeated")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="output folder")] = None,
    recipe: Annotated[Path | None, typer.Option(help="YAML file that says all of this; flags count before it")] = None,
    save_recipe: Annotated[Path | None, typer.Option(help="write what ran as a recipe, defaults filled in")] = None,
    option: SetOpt = None,
    range_: RangeOpt = None,
    calibration: Annotated[
        str | None, typer.Option(help="real inputs: .npz or .safetensors file or folder, or file.py:function")
    ] = None,
    tolerance: Annotated[
        list[str] | None,
        typer.Option(help="precisions.NAME.LIMIT=VALUE or outputs.NAME.LIMIT=VALUE of parity; may be repeated"),
    ] = None,
    opset: Annotated[int | None, typer.Option(help="opset of the golden graph, 18 to 23", show_default="23")] = None,
    budget: Annotated[
        float | None, typer.Option(help="seconds for measuring latency; 0: do not measure", show_default="20")
    ] = None,
    tune: Annotated[
        bool | None,
        typer.Option("--tune/--no-tune", help="choose among a target's forms by measuring them on this machine"),
    ] = None,
    tune_seconds: Annotated[float | None, typer.Option(help="for that, a target", show_default="60")] = None,
    build_seconds: Annotated[
        float | None,
        typer.Option(help="that a target's builder, or its first run, may take", show_default="3600"),
    ] = None,
    build_memory_gb: Annotated[
        float | None,
        typer.Option(help="memory that either may take, in 1e9 bytes", show_default="nine tenths of what is free"),
    ] = None,
    require: Annotated[
        bool | None, typer.Option("--require/--no-require", help="exit 5 where a target cannot run here")
    ] = None,
    allow_code: Annotated[
        bool | None,
        typer.Option("--allow-code/--no-allow-code", help="read a .pt2 program, which can run code that is in it"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the plan and stop")] = False,
    as_json: JsonOpt = False,
    debug: DebugOpt = False,  # noqa: ARG001 - read by main
) -> None:
    """All of it: export, lift, quantize, lower, build, verify, measure, report."""
    from .. import recipe_file, tables
    from ..export.calibration import load_calibration
    from ..output import check_output
    from ..pipeline import check_required, run_recipe
    from ..recipe import plan
    from .given import ranges_of, tolerances_of, with_options

    given = {
        "source": source,
        "targets": target or None,
        "out": out,
        "opset": opset,
        "ranges": ranges_of(range_) or None,
        "calibration": calibration,
        "tolerances": tolerances_of(tolerance) or None,
        "budget": budget,
        "tune": tune,
        "tune_seconds": tune_seconds,
        "build_seconds": build_seconds,
        "build_memory_gb": build_memory_gb,
        "require": require,
        "allow_code": allow_code,
    }
    said = recipe_file.read_recipe(recipe, {name: value for name, value in given.items() if value is not None})
    if recipe is None:
        _check_given(given)
    asked, replaced = with_options(said.recipe(), option)
    if tune_seconds is not None and not asked.tune:
        raise UsageError("--tune-seconds is for --tune: give both, or neither.")
    check_output(asked.out)
    if save_recipe is not None:
        recipe_file.check_save(save_recipe, recipe)
    steps = plan(asked.jobs)
    loaded = _loaded(said, asked)
    with said.at("calibration"):
        data = load_calibration(asked.calibration) if asked.calibration is not None else None
    lines = [*describe(loaded), *said.notes(), *replaced, *_plan(asked, steps)]
    if dry_run and as_json:
        parts = [{"job": str(s.job), "does": s.does, "why": s.why, "options": asked.options[s.job]} for s in steps]
        print_json({"plan": lines, "steps": parts})
    elif dry_run:
        print_result("\n".join(lines))
    else:
        say("\n".join(lines))
    check_required(steps, asked.require)
    if not dry_run:
        with Progress() as progress:
            made = run_recipe(asked, loaded, data, progress=progress)
    if save_recipe is not None:
        recipe_file.save_recipe(asked, save_recipe)
    if dry_run:
        return
    if as_json:
        print_result(made.manifest.model_dump_json(indent=2))
    else:
        report = f"report: {asked.out / 'report.html'}"
        print_result(tables.shipment(made.manifest), *tables.reasons(made.manifest), report)
    raise typer.Exit(made.code)


def _check_given(given: dict[str, Any]) -> None:
    names = {"source": "SOURCE", "targets": "--target", "out": "--out"}
    missing = [names[name] for name in names if given[name] is None]
    if missing:
        raise UsageError(f"{', '.join(missing)} missing: give it, or a recipe with --recipe.")


def _loaded(said: Said, asked: Recipe) -> Source:
    """The source, with the ranges that were asked for; what is wrong with it is said of where it was named."""
    from dataclasses import replace

    from ..export import load_source

    with said.at("source"):
        loaded = load_source(asked.source, allow_code=asked.allow_code)
    for dim, bounds in asked.ranges.items():
        with said.at("ranges", dim):
            loaded = replace(loaded, spec=replace(loaded.spec, ranges={**loaded.spec.ranges, dim: bounds}))
    return loaded


def _plan(asked: Recipe, steps: list[Step]) -> list[str]:
    from ..recipe import is_tuned
    from .given import in_words

    tuned = {step.job for step in steps if asked.tune and is_tuned(step)}
    does = [
        f"{s.job}: will {'tune, ' * (s.job in tuned)}{s.does}{in_words(asked.options[s.job])}, because {s.why}"
        for s in steps
    ]
    limits = [f"tolerance of {what}: {allowed}, in place of the table's" for what, allowed in asked.tolerances.places()]
    return [*does, *limits]
