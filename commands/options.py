"""Arguments and options that several verbs share, and the source behind one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UsageError

if TYPE_CHECKING:
    from ..export import Source
    from ..spec import ModelSpec

SourceArg = Annotated[
    str,
    typer.Argument(help="file.py:name, package.module:name, Hugging Face folder, model.onnx, model.pt2 or zoo:name"),
]
TargetOpt = Annotated[
    str, typer.Option("--target", "-t", help=r"target\[@device][:precision], of `graphwright targets`")
]
JsonOpt = Annotated[bool, typer.Option("--json", help="print JSON on stdout")]
DebugOpt = Annotated[bool, typer.Option("--debug", help="show the traceback of an error")]
OpsetOpt = Annotated[int, typer.Option(help="opset of the golden graph, 18 to 23")]
OutFolder = Annotated[Path, typer.Option("--out", "-o", help="output folder")]
OutFile = Annotated[Path, typer.Option("--out", "-o", help="ONNX file to write")]
BudgetOpt = Annotated[float, typer.Option(help="seconds for measuring latency; 0: do not measure")]
RequireOpt = Annotated[bool, typer.Option("--require", help="exit 5 where a target cannot run here")]
AllowOpt = Annotated[bool, typer.Option("--allow-code", help="read a .pt2 program, which can run code that is in it")]
RangeOpt = Annotated[
    list[str] | None,
    typer.Option("--range", help="DIM=MIN:OPT:MAX of a dynamic dim, in place of the source's; may be repeated"),
]
SetOpt = Annotated[
    list[str] | None,
    typer.Option("--option", help="[TARGET.]KEY=VALUE, of `graphwright schema recipe`; may be repeated"),
]


def load(source: str, allow_code: bool, ranges: list[str] | None = None) -> Source:
    """What `source` names, with `ranges` in place of its own."""
    from ..export import load_source
    from .given import ranges_of

    given = ranges_of(ranges)
    loaded = load_source(source, allow_code=allow_code)
    bounds = {dim: (low, opt, high) for dim, (low, opt, high) in given.items()}
    return replace(loaded, spec=replace(loaded.spec, ranges={**loaded.spec.ranges, **bounds})) if given else loaded


def load_if_given(source: str | None, allow_code: bool) -> ModelSpec | None:
    """The spec of what `source` names, if it was given."""
    if source is None and allow_code:
        raise UsageError("--allow-code is for a .pt2 program, given as --source: leave it out.")
    return None if source is None else load(source, allow_code).spec


def describe(source: Source) -> list[str]:
    """The head of a plan: what the model is and what is fed to it."""
    spec = source.spec
    lines = [f"{spec.name}: {source.found} (from {source.text})"]
    for name, tensor in spec.tensors.items():
        axes = spec.dynamic.get(name, {})
        dims = ", ".join(axes.get(axis, str(size)) for axis, size in enumerate(tensor.shape))
        lines.append(f"  {name}: {str(tensor.dtype).removeprefix('torch.')} [{dims}]")
    return [*lines, *(f"  {dim}: {low} to {high}" for dim, (low, _, high) in spec.ranges.items())]
