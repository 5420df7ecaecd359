"""models, targets, doctor, schema, clean: what there is here."""

from __future__ import annotations

from typing import Annotated

import typer

from ..console import print_json, print_result
from .options import DebugOpt, JsonOpt


def models(as_json: JsonOpt = False, debug: DebugOpt = False) -> None:  # noqa: ARG001
    """The models of the zoo."""
    from .. import tables
    from ..models.registry import ENTRIES

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


def targets(as_json: JsonOpt = False, debug: DebugOpt = False) -> None:  # noqa: ARG001
    """The targets, their precisions and devices, and what of them this machine can run."""
    from .. import tables
    from ..availability import survey

    found = survey()
    if as_json:
        print_json([row.as_json() for row in found])
    else:
        print_result(*tables.targets(found))


def doctor(as_json: JsonOpt = False, debug: DebugOpt = False) -> None:  # noqa: ARG001
    """What this machine has, what it lacks for each target, and how to mend it."""
    from .. import tables
    from ..doctor import examine

    findings = examine()
    if as_json:
        print_json([finding.__dict__ for finding in findings])
    else:
        print_result(tables.plain(("what", "state", "detail"), [(f.name, f.state, f.detail) for f in findings]))


def schema(
    what: Annotated[str, typer.Argument(help="manifest or recipe")] = "manifest",
    as_json: JsonOpt = False,  # noqa: ARG001 - it is JSON anyway
    debug: DebugOpt = False,  # noqa: ARG001
) -> None:
    """The JSON Schema of manifest.json, or of recipes."""
    from ..manifest import Manifest
    from ..recipe_schema import recipe_schema
    from ..spec import pick

    schemas = {"manifest": Manifest.model_json_schema, "recipe": recipe_schema}
    print_json(schemas[pick("schema", what, schemas)]())


def clean(as_json: JsonOpt = False, debug: DebugOpt = False) -> None:  # noqa: ARG001
    """Empty the store of stages."""
    from ..store import Store

    count, size = Store().clean()
    if as_json:
        print_json({"objects": count, "bytes": size})
    else:
        print_result(f"removed {count} stages, {size / 1e6:.1f} MB")
