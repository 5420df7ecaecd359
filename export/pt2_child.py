"""The process that reads a .pt2 program: writes its golden graph, proved against torch, and its example inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch._guards import detect_fake_mode
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from ..errors import GraphwrightError, InputError, UsageError
from ..runtimes.child import serve
from ..runtimes.reference import to_array
from ..spec import ModelSpec
from ..store import disk_errors
from .graph_session import IN_MEMORY, open_graph
from .prove import prove_dynamic
from .pt2 import GRAPH, INPUTS
from .repairs import repair
from .trace import convert

OPSETS = (23, 18)


class _Program(torch.nn.Module):
    """A program under a forward that takes its tensors by name."""

    def __init__(self, program: ExportedProgram, names: list[str]) -> None:
        super().__init__()
        assert program.module_call_graph[0].signature is not None
        self._tree = program.module_call_graph[0].signature.in_spec
        self._names = names
        self._run = program.module().forward  # as a submodule it would refuse eval()

    def forward(self, **tensors: torch.Tensor) -> Any:
        args, kwargs = torch.utils._pytree.tree_unflatten([tensors[name] for name in self._names], self._tree)
        return self._run(*args, **kwargs)


def convert_program(question: dict[str, Any]) -> dict[str, Any]:
    """Read question["program"], write into question["folder"], say what was found."""
    path, folder = Path(question["program"]), Path(question["folder"])
    program = _load(path)
    repair(program)
    spec = spec_of(program, path)
    golden = _golden(spec, program)
    size = sum(
        value.const_value.nbytes for value in golden.graph.initializers.values() if value.const_value is not None
    )
    with disk_errors(folder):
        ir.save(golden, folder / GRAPH, external_data=f"{GRAPH}.data" if size > IN_MEMORY else None)
        arrays: dict[str, Any] = {name: to_array(value) for name, value in spec.tensors.items()}
        np.savez(folder / INPUTS, **arrays)
    nodes = sum(node.op == "call_function" for node in program.graph.nodes)
    return {"found": f"a torch.export program of {nodes} operators; its golden graph, proved, is its reference"}


def _load(path: Path) -> ExportedProgram:
    try:
        program = torch.export.load(path)
    except Exception as error:
        raise InputError(f"{path} is no program that torch {torch.__version__} can read: {_line(error)}") from error
    mode = detect_fake_mode([node.meta.get("val") for node in program.graph.nodes])
    if mode is not None and mode.shape_env is not None:
        # torch enters sums of dims among the symbols when it loads a program, and fails over them when it converts one
        ranges = mode.shape_env.var_to_range
        for formula in [symbol for symbol in ranges if not symbol.is_symbol]:
            del ranges[formula]
    return program


def spec_of(program: ExportedProgram, path: Path) -> ModelSpec:
    """The program's own example inputs under its own names; dims that are symbols in it are dynamic."""
    if program.example_inputs is None:
        raise InputError(f"{path} holds no example inputs: save it with them.")
    leaves = torch.utils._pytree.tree_leaves(program.example_inputs)
    names = [item.arg.name for item in program.graph_signature.input_specs if item.kind is InputKind.USER_INPUT]
    for name, leaf in zip(names, leaves, strict=True):
        if not isinstance(leaf, torch.Tensor):
            raise InputError(f"{path} takes {leaf!r} as {name!r}, which is no tensor: export it with tensors alone.")
    shapes = {node.name: node.meta["val"].shape for node in program.graph.nodes if node.name in names}
    dynamic = {
        name: {axis: str(size) for axis, size in enumerate(shapes[name]) if isinstance(size, torch.SymInt)}
        for name in names
    }
    inputs, dynamic = dict(zip(names, leaves, strict=True)), {name: axes for name, axes in dynamic.items() if axes}
    try:
        return ModelSpec(_Program(program, names), inputs, dynamic, name=path.stem)
    except UsageError as error:  # a dim that is another formula than a sum
        raise InputError(f"{path} has dims that cannot be varied in this version: {error}") from error


def _golden(spec: ModelSpec, program: ExportedProgram) -> ir.Model:
    """The golden graph, of an older opset where ONNX Runtime, which is to run it as the reference, takes only that."""
    feeds = {name: to_array(value) for name, value in spec.tensors.items()}
    for opset in OPSETS:
        golden = convert(spec, program, opset)
        try:
            with open_graph(golden) as session:
                session.run(feeds)
        except GraphwrightError:
            if opset == OPSETS[-1]:
                raise
        else:
            break
    prove_dynamic(spec, golden)
    return golden


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


if __name__ == "__main__":
    serve(convert_program)
