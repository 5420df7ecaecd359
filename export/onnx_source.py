"""An ONNX file as a ModelSpec: the graph stands in the place of the module, and is its own reference."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx_ir as ir

from ..errors import InputError
from ..runtimes.base import Session
from ..runtimes.ort_cpu import PROVIDER, OrtSession
from ..spec import ModelSpec
from .onnx_file import read_onnx

BATCH, LENGTH = 2, 16  # example sizes of a dynamic first axis, and of any other


class OnnxModule:  # no torch.nn.Module: an ONNX file needs no torch
    """What a torch module is to a traced model: here the graph itself, run by ONNX Runtime on the CPU."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model

    def session(self) -> Session:
        """The graph, unchanged, on the CPU."""
        return OrtSession(ir.to_proto(self.model).SerializeToString(), [PROVIDER])

    def forward(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Outputs by name."""
        with self.session() as session:
            return session.run(inputs)


def from_onnx(path: Path) -> ModelSpec:
    """The ModelSpec of an ONNX file; example inputs are made up from the graph (seeded).

    Dims without a size are dynamic, under the file's own names where they are identifiers. Raises InputError for a file
    that is unreadable or hostile.
    """
    model = read_onnx(path)
    dynamic = {str(value.name): _name_dims(value) for value in model.graph.inputs}
    module = OnnxModule(model)
    random = np.random.default_rng(0)
    inputs = {str(value.name): _example(value, random) for value in model.graph.inputs}
    return ModelSpec(
        cast("Any", module), inputs, {name: axes for name, axes in dynamic.items() if axes}, name=path.stem
    )


def _name_dims(value: ir.Value) -> dict[int, str]:
    if value.shape is None or value.type is None:
        raise InputError(f"Input {value.name!r} of the ONNX file has no type or rank: export it with them.")
    axes = {axis: dim for axis, dim in enumerate(value.shape) if not isinstance(dim, int)}
    names = {axis: re.sub(r"\W", "_", dim.value or f"{value.name}_{axis}") for axis, dim in axes.items()}
    named = {axis: name if name.isidentifier() else f"dim_{name}" for axis, name in names.items()}
    value.shape = ir.Shape([named.get(axis, dim) for axis, dim in enumerate(value.shape)])
    return named


def _example(value: ir.Value, random: np.random.Generator) -> np.ndarray:
    """A tensor that the graph accepts: indices within their table, ones for masks, else normal numbers."""
    assert value.shape is not None
    assert value.dtype is not None
    shape = [dim if isinstance(dim, int) else LENGTH if axis else BATCH for axis, dim in enumerate(value.shape)]
    dtype = value.dtype.numpy()
    if np.issubdtype(dtype, np.floating):
        return random.standard_normal(shape).astype(dtype)
    if "mask" in str(value.name) or dtype == np.bool_:
        return np.ones(shape, dtype)
    return random.integers(0, min(_table_sizes(value), default=2), shape).astype(dtype)


def _table_sizes(value: ir.Value) -> Iterator[int]:
    """Sizes of the constant tables that `value` is an index into."""
    for node in value.consumers():
        if node.op_type == "Gather" and node.inputs[1] is value:
            table = node.inputs[0]
            axis = node.attributes.get_int("axis", 0)
            if table is not None and table.const_value is not None:
                yield int(table.const_value.shape.numpy()[axis])
        elif node.op_type in ("Cast", "Unsqueeze", "Squeeze", "Reshape", "Identity"):
            yield from _table_sizes(node.outputs[0])
