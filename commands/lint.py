"""lint: what a target will refuse of a graph, or run slowly."""

from __future__ import annotations

from typing import Annotated

import typer

from ..console import print_json, print_result
from ..errors import Exit, UsageError
from .options import AllowOpt, DebugOpt, JsonOpt, OpsetOpt, SourceArg, TargetOpt, load


def lint(
    source: SourceArg,
    target: TargetOpt = "ort-cpu:fp32",
    as_is: Annotated[
        bool, typer.Option("--as-is", help="the ONNX file itself, not the graph that would be built of it")
    ] = False,
    opset: OpsetOpt = 23,
    allow_code: AllowOpt = False,
    as_json: JsonOpt = False,
    debug: DebugOpt = False,  # noqa: ARG001
) -> None:
    """What a target will refuse of the graph, or run slowly, on any machine; exit 1 where it is refused."""
    from dataclasses import asdict

    from .. import tables
    from ..export import to_onnx
    from ..passes import parse_job
    from ..passes.lint import lint as lint_graph
    from ..records import lint_records
    from ..stages import ranges_of

    parse_job(target)
    if as_is:
        if not source.endswith(".onnx"):
            raise UsageError(f"--as-is is for an ONNX file, but the source is {source}: leave --as-is out.")
        found = lint_graph(source, target, as_is=True)
    else:
        spec = load(source, allow_code).spec
        golden = to_onnx(spec, opset)
        found = lint_graph(golden, target, ranges=ranges_of(golden, spec))
    if as_json:
        findings = [asdict(finding) for finding in found.findings]
        print_json({"job": str(found.job), "as_is": as_is, "passed": found.passed, "findings": findings})
    else:
        records = lint_records(found)
        counts = ", ".join(tables.lint_counts(records)) or "lint: nothing found"
        print_result("\n".join([*tables.lint_lines(records), f"{found.job}: {counts}"]))
    raise typer.Exit(Exit.OK if found.passed else Exit.VERIFICATION)
