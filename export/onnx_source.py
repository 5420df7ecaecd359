"""An ONNX file as a ModelSpec: the graph stands in the place of the module, and is its own reference."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveInitializersFromInputsPass

from ..errors import InputError
from ..runtimes.base import Session
from ..spec import ModelSpec, parts_of, size_of
from .graph_session import open_graph
from .onnx_file import read_onnx

BATCH, LENGTH = 2, 16  # example sizes of a dynamic first axis, and of any other


class OnnxModule:  # no torch.nn.Module: an ONNX file needs no torch
    """What a torch module is to a traced model: here the graph itself, run by ONNX Runtime on the CPU."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model

    def session(self) -> Session:
        """The graph, unchanged, on the CPU."""
        return open_graph(self.model)

    def forward(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Outputs by name."""
        with self.session() as session:
            return session.run(inputs)


def from_onnx(path: Path) -> ModelSpec:
    """The ModelSpec of an ONNX file; example inputs are made up from the graph (seeded).

    Dims without a size are dynamic, under the file's own names where they are identifiers. Raises InputError for a file
    that is unreadable or hostile, or has inputs that no arrays can be made up for.
    """
    model = read_onnx(path)
    RemoveInitializersFromInputsPass()(model)  # an input with a default, as old exporters write every weight
    for value in model.graph.inputs:
        _check_input(value)
    _name_dims(model)
    dynamic = {
        str(value.name): {axis: str(dim) for axis, dim in enumerate(value.shape or ()) if not isinstance(dim, int)}
        for value in model.graph.inputs
    }
    random, sizes = np.random.default_rng(0), _sizes(model)
    inputs = {str(value.name): _example(value, random, sizes) for value in model.graph.inputs}
    module = cast("Any", OnnxModule(model))
    return ModelSpec(module, inputs, {name: axes for name, axes in dynamic.items() if axes}, name=path.stem)


def _check_input(value: ir.Value) -> None:
    if value.shape is None or value.dtype is None:
        raise InputError(f"Input {value.name!r} of the ONNX file has no type or rank: export it with them.")
    if not isinstance(value.type, ir.TensorType) or value.dtype.numpy().kind not in "biuf":
        raise InputError(
            f"Input {value.name!r} of the ONNX file is {value.type}: only tensors of numbers that numpy has can be fed."
        )


def _name_dims(model: ir.Model) -> None:
    """Every dynamic dim of the inputs gets a name that is an identifier, and the same one wherever else it stands."""
    texts = []
    for value in model.graph.inputs:
        named = [
            dim if isinstance(dim, int) else dim.value or f"{value.name}_{a}" for a, dim in enumerate(_dims(value))
        ]
        value.shape = ir.Shape(named)
        texts += [dim for dim in named if isinstance(dim, str)]
    names: dict[str, str] = {}
    for text in sorted(dict.fromkeys(texts), key=lambda text: not text.isidentifier()):
        if len(parts_of(text)) > 1 and all(part.isdecimal() or part in names for part in parts_of(text)):
            names[text] = " + ".join(parts_of(text))  # both are identifiers, and keep their names
            continue
        if re.search(r"[-+*/]", text) and set(re.findall(r"[A-Za-z_]\w*", text)) & set(texts):
            raise InputError(
                f"A dim of the ONNX file is {text!r}: a formula of other dims that is no sum cannot be varied in this "
                "version. Export the model with a fixed size there."
            )
        name = re.sub(r"\W", "_", text)
        name = name if name.isidentifier() else f"dim_{name}"
        while name in names.values():
            name += "_"
        names[text] = name
    for value in [*model.graph.inputs, *(value for node in model.graph.all_nodes() for value in node.outputs)]:
        if value.shape is not None:
            value.shape = ir.Shape(
                [d if isinstance(d, int) else names.get(d.value or "", d.value) for d in _dims(value)]
            )


def _dims(value: ir.Value) -> tuple[int | ir.SymbolicDim, ...]:
    return tuple(value.shape or ())


def _sizes(model: ir.Model) -> dict[str, int]:
    """An example size for each dim of the inputs that is no sum of others."""
    sizes: dict[str, int] = {}
    for value in model.graph.inputs:
        for axis, dim in enumerate(_dims(value)):
            if not isinstance(dim, int) and str(dim).isidentifier():
                sizes.setdefault(str(dim), LENGTH if axis else BATCH)
    return sizes


def _example(value: ir.Value, random: np.random.Generator, sizes: dict[str, int]) -> np.ndarray:
    """A tensor that the graph accepts: indices within their table, ones for masks, else normal numbers."""
    shape = [dim if isinstance(dim, int) else size_of(str(dim), sizes) for dim in _dims(value)]
    assert value.dtype is not None
    dtype = value.dtype.numpy()
    if np.issubdtype(dtype, np.floating):
        return np.asarray(random.standard_normal(shape), dtype)
    if "mask" in str(value.name) or dtype == np.bool_:
        return np.ones(shape, dtype)
    return np.asarray(random.integers(0, min(_table_sizes(value), default=2), shape), dtype)


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
