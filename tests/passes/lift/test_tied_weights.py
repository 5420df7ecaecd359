"""A weight that is also read transposed is not copied."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import onnx_ir as ir
import pytest

from graphwright.passes import lift

Arrays = dict[str, np.ndarray]
Compare = Callable[[ir.Model, ir.Model, Iterable[Arrays], float, float], None]
Spell = Callable[[ir.Model], str]

TURNED = "t = Transpose <perm = [1, 0]> (w)"


def make(body: str, y: str = "float[B, 192]") -> ir.Model:
    """With a weight w [192, 64], more than what constant folding copies."""
    model = ir.from_onnx_text(f"""
        <ir_version: 10, opset_import: ["": 23]>
        tied (int64[B] ids, float[B, S, 64] z, float[192, 64] w) => ({y} y)
        {{ x = Gather(w, ids) {TURNED} {body} }}""")
    weight = model.graph.inputs.pop()
    weight.const_value = ir.tensor(np.random.default_rng(1).standard_normal((192, 64)).astype(np.float32), name="w")
    model.graph.register_initializer(weight)
    return model


def cases() -> list[Arrays]:
    random = np.random.default_rng(0)
    return [
        {"ids": random.integers(0, 192, b), "z": random.standard_normal((b, s, 64)).astype(np.float32)}
        for b, s in ((1, 1), (1, 7), (3, 5))
    ]


def tied(model: ir.Model) -> list[tuple[str, str]]:
    return [(site.status, site.reason) for site in lift(model).log.sites if site.kind == "tied_weight"]


def test_a_product_of_rank_2_is_a_gemm(compare: Compare, spell: Spell) -> None:
    model = make("e = Tanh(x) y = MatMul(e, t)")
    lifted = lift(model).model
    assert spell(lifted) == "Gemm(Tanh(Gather(w, ids)), w)"
    assert tied(model) == [("lifted", "")]
    compare(model, lifted, cases(), 1e-5, 1e-5)  # sums of 64 products, in one order or the other


def test_a_product_of_rank_3_keeps_its_transpose(compare: Compare, spell: Spell) -> None:
    model = make("m = MatMul(z, t) s = ReduceSum(x) y = Add(m, s)", "float[B, S, 192]")
    lifted = lift(model).model
    assert spell(lifted) == "Add(MatMul(z, Transpose(w)), ReduceSum(Gather(w, ids)))"
    ((status, reason),) = tied(model)
    assert status == "declined"
    assert "a copy would hold the weight twice" in reason
    compare(model, lifted, cases(), 1e-5, 1e-5)


@pytest.mark.parametrize(
    ("body", "y"),
    [
        ("y = MatMul(x, o)", "float[B, 64]"),
        ("g = MatMul(t, w) y = MatMul(x, g)", "float[B, 64]"),
        ("a = Transpose <perm = [1, 0]> (x) y = MatMul(x, a)", "float[B, B]"),
    ],
    ids=["of an operation", "on the left", "of no constant"],
)
def test_any_other_product_stays(body: str, y: str, compare: Compare) -> None:
    model = make(f"o = MatMul(t, w) {body}", y)
    lifted = lift(model)
    assert "Gemm" not in [node.op_type for node in lifted.model.graph]
    assert "tied_weight" not in lifted.log.kinds()
    compare(model, lifted.model, cases(), 1e-5, 1e-5)
