"""Graphs for the tests of forms: attention on heads side by side, with its linear layers; and what to feed them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from graphwright.spec import SITE

Arrays = dict[str, np.ndarray]
WEIGHTS = {"wq": (32, 32), "wk": (32, 32), "wv": (32, 32), "few": (32, 16), "b": (32,), "scale": (32,)}
# float32, sums of 32 products of size 1: another order of sums moves the last bits
RTOL, ATOL = 1e-5, 4e-6


def make(body: str, inputs: str = "float[B, S, 32] x", output: str = "float[B, S, 32] y") -> ir.Model:
    """A graph of `body` with the constant matrices and vectors of WEIGHTS; every Attention is a site."""
    text = ", ".join(f"float{list(shape)} {name}" for name, shape in WEIGHTS.items())
    model = ir.from_onnx_text(
        f'<ir_version: 10, opset_import: ["": 23]> layers ({inputs}, {text}) => ({output}) {{{body}}}'
    )
    random = np.random.default_rng(0)
    for value in list(model.graph.inputs):
        if value.name in WEIGHTS:
            array = (random.standard_normal(WEIGHTS[value.name]) / 4).astype(np.float32)
            value.const_value = ir.tensor(array, name=value.name)
            model.graph.inputs.remove(value)
            model.graph.register_initializer(value)
    ShapeInferencePass()(model)
    for node in model.graph:
        if node.op_type == "Attention":
            node.metadata_props[SITE] = "attention"
    return model


def cases(model: ir.Model) -> Iterator[Arrays]:
    """Batch 1, length 1, odd lengths; masks with at least one allowed key a row."""
    random = np.random.default_rng(1)
    for size in ({"B": 1, "S": 1, "T": 1}, {"B": 2, "S": 5, "T": 3}, {"B": 3, "S": 7, "T": 4}):
        feeds: Arrays = {}
        for value in model.graph.inputs:
            shape = [dim if isinstance(dim, int) else size[str(dim.value)] for dim in value.shape or ()]
            array: np.ndarray = random.standard_normal(shape).astype(np.float32)
            if value.dtype == ir.DataType.BOOL:
                array = array > 0
                array[..., 0] = True
            feeds[str(value.name)] = array
        yield feeds


def ops(model: ir.Model) -> list[str]:
    """Op types in order; `contrib:` in front of ONNX Runtime's own."""
    return [f"contrib:{node.op_type}" if node.domain == "com.microsoft" else node.op_type for node in model.graph]
