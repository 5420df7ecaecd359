"""GroupQueryAttention in the place of Attention: the exact graph, the same numbers, and what stays."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import onnx_ir as ir
import pytest

from graphwright.passes import TARGETS, lowered_to
from graphwright.passes.lower.causal import CAUSAL
from graphwright.passes.lower.grouped import UseGroupQuery
from graphwright.tests.passes.lower.layers import ATOL, RTOL, cases, make, ops

Arrays = dict[str, np.ndarray]
Compare = Callable[[ir.Model, ir.Model, Iterable[Arrays], float, float], None]
Run = Callable[[ir.Model, Arrays], Arrays]
FEWER = "float[B, S, 32] q, float[B, S, 16] k, float[B, S, 16] v"
SAME = "float[B, S, 32] q, float[B, S, 32] k, float[B, S, 32] v"
HEADS, EQUAL = "q_num_heads = 4, kv_num_heads = 2", "q_num_heads = 4, kv_num_heads = 4"
MADE = ["Shape", "Shape", "Cast", "Sub", "Expand", "contrib:GroupQueryAttention", "Neg"]


def attend(inputs: str = FEWER, attributes: str = HEADS, mask: str = "", more: str = "", width: int = 32) -> ir.Model:
    body = f"a = Attention <{attributes}> (q, k, v{', m' * bool(mask)})  y = Neg(a) {more}"
    return make(body, inputs + mask, f"float[B, S, {width}] y")


def replaced(model: ir.Model) -> tuple[ir.Model, bool]:
    after = model.clone()
    return after, UseGroupQuery(lambda name: "grouped" if name else "")(after).modified


@pytest.mark.parametrize(
    ("model", "made"),
    [
        (attend(), MADE),
        (attend(SAME, EQUAL), MADE),
        (attend(FEWER.replace("16", "8"), "q_num_heads = 4, kv_num_heads = 1"), MADE),
        (attend(attributes=f"{HEADS}, scale = 0.3"), MADE),
        (attend(attributes=f"{HEADS}, softcap = 2.0"), MADE),
        (attend(attributes=f"{HEADS}, is_causal = 1"), MADE),
        (attend(mask=", bool[B, 1, S, S] m"), ["Where", *MADE]),
        (attend(mask=", bool[1, 4, S, S] m", attributes=f"{HEADS}, softcap = 2.0"), ["Where", *MADE]),
        (attend(mask=", float[B, 4, S, S] m"), ["Max", *MADE]),
        (attend(mask=", float[1, 1, S, S] m"), ["Max", *MADE]),
        (attend(mask=", bool[B, 1, S, S] m", attributes=f"{HEADS}, is_causal = 1"), ["Where", *MADE]),
    ],
    ids=[
        *("plain", "as many heads", "one head", "scale", "soft-cap", "causal"),
        *("bool mask", "bool mask of each head, soft-cap", "bias of each head", "shared bias", "causal and mask"),
    ],
)
def test_the_op_is_replaced(model: ir.Model, made: list[str], compare: Compare) -> None:
    after, modified = replaced(model)
    assert modified
    assert ops(after) == made
    assert lowered_to(after, "attention") == {"com.microsoft.GroupQueryAttention": 1}
    compare(model, after, cases(model), RTOL, ATOL)


def test_a_mask_that_was_found_to_be_causal_leaves_out_what_it_forbids(compare: Compare) -> None:
    model = attend(mask=", bool[1, 1, S, S] m")
    (node,) = [node for node in model.graph if node.op_type == "Attention"]
    node.metadata_props[CAUSAL] = "mask"
    after, _ = replaced(model)
    (made,) = [node for node in after.graph if node.op_type == "GroupQueryAttention"]
    assert "causal" not in made.attributes, "1 is the default"
    sized = [{**feeds, "m": np.tri(feeds["q"].shape[1], dtype=bool)[None, None]} for feeds in cases(model)]
    compare(model, after, sized, RTOL, ATOL)


def test_a_row_that_minus_infinity_leaves_without_a_key_is_finite(run: Run) -> None:
    """NaN there would be in the keys of the next layer, and so in every row."""
    model = attend(mask=", float[B, 1, S, S] m", attributes=f"{HEADS}, is_causal = 1")
    after, _ = replaced(model)
    for feeds in cases(model):
        feeds["m"] = np.zeros_like(feeds["m"])
        feeds["m"][..., 0] = -np.inf  # left padding
        wanted, got = run(model, feeds)["y"], run(after, feeds)["y"]
        assert np.isfinite(got).all()
        np.testing.assert_allclose(got[:, 1:], wanted[:, 1:], rtol=RTOL, atol=ATOL)


def test_sizes_and_masks_are_made_once(compare: Compare) -> None:
    model = attend(mask=", bool[B, 1, S, S] m", more=f" c = Attention <{HEADS}> (q, k, v, m)  z = Neg(c)")
    after, _ = replaced(model)
    assert ops(after).count("contrib:GroupQueryAttention") == 2
    assert ops(after).count("Where") == ops(after).count("Expand") == 1
    compare(model, after, cases(model), RTOL, ATOL)


CROSS = "float[B, S, 32] q, float[B, T, 16] k, float[B, T, 16] v"
WIDER = "float[B, S, 32] q, float[B, S, 16] k, float[B, S, 32] v"
SMALL = "float[B, S, 16] q, float[B, S, 8] k, float[B, S, 8] v"
PAST = ", float[B, 2, P, 8] pk, float[B, 2, P, 8] pv"


@pytest.mark.parametrize(
    "model",
    [
        attend(CROSS),
        attend(WIDER, width=64),
        attend(SMALL, width=16),
        attend(mask=", bool[S, S] m"),
        attend(attributes=f"{HEADS}, scale = 0.0"),
        make(f"y, k2, v2 = Attention <{HEADS}> (q, k, v, , pk, pv)", FEWER + PAST, "float[B, S, 32] y"),
        make(
            "y = Attention (q, k, v)",
            "float[B, 4, S, 8] q, float[B, 2, S, 8] k, float[B, 2, S, 8] v",
            "float[B, 4, S, 8] y",
        ),
        attend(FEWER.replace("float[B, S, 16] k", "float[B, N, 16] k")),
    ],
    ids=[
        *("other lengths", "wider values", "heads of 4", "mask of rank 2", "scale 0", "cache", "rank 4"),
        "lengths that are not known to be equal",
    ],
)
def test_other_attentions_stay(model: ir.Model) -> None:
    assert not replaced(model)[1]


def test_a_class_that_was_not_chosen_stays() -> None:
    assert not UseGroupQuery(lambda name: "standard")(attend()).modified


def test_it_is_the_default_where_the_attention_is_causal() -> None:
    list_forms = TARGETS["ort-cpu"].alternatives
    assert list_forms is not None
    for attributes, first in ((HEADS, "standard"), (f"{HEADS}, is_causal = 1", "grouped")):
        found = list_forms(attend(attributes=attributes))
        (name,) = [name for name in found if name.startswith("attention 4 x 8 over 2")]
        assert found[name][0] == first
