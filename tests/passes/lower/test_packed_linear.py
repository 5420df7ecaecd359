"""Linear layers of one input in one product: the exact graph, the same numbers, and what stays."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import onnx_ir as ir
import pytest

from graphwright.passes.lower.packed_linear import PackLinears
from graphwright.tests.passes.lower.layers import ATOL, RTOL, cases, make, ops

Arrays = dict[str, np.ndarray]
Compare = Callable[[ir.Model, ir.Model, Iterable[Arrays], float, float], None]


@pytest.mark.parametrize(
    ("body", "made"),
    [
        (
            "qm = MatMul(x, wq)  q = Add(qm, b)  km = MatMul(x, wk)  k = Add(b, km)  y = Mul(q, k)",
            ["MatMul", "Add", "Split", "Mul"],
        ),
        ("g = MatMul(x, wq)  u = MatMul(x, wk)  s = Sigmoid(g)  y = Mul(s, u)", ["MatMul", "Split", "Sigmoid", "Mul"]),
        (
            "q = MatMul(x, wq)  k = MatMul(x, few)  km = Concat <axis = -1> (k, k)  y = Add(q, km)",
            ["MatMul", "Split", "Concat", "Add"],
        ),
        (
            "q = MatMul(x, wq)  k = MatMul(x, wk)  vm = MatMul(x, wv)  v = Add(vm, b)  s = Add(q, k)  y = Add(s, v)",
            ["MatMul", "Split", "MatMul", "Add", "Add", "Add"],
        ),
    ],
    ids=["with biases", "gate and up", "other widths", "one with a bias stays alone"],
)
def test_layers_of_one_input_are_one_product(body: str, made: list[str], compare: Compare) -> None:
    model = make(body)
    after = model.clone()
    assert PackLinears()(after).modified
    assert ops(after) == made
    compare(model, after, cases(model), RTOL, ATOL)


@pytest.mark.parametrize(
    "body",
    [
        "y = MatMul(x, wq)",
        "q = MatMul(x, wq)  n = Neg(x)  k = MatMul(n, wk)  y = Add(q, k)",
        "q = MatMul(x, wq)  n = Neg(x)  k = MatMul(n, wq)  p = MatMul(x, wk)  r = MatMul(n, wk)  s = Add(q, k)  "
        "t = Add(p, r)  y = Add(s, t)",
    ],
    ids=["one layer", "two inputs", "tied weights"],
)
def test_others_stay(body: str) -> None:
    assert not PackLinears()(make(body)).modified
