"""MultiHeadAttention in the place of Attention: the exact graph, the same numbers, and what stays."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import onnx_ir as ir
import pytest

from graphwright.passes import lowered_to
from graphwright.passes.lower.multihead import UseMultiHead
from graphwright.tests.passes.lower.layers import ATOL, RTOL, cases, make, ops

Arrays = dict[str, np.ndarray]
Compare = Callable[[ir.Model, ir.Model, Iterable[Arrays], float, float], None]
Run = Callable[[ir.Model, Arrays], Arrays]
QKV = "float[B, S, 32] q, float[B, T, 32] k, float[B, T, 24] v"
SELF = "float[B, S, 32] q, float[B, S, 32] k, float[B, S, 24] v"
HEADS = "q_num_heads = 4, kv_num_heads = 4"


def attend(inputs: str = QKV, attributes: str = HEADS, mask: str = "", more: str = "") -> ir.Model:
    body = f"a = Attention <{attributes}> (q, k, v{', m' * bool(mask)})  y = Neg(a) {more}"
    return make(body, inputs + mask, "float[B, S, 24] y")


def replaced(model: ir.Model) -> tuple[ir.Model, bool]:
    after = model.clone()
    return after, UseMultiHead(lambda name: "multihead" if name else "")(after).modified


@pytest.mark.parametrize(
    ("model", "made"),
    [
        (attend(), ["contrib:MultiHeadAttention", "Neg"]),
        (attend(attributes=f"{HEADS}, scale = 0.3"), ["contrib:MultiHeadAttention", "Neg"]),
        (attend(mask=", bool[B, 1, S, T] m"), ["Where", "contrib:MultiHeadAttention", "Neg"]),
        (attend(mask=", float[B, 4, S, T] m"), ["Max", "contrib:MultiHeadAttention", "Neg"]),
        (attend(mask=", float[1, 1, S, T] m"), ["Max", "contrib:MultiHeadAttention", "Neg"]),
        (attend(SELF, f"{HEADS}, is_causal = 1"), ["contrib:MultiHeadAttention", "Neg"]),
    ],
    ids=["plain", "scale", "bool mask", "bias of each head", "shared bias", "causal"],
)
def test_the_op_is_replaced(model: ir.Model, made: list[str], compare: Compare) -> None:
    after, modified = replaced(model)
    assert modified
    assert ops(after) == made
    assert lowered_to(after, "attention") == {"com.microsoft.MultiHeadAttention": 1}
    compare(model, after, cases(model), RTOL, ATOL)


def test_a_row_that_minus_infinity_leaves_without_a_key_is_finite(run: Run) -> None:
    """NaN there would be in the keys of the next layer, and so in every row."""
    model = attend(mask=", float[B, 1, S, T] m")
    after, _ = replaced(model)
    for feeds in cases(model):
        feeds["m"] = np.zeros_like(feeds["m"])
        feeds["m"][:, :, 0] = -np.inf
        wanted, got = run(model, feeds)["y"], run(after, feeds)["y"]
        assert np.isfinite(got).all()
        np.testing.assert_allclose(got[:, 1:], wanted[:, 1:], rtol=RTOL, atol=ATOL)


def test_one_mask_of_numbers_serves_all_its_readers(compare: Compare) -> None:
    more = f" c = Attention <{HEADS}> (q, k, v, m)  z = Neg(c)"
    model = attend(mask=", bool[B, 1, S, T] m", more=more)
    after, _ = replaced(model)
    assert ops(after).count("Where") == 1
    assert ops(after).count("contrib:MultiHeadAttention") == 2
    compare(model, after, cases(model), RTOL, ATOL)


@pytest.mark.parametrize(
    "model",
    [
        attend("float[B, S, 32] q, float[B, T, 16] k, float[B, T, 12] v", "q_num_heads = 4, kv_num_heads = 2"),
        attend(attributes=f"{HEADS}, softcap = 2.0"),
        attend(attributes=f"{HEADS}, is_causal = 1"),
        make(
            "y = Attention (q, k, v)",
            "float[B, 4, S, 8] q, float[B, 4, T, 8] k, float[B, 4, T, 6] v",
            "float[B, 4, S, 6] y",
        ),
    ],
    ids=["grouped heads", "soft-cap", "causal over other lengths", "rank 4"],
)
def test_other_attentions_stay(model: ir.Model) -> None:
    assert not replaced(model)[1]


def test_a_class_that_was_not_chosen_stays() -> None:
    assert not UseMultiHead(lambda name: "standard")(attend()).modified
