"""A .pt2 program (`torch.export.save`) as a ModelSpec. Reading one can run code: it is read in a process of its own.

Such a file may hold pickles and shared libraries, which `torch.export.load` runs. The process is no sandbox: what it
runs has the user's rights. It keeps this one clean and alive; what comes back is a graph, read as any ONNX file is.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..errors import BuildError, InputError, UsageError
from ..runtimes.child import PYTHON, ask, error_of
from ..spec import ModelSpec
from .onnx_source import from_onnx

GRAPH, INPUTS = "model.onnx", "inputs.npz"
COMMAND = (*PYTHON, "graphwright.export.pt2_child")


def from_pt2(path: Path, *, allow_code: bool, command: Sequence[str] = COMMAND) -> tuple[ModelSpec, str]:
    """The spec of a .pt2 program, and one line on what it is. The golden graph, proved against torch, is its module.

    Dims without a size in the program are dynamic, under torch's own names for them; the inputs are the program's
    examples. Raises UsageError without `allow_code`, InputError for a file that is no program or does not run,
    BuildError where it has no ONNX form.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist or is no file.")
    if not allow_code:
        raise UsageError(
            f"{path}: reading a .pt2 program can run code that is in it. If you trust where it comes from, allow that: "
            "--allow-code, or allow_code=True in Python."
        )
    with tempfile.TemporaryDirectory(prefix="graphwright-") as folder:
        try:
            answer, _ = ask(command, f"The reader of {path}", {"program": str(path.absolute()), "folder": folder})
        except BuildError as error:
            raise InputError(f"{error}") from error
        if "error" in answer:
            raise error_of(answer, answer["message"])
        spec = from_onnx(Path(folder, GRAPH))
        with np.load(Path(folder, INPUTS), allow_pickle=False) as arrays:
            inputs = {name: arrays[name] for name in spec.tensors}
    return replace(spec, inputs=inputs, name=path.stem), answer["found"]
