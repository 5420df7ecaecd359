"""A residual sum and its norm in one contrib op: the exact graph, the same numbers, and what stays."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import onnx_ir as ir
import pytest

from graphwright.passes.lower.skip_norm import FuseSkipNorm
from graphwright.tests.passes.lower.layers import ATOL, RTOL, cases, make, ops

Arrays = dict[str, np.ndarray]
Compare = Callable[[ir.Model, ir.Model, Iterable[Arrays], float, float], None]
TWO = "float[B, S, 32] x, float[B, S, 32] z"


@pytest.mark.parametrize(
    ("body", "made"),
    [
        ("s = Add(x, z)  y = LayerNormalization <axis = -1> (s, scale, b)", ["contrib:SkipLayerNormalization"]),
        (
            "s = Add(x, z)  y = LayerNormalization <epsilon = 1e-3, axis = 2> (s, scale)",
            ["contrib:SkipLayerNormalization"],
        ),
        ("s = Add(x, z)  y = RMSNormalization(s, scale)", ["contrib:SkipSimplifiedLayerNormalization"]),
        (
            "s = Add(x, z)  r = Relu(s)  n = LayerNormalization <axis = -1> (s, scale, b)  y = Add(n, r)",
            ["contrib:SkipLayerNormalization", "Relu", "Add"],
        ),
    ],
    ids=["layer norm", "no bias", "rms norm", "the sum is read before the norm"],
)
def test_sum_and_norm_are_one_op(body: str, made: list[str], compare: Compare) -> None:
    model = make(body, TWO)
    after = model.clone()
    assert FuseSkipNorm()(after).modified
    assert ops(after) == made
    compare(model, after, cases(model), RTOL, ATOL)


@pytest.mark.parametrize(
    ("body", "inputs"),
    [
        ("s = Add(x, b)  y = LayerNormalization <axis = -1> (s, scale, b)", TWO),
        ("s = Sub(x, z)  y = LayerNormalization <axis = -1> (s, scale, b)", TWO),
        ("s = Add(x, z)  y = LayerNormalization <axis = -1> (s, scale, b)", TWO.replace("B, S, 32] z", "1, S, 32] z")),
        ("y, mean = LayerNormalization <axis = -1> (x, scale, b)", TWO),
    ],
    ids=["a bias", "a difference", "broadcast", "no sum"],
)
def test_others_stay(body: str, inputs: str) -> None:
    assert not FuseSkipNorm()(make(body, inputs)).modified
