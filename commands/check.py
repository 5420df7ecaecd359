"""verify, bench: what was built, proved and measured again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..console import Progress, print_json, print_result
from .options import AllowOpt, BudgetOpt, DebugOpt, JsonOpt, RequireOpt, load_if_given


def verify(
    folder: Annotated[Path, typer.Argument(help="what `ship` or `build` wrote")],
    source: Annotated[str | None, typer.Option(help="compare with this model, not with recorded outputs")] = None,
    require: RequireOpt = False,
    allow_code: AllowOpt = False,
    as_json: JsonOpt = False,
    debug: DebugOpt = False,  # noqa: ARG001
) -> None:
    """Parity of what was built, on this device; without --source it needs no torch."""
    from .. import tables
    from ..finish import finish

    spec = load_if_given(source, allow_code)
    with Progress() as progress:
        manifest, code = finish(folder, spec, require=require, progress=progress)
    if as_json:
        print_result(manifest.model_dump_json(indent=2))
    else:
        print_result(tables.shipment(manifest), *tables.reasons(manifest))
    raise typer.Exit(code)


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

    from ..artifact import load_all
    from ..compare.latency import bench as measure
    from ..compare.verify import example_feeds, recorded, typical_feeds
    from ..export import open_reference

    artifacts = [artifact for folder in folders for artifact in load_all(folder)]
    spec = load_if_given(source, allow_code)
    feeds = example_feeds(spec) if spec else typical_feeds(recorded(artifacts[0]))
    with contextlib.ExitStack() as stack, Progress() as progress:
        reference = stack.enter_context(open_reference(spec)) if spec else None
        table = measure(artifacts, dict(feeds), reference, budget, progress=progress)
    if as_json:
        print_json({"rows": {name: row.model_dump() for name, row in table.rows.items()}, "machine": table.machine})
    else:
        print_result(table.table())
