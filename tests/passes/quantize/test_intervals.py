"""Bounds hold: no run goes beyond what a rule claims; and they are close where that matters."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import ShapeInferencePass

from graphwright.export.graph_session import open_graph
from graphwright.passes.quantize.intervals import RULES, Bound, bound_values

N = 8
_random = np.random.default_rng(0)
CONSTANTS: dict[str, np.ndarray] = {
    "w": _random.normal(0, 1, (N, N)).astype(np.float32),
    "u": _random.normal(0, 1, (N, 2 * N)).astype(np.float32),
    "g": _random.normal(1, 0.5, N).astype(np.float32),
    "b": _random.normal(0, 2, N).astype(np.float32),
    "k": _random.normal(0, 1, (3, 2, 3)).astype(np.float32),
    "table": _random.normal(0, 2, (11, N)).astype(np.float32),
    "two": np.array(2, np.float32),
    "three": np.array(3, np.float32),
    "four": np.array(4, np.float32),
    "low": np.array(-1, np.float32),
    "first": np.array([0], np.int64),
    "last": np.array([-1], np.int64),
    "one": np.array([1], np.int64),
    "ids": np.array([[0, 3], [10, 1]], np.int64),
    "columns": np.array([7, 0, 0, 0], np.int64),
    "positions": np.array([[0, 1, 2]], np.int64),
    "cos": np.cos(np.arange(6, dtype=np.float32)).reshape(3, 2),
    "sin": np.sin(np.arange(6, dtype=np.float32)).reshape(3, 2),
}
# h = LayerNormalization(x) is bounded whatever x is; each body makes y of it
BODIES = {
    "LayerNormalization": "y = Identity(h)",
    "RMSNormalization": "y = RMSNormalization(x, g)",
    "Add": "y = Add(h, b)",
    "Sub": "y = Sub(b, h)",
    "Mul": "s = Sigmoid(h)  y = Mul(h, s)",
    "Div": "y = Div(h, two)",
    "Div by a sum": "s = Sigmoid(h)  p = Add(s, two)  y = Div(h, p)",
    "Abs": "y = Abs(h)",
    "Neg": "y = Neg(h)",
    "Relu": "y = Relu(h)",
    "Gelu": "y = Gelu(h)",
    "Gelu by tanh": 'y = Gelu <approximate = "tanh"> (h)',
    "HardSwish": "y = HardSwish(h)",
    "Mish": "y = Mish(h)",
    "Softplus": "y = Softplus(h)",
    "Exp": "y = Exp(h)",
    "Sqrt": "a = Abs(h)  y = Sqrt(a)",
    "Log": "a = Exp(h)  y = Log(a)",
    "Sigmoid": "y = Sigmoid(x)",
    "HardSigmoid": "y = HardSigmoid(x)",
    "Tanh": "y = Tanh(x)",
    "Erf": "y = Erf(x)",
    "Sin": "y = Sin(x)",
    "Cos": "y = Cos(x)",
    "Softsign": "y = Softsign(x)",
    "Softmax": "y = Softmax(x)",
    "LpNormalization": "y = LpNormalization(x)",
    "Clip": "y = Clip(h, low, two)",
    "Clip from one side": "y = Clip(h, , two)",
    "Pow": "y = Pow(h, three)",
    "Pow even": "y = Pow(h, four)",
    "Max": "y = Max(h, b, two)",
    "Min": "y = Min(h, b)",
    "Mean": "y = Mean(h, b)",
    "Where": "c = Greater(x, two)  y = Where(c, h, low)",
    "Cast": "c = Greater(x, two)  f = Cast <to = 1> (c)  y = Mul(f, b)",
    "MatMul": "y = MatMul(h, w)",
    "two MatMuls": "m = MatMul(h, u)  a = Relu(m)  y = MatMul(a, uu)",
    "Gemm": "r = Reshape(h, flat)  y = Gemm <transB = 1, alpha = 0.5, beta = 2.0> (r, w, b)",
    "Conv": "y = Conv(t3, k)",
    "Reshape": "y = Reshape(h, shape4)",
    "Transpose": "y = Transpose <perm = [1, 0, 2]> (h)",
    "Unsqueeze": "y = Unsqueeze(h, one)",
    "Squeeze": "e = Unsqueeze(h, one)  y = Squeeze(e, one)",
    "Flatten": "y = Flatten(h)",
    "Expand": "y = Expand(h, size)",
    "Tile": "y = Tile(h, times)",
    "Slice": "y = Slice(h, first, one, one)",
    "Split": "z, y = Split <axis = 2, num_outputs = 2> (h)",
    "Concat": "y = Concat <axis = 2> (h, b3)",
    "Gather": "y = Gather(table, ids)",
    "Gather columns": "y = Gather <axis = 2> (h, columns)",
    "GatherElements": "y = GatherElements <axis = 2> (h, index)",
    "GatherND": "y = GatherND(h, start)",
    "TopK": "y, i = TopK(h, one)",
    "ReduceMean": "y = ReduceMean(h, last)",
    "ReduceMax": "y = ReduceMax(h, last)",
    "ReduceMin": "y = ReduceMin(h, last)",
    "Dropout": "y = Dropout(h)",
    "Identity": "y = Identity(h)",
    "MaxPool": "y = MaxPool <kernel_shape = [2]> (h)",
    "AveragePool": "y = AveragePool <kernel_shape = [2]> (h)",
    "GlobalAveragePool": "y = GlobalAveragePool(h)",
    "Attention": "r = Reshape(h, heads)  y = Attention <scale = 9.0> (r, r, r)",
    "RotaryEmbedding": "r = Reshape(h, heads)  y = RotaryEmbedding(r, cos, sin, positions)",
}
CONSTANTS |= {
    "uu": _random.normal(0, 1, (2 * N, N)).astype(np.float32),
    "flat": np.array([-1, N], np.int64),
    "t3": _random.normal(0, 1, (2, 2, N)).astype(np.float32),
    "shape4": np.array([0, 0, 2, 4], np.int64),
    "size": np.array([2, 1, 3, N], np.int64),
    "times": np.array([1, 2, 1], np.int64),
    "b3": _random.normal(0, 2, (1, 3, 4)).astype(np.float32),
    "index": np.zeros((1, 3, 5), np.int64),
    "start": np.array([[0, 1]], np.int64),
    "heads": np.array([0, 3, 2, 4], np.int64),
}


def make(body: str) -> ir.Model:
    text = f"h = LayerNormalization(x, g, b)  {body}"
    words = set("".join(c if c.isalnum() else " " for c in text).split())
    model = ir.from_onnx_text(
        f'<ir_version: 10, opset_import: ["": 23]> g (float[1, 3, {N}] x) => (float[] y) {{ {text} }}',
        initializers=[ir.tensor(array, name=name) for name, array in CONSTANTS.items() if name in words],
    )
    if "Attention" in body or "Rotary" in body:  # [1, 3, 8] -> [1, heads of 4, 2 rows]: the batch axis stays
        model.graph.initializers["heads"].const_value = ir.tensor(np.array([1, 2, 3, 4], np.int64), name="heads")
    ShapeInferencePass()(model)
    return model


def test_every_rule_has_a_body() -> None:
    assert {name.split()[0] for name in BODIES if name[0].isupper()} >= set(RULES)


@pytest.mark.parametrize("name", BODIES)
def test_no_run_goes_beyond_its_bound(name: str) -> None:
    model = make(BODIES[name])
    y = model.graph.outputs[0]
    bound = bound_values(model.graph)[y]
    with open_graph(model) as session:
        for scale in (1e-3, 1.0, 1e4):
            for kind in range(4):
                x = _random.normal(0, scale, (1, 3, N)).astype(np.float32)
                if kind == 0:
                    x[..., 1:] = 0  # all of a row's length in one entry
                result = session.run({"x": x})["y"].astype(np.float64)
                room = 1e-5 * max(1.0, bound.peak)
                assert result.min() >= bound.low - room
                assert result.max() <= bound.high + room
                assert np.linalg.norm(result, axis=-1).max() <= bound.row * (1 + 1e-5) + room


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("y = MatMul(x, w)", "x may be anything"),
        ("y = Div(b, h)", "h may be 0"),
        ("t = Transpose <perm = [0, 2, 1]> (h)  y = MatMul(h, t)", "no constant matrix"),
        ("y = Pow(h, half)", "no whole power"),
        ("n = Neg(h)  y = Log(n)", "no number there"),
        ("y = Add(h, inf)", "no end"),
        ("e = Mul(h, huge)  y = Exp(e)", "no end in float64"),
        ("y = ReduceSum(h, last)", "no rule"),
        ("i = Cast <to = 7> (x)  y = Cast <to = 1> (i)", "integers may be anything"),
    ],
)
def test_what_is_not_known_is_not_claimed(body: str, why: str) -> None:
    extra = {"half": 0.5, "inf": np.inf, "huge": 1e4}
    CONSTANTS.update({name: np.array(number, np.float32) for name, number in extra.items()})
    model = make(body)
    assert model.graph.outputs[0] not in bound_values(model.graph), why


def test_a_matrix_behind_a_norm_is_bounded_by_lengths() -> None:
    """Sums of a column's 256 entries times the highest entry would be 16 times as large."""
    n = 256
    w = _random.normal(0, 1 / 16, (n, n)).astype(np.float32)
    ones = np.ones(n, np.float32)
    model = ir.from_onnx_text(
        f'<ir_version: 10, opset_import: ["": 23]> g (float[B, {n}] x) => (float[B, {n}] y)'
        " { h = RMSNormalization(x, g)  y = MatMul(h, w) }",
        initializers=[ir.tensor(w, name="w"), ir.tensor(ones, name="g")],
    )
    ShapeInferencePass()(model)
    bound = bound_values(model.graph)[model.graph.outputs[0]]
    assert bound.peak == pytest.approx(math.sqrt(n) * np.linalg.norm(w, axis=0).max(), rel=1e-4)
    assert bound.peak < np.abs(w).sum(axis=0).max() * math.sqrt(n) / 8


def test_the_peak_is_the_farther_end() -> None:
    assert Bound(-3, 2).peak == 3
