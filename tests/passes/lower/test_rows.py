"""Tokens as rows: the exact graph, the same numbers, and what stays as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import ShapeInferencePass

from graphwright.passes.lower.rows import FlattenRows

Arrays = dict[str, np.ndarray]
Compare = Callable[[ir.Model, ir.Model, Iterable[Arrays], float, float], None]

# float32; a Gemm adds its bias before the products, so that sums of 8 numbers of size 1 differ in their last bits
RTOL, ATOL = 1e-5, 2e-6
X = "float[B, S, 8] x"
WEIGHTS = {"w": (8, 8), "u": (8, 6), "back": (6, 8), "b": (8,), "c": (6,), "wide": (1, 1, 8), "scale": (8,)}
LAYER = """
    m = MatMul(x, w)  h = Add(m, b)  g = Gelu(h)
    n = MatMul(g, u)  p = Add(c, n)  q = MatMul(p, back)  r = Add(q, b)  t = Add(r, x)
    y = LayerNormalization <axis = -1> (t, scale, b)"""
ON_ROWS = ["Gemm", "Gelu", "Gemm", "Gemm", "Add", "LayerNormalization", "Reshape"]


def make(text: str, inputs: str = X, output: str = "float[B, S, 8] y") -> ir.Model:
    shapes = ", ".join(f"float{list(shape)} {name}" for name, shape in WEIGHTS.items())
    model = ir.from_onnx_text(
        f'<ir_version: 10, opset_import: ["": 23]> rows ({inputs}, {shapes}) => ({output}) {{{text}}}'
    )
    random = np.random.default_rng(0)
    for value in list(model.graph.inputs):
        if value.name in WEIGHTS:
            array = (random.standard_normal(WEIGHTS[value.name]) / 3).astype(np.float32)
            value.const_value = ir.tensor(array, name=value.name)
            model.graph.inputs.remove(value)
            model.graph.register_initializer(value)
    ShapeInferencePass()(model)
    return model


def cases(model: ir.Model) -> Iterator[Arrays]:
    random = np.random.default_rng(1)
    for size in ({"B": 1, "S": 1}, {"B": 2, "S": 5}, {"B": 3, "S": 7}):
        yield {
            str(value.name): random.standard_normal(
                [dim if isinstance(dim, int) else size[str(dim.value)] for dim in value.shape or ()]
            ).astype(np.float32)
            for value in model.graph.inputs
        }


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def test_a_layer_runs_on_rows(compare: Compare) -> None:
    model = make(LAYER)
    after = model.clone()
    assert FlattenRows()(after).modified
    assert sorted(ops(after)[:3]) == ["Concat", "Reshape", "Shape"]
    assert ops(after)[3:] == ON_ROWS
    compare(model, after, cases(model), RTOL, ATOL)
    assert not FlattenRows()(after).modified


def test_one_unknown_dim_needs_no_computed_shape(compare: Compare) -> None:
    model = make(LAYER, "float[B, 4, 8] x", "float[B, 4, 8] y")
    after = model.clone()
    assert FlattenRows()(after).modified
    assert ops(after) == ["Reshape", *ON_ROWS]
    compare(model, after, cases(model), RTOL, ATOL)


@pytest.mark.parametrize(
    ("text", "inputs", "output"),
    [
        ("m = MatMul(x, w)  h = Add(m, wide)  y = Mul(h, x)", X, "float[B, S, 8] y"),
        ("m = MatMul(x, w)  h = Add(m, b)  y, z = Split <axis = -1, num_outputs = 2> (h)", X, "float[B, S, 4] y"),
        ("m = MatMul(x, w)  h = Add(m, b)  y = Softmax <axis = 2> (h)", X, "float[B, S, 8] y"),
        ("m = MatMul(x, w)  h = Add(m, b)  y = Softmax <axis = 1> (h)", X, "float[B, S, 8] y"),
        ("m = MatMul(x, w)  h = Add(m, b)  y = Concat <axis = 0> (h, h)", X, "float[C, S, 8] y"),
        ("m = MatMul(x, w)  h = Add(m, b)  y = Concat <axis = -1> (h, x)", X, "float[B, S, 16] y"),
        ("m = MatMul(x, w)  h = Add(m, b)  k = Mul(h, h)  y = Transpose <perm = [1, 0, 2]> (k)", X, "float[S, B, 8] y"),
        ("m = MatMul(x, w)  y = Add(m, b)", "float[B, 3, S, 8] x", "float[B, 3, S, 8] y"),
        ("m = MatMul(x, w)  h = Add(m, b)  y = RMSNormalization(h, scale)  z = Neg(m)", X, "float[B, S, 8] y"),
    ],
    ids=[
        "row vector",
        "split",
        "softmax",
        "softmax over tokens",
        "concat of batches",
        "concat",
        "mixed by a transpose",
        "rank 4",
        "product read twice",
    ],
)
def test_token_wise_ops(text: str, inputs: str, output: str, compare: Compare) -> None:
    model = make(text, inputs, output)
    after = model.clone()
    assert FlattenRows()(after).modified == ("z = Neg" not in text)
    compare(model, after, cases(model), RTOL, ATOL)


def test_views_to_and_from_rows_vanish(compare: Compare) -> None:
    text = """
        rows = Constant <value_ints = [-1, 8]> ()  sizes = Shape(x)
        flat = Reshape(x, rows)  g = Gemm(flat, w, b)  h = Reshape(g, sizes)
        s = Add(h, x)  n = LayerNormalization(s, scale, b)
        flat2 = Reshape(n, rows)  g2 = Gemm(flat2, w, b)  h2 = Reshape(g2, sizes)  y = Add(h2, s)"""
    model = make(text)
    for name in ("h", "h2"):
        value = next(v for node in model.graph for v in node.outputs if v.name == name)
        value.shape = ir.Shape(["B", "S", 8])
    ShapeInferencePass()(model)
    after = model.clone()
    assert FlattenRows()(after).modified
    assert ops(after).count("Reshape") <= 3  # into rows, the one that tells the sizes, and out of rows
    compare(model, after, cases(model), RTOL, ATOL)


@pytest.mark.parametrize(
    ("text", "inputs", "output"),
    [
        ("m = MatMul(x, w)  g = Gelu(m)  y = MatMul(g, w)", X, "float[B, S, 8] y"),
        ("h = Add(x, b)  y = Gelu(h)", X, "float[B, S, 8] y"),
        ("m = MatMul(x, w)  y = Add(m, b)", "float[B, 8] x", "float[B, 8] y"),
        ("m = MatMul(x, t)  y = Add(m, b)", f"{X}, float[8, 8] t", "float[B, S, 8] y"),
    ],
    ids=["no bias", "no linear layer", "a matrix already", "a computed weight"],
)
def test_what_gains_nothing_stays(text: str, inputs: str, output: str) -> None:
    model = make(text, inputs, output)
    assert not FlattenRows()(model).modified
