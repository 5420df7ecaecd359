"""Masks of a lifted Attention: the smallest equivalent one, full in its last two dims, made once for all its sites."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import onnx_ir as ir
import pytest

from graphwright.passes import lift
from graphwright.passes.lift.masks import EXPANDED, expand, negate, simplify

Arrays = dict[str, np.ndarray]
Run = Callable[[ir.Model, Arrays], Arrays]
Compare = Callable[[ir.Model, ir.Model, Iterable[Arrays], float, float], None]
Spell = Callable[[ir.Model], str]

# float32, two attentions over at most 6 keys of 8 numbers of size 1: the products are summed in another order
RTOL, ATOL = 1e-5, 4e-6
CONSTANTS = "float zero = {0.0}, float five = {-5.0}, float low = {-1e4}, float inf = {-inf}, float lowest = {-3.4e38}"


def make(inputs: str, outputs: str, body: str) -> ir.Model:
    return ir.from_onnx_text(
        f'<ir_version: 10, opset_import: ["": 23]> masks ({inputs}) => ({outputs}) <{CONSTANTS}> {{ {body} }}'
    )


def make_mask(body: str) -> ir.Model:
    """`body` makes the mask m of the input `keep`."""
    model = make("bool[B, 1, S, T] keep, float[B, 1, S, T] bias", "float[B, 1, S, T] m", body)
    for node in model.graph:
        for value in node.outputs:
            value.dtype = ir.DataType.FLOAT if value.name in ("m", "f", "g") else ir.DataType.BOOL
    return model


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("m = Where(keep, zero, lowest)", "keep"),
        ("m = Where(keep, zero, inf)", "keep"),
        ("m = Where(keep, zero, low)", "keep"),
        ("m = Where(keep, inf, zero)", "Not(keep)"),
        ("drop = Not(keep) m = Where(drop, lowest, zero)", "keep"),
        ("f = Where(keep, zero, inf) g = Identity(f) m = Cast <to = 1> (g)", "keep"),
        ("m = Where(keep, zero, five)", "Where(keep, 0, -5)"),
        ("m = Where(keep, five, zero)", "Where(keep, -5, 0)"),
        ("m = Where(keep, five, inf)", "Where(keep, -5, -inf)"),
        ("m = Where(keep, zero, bias)", "Where(keep, 0, bias)"),
        ("m = Where(keep, bias, inf)", "Where(keep, bias, -inf)"),
        ("m = Cast <to = 1> (keep)", "Cast(keep)"),
        ("m = Identity(bias)", "bias"),
    ],
)
def test_simplify(body: str, expected: str, spell: Spell) -> None:
    model = make_mask(body)
    model.graph.outputs[0] = simplify(model.graph.outputs[0])
    assert spell(model) == expected


def test_negate_takes_a_not_away_or_makes_it_once() -> None:
    model = make_mask("drop = Not(keep) m = Where(drop, inf, zero)")
    where, keep = model.graph.node(1), model.graph.inputs[0]
    assert where.inputs[0] is not None
    assert negate(where, where.inputs[0]) is keep
    assert negate(where, keep) is where.inputs[0]
    assert negate(where, model.graph.inputs[1]) is negate(where, model.graph.inputs[1])
    assert [node.op_type for node in model.graph] == ["Not", "Not", "Where"]


def stack(inputs: str, masks: str, *, first: str, second: str) -> ir.Model:
    """Two attentions, the second on the first one's output; `first` and `second` make s from p and t from r."""
    qkv = "float[B, 2, S, 8] q, float[B, 2, 8, S] Kt, float[B, 2, S, 8] v"
    return make(
        f"{qkv}, {inputs}",
        "float[B, 2, S, 8] y",
        f"""{masks}
            p = MatMul(q, Kt)   {first}   w = Softmax(s)  x = MatMul(w, v)
            r = MatMul(x, Kt)   {second}  u = Softmax(t)  y = MatMul(u, v)""",
    )


def feeds(model: ir.Model, batch: int, length: int) -> Arrays:
    random, sizes, made = np.random.default_rng(0), {"B": batch, "S": length}, {}
    for value in model.graph.inputs:
        assert value.name is not None
        shape = [dim if isinstance(dim, int) else sizes[str(dim.value)] for dim in value.shape or ()]
        array: np.ndarray = random.standard_normal(shape).astype(np.float32)
        if value.dtype == ir.DataType.BOOL:
            array = array > 0
            array[..., 0] = True
        made[value.name] = ~array if value.name == "drop" else array
    return made


def masks_of(model: ir.Model) -> list[ir.Value | None]:
    return [node.inputs[3] for node in model.graph if node.op_type == "Attention"]


SHARED = {
    "an added mask": (
        stack("float[B, 1, 1, S] bias", "", first="s = Add(p, bias)", second="t = Add(bias, r)"),
        "Expand(bias)",
    ),
    "forbidden keys, spelled in two ways": (
        stack(
            "bool[B, 1, 1, S] drop",
            "m = Where(drop, inf, zero)",
            first="s = Add(p, m)",
            second="t = Where(drop, lowest, r)",
        ),
        "Expand(Not(drop))",
    ),
    "a bias and allowed keys, joined at each site": (
        stack(
            "bool[B, 1, 1, S] keep, float[2, 1, 1] bias",
            "",
            first="a = Add(p, bias) s = Where(keep, a, inf)",
            second="b = Add(r, bias) t = Where(keep, b, inf)",
        ),
        "Expand(Where(keep, bias, -3.40282e+38))",
    ),
}


@pytest.mark.parametrize("name", SHARED)
def test_a_mask_of_two_sites_is_made_once(name: str, compare: Compare, spell: Spell) -> None:
    model, expected = SHARED[name]
    lifted = lift(model)
    assert [site.status for site in lifted.log.sites] == ["lifted", "lifted"]
    first, second = masks_of(lifted.model)
    assert first is second
    assert first is not None
    assert spell(lifted.model) == f"Attention(Attention(q, Transpose(Kt), v, {expected}), Transpose(Kt), v, {expected})"
    assert [str(dim) for dim in first.shape or ()][-2:] == ["S", "S"]
    for op_type in ("Expand", "Not", "Where"):
        assert sum(node.op_type == op_type for node in lifted.model.graph) == expected.count(op_type)
    compare(model, lifted.model, [feeds(model, 1, 1), feeds(model, 2, 5), feeds(model, 3, 6)], RTOL, ATOL)


def test_masks_of_other_lengths_are_not_shared(compare: Compare) -> None:
    model = make(
        "float[B, 2, S, 8] q, float[B, 2, T, 8] k, float[B, 1, 1, 1] bias",
        "float[B, 2, S, 8] y, float[B, 2, T, 8] z",
        """Kt = Transpose <perm = [0, 1, 3, 2]> (k)
           p = MatMul(q, Kt)  s = Add(p, bias)  w = Softmax(s)  y = MatMul(w, k)
           r = MatMul(k, Kt)  t = Add(r, bias)  u = Softmax(t)  z = MatMul(u, k)""",
    )
    lifted = lift(model)
    first, second = masks_of(lifted.model)
    assert first is not None
    assert second is not None
    assert [str(first.shape), str(second.shape)] == ["[B,1,S,T]", "[B,1,T,T]"]
    assert all(value.producer().metadata_props[EXPANDED] for value in (first, second))  # type: ignore[union-attr]
    random = np.random.default_rng(0)
    shapes = {"q": (2, 2, 5, 8), "k": (2, 2, 3, 8), "bias": (2, 1, 1, 1)}
    case = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    compare(model, lifted.model, [case], RTOL, ATOL)


def test_a_mask_that_was_expanded_is_not_expanded_again() -> None:
    model = make(
        "float[B, 2, S, 8] q, float[B, 2, T, 8] k, bool[B, 1, 1, 1] keep",
        "float[B, 2, S, 8] y",
        "m = Identity(keep)  y = Attention(q, k, k, m)",
    )
    query, key, _ = model.graph.inputs
    key.shape = ir.Shape([None, 2, None, 8])  # nothing tells that the mask has the length of the keys already
    mask, site = model.graph.node(0).outputs[0], model.graph.node(1)
    full = expand(mask, site, query, key)
    assert full is not mask
    assert expand(full, site, query, key) is full
    assert [node.op_type for node in model.graph].count("Expand") == 1


def test_a_row_without_an_allowed_key_gives_numbers_and_leaves_the_others_alone(run: Run) -> None:
    model, _ = SHARED["forbidden keys, spelled in two ways"]
    case = feeds(model, 3, 5)
    case["drop"][1] = True  # a row of padding only: torch and primitives give mean(V) or NaN for it
    before, after = run(model, case)["y"], run(lift(model).model, case)["y"]
    assert np.isfinite(after).all()
    assert (after[1] == 0).all()
    np.testing.assert_allclose(after[[0, 2]], before[[0, 2]], rtol=RTOL, atol=ATOL)


READY = "y = Attention <q_num_heads = 2, kv_num_heads = 2> (q, k, v, mask)"


@pytest.mark.parametrize(
    ("inputs", "body", "expected"),
    [
        ("float[B, S, 16] q, float[B, T, 16] k, float[B, T, 16] v, bool[B, 1, 1, T] mask", READY, "Expand(mask)"),
        ("float[B, S, 16] q, float[B, T, 16] k, float[B, T, 16] v, bool[B, 1, S, T] mask", READY, "mask"),
        ("float[B, S, 16] q, float[B, T, 16] k, float[B, T, 16] v, float[1, T] mask", READY, "Expand(mask)"),
    ],
)
def test_the_mask_of_a_ready_attention_of_rank_3(inputs: str, body: str, expected: str, spell: Spell, run: Run) -> None:
    model = make(inputs, "float[B, S, 16] y", body)
    lifted = lift(model)
    assert spell(lifted.model) == f"Attention(q, k, v, {expected})"
    assert lifted.model.graph.node(-1).attributes.get_float("scale", 0.0) == pytest.approx(8**-0.5, rel=1e-7)
    random = np.random.default_rng(0)
    case: Arrays = {name: random.standard_normal((2, 3, 16)).astype(np.float32) for name in ("q", "k", "v")}
    shape = [{"B": 2, "S": 3, "T": 3}.get(str(dim), 1) for dim in model.graph.inputs[3].shape or ()]
    case["mask"] = np.ones(shape, bool) if "bool" in inputs else np.zeros(shape, np.float32)
    case["mask"][..., -1] = False if "bool" in inputs else -np.inf
    heads = {name: case[name].reshape(2, 3, 2, 8).transpose(0, 2, 1, 3) for name in ("q", "k", "v")}
    scores = (heads["q"] @ heads["k"].swapaxes(-1, -2) / np.sqrt(8))[..., :-1]
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    wanted = (weights @ heads["v"][:, :, :-1]).transpose(0, 2, 1, 3).reshape(2, 3, 16)
    np.testing.assert_allclose(run(lifted.model, case)["y"], wanted, rtol=RTOL, atol=ATOL)


@pytest.mark.parametrize(("mask", "expected"), [("bool[B, 1, 1, U]", "Expand(mask)"), ("bool[B, 1, S, U]", "mask")])
def test_a_mask_over_cached_keys_keeps_its_length(mask: str, expected: str, spell: Spell, run: Run) -> None:
    past = "float[B, 2, P, 8] past_k, float[B, 2, P, 8] past_v"
    model = make(
        f"float[B, 2, S, 8] q, float[B, 2, S, 8] k, float[B, 2, S, 8] v, {mask} mask, {past}",
        "float[B, 2, S, 8] y, float[B, 2, U, 8] new_k, float[B, 2, U, 8] new_v",
        "y, new_k, new_v = Attention(q, k, v, mask, past_k, past_v)",
    )
    lifted = lift(model)
    assert spell(lifted.model).split("; ")[0] == f"Attention(q, k, v, {expected}, past_k, past_v)"
    random = np.random.default_rng(0)
    shapes = {"q": 2, "k": 2, "v": 2, "past_k": 4, "past_v": 4}
    case: Arrays = {name: random.standard_normal((1, 2, n, 8)).astype(np.float32) for name, n in shapes.items()}
    case["mask"] = np.array([True, False, True, True, True, False]).reshape(1, 1, 1, 6)
    case["mask"] = np.broadcast_to(case["mask"], (1, 1, 2 if "S" in mask else 1, 6)).copy()
    keys, values = (np.concatenate([case[f"past_{n}"], case[n]], 2)[:, :, [0, 2, 3, 4]] for n in ("k", "v"))
    scores = case["q"] @ keys.swapaxes(-1, -2) / np.sqrt(8)
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    np.testing.assert_allclose(run(lifted.model, case)["y"], weights @ values, rtol=RTOL, atol=ATOL)


def test_the_mask_stays_as_it_is_where_the_masked_scores_are_read() -> None:
    model = make(
        "float[B, 2, S, 8] q, float[B, 2, S, 8] k, float[B, 2, S, 8] v, bool[B, 1, S, S] keep",
        "float[B, 2, S, 8] y, float[B, 2, S, S] scores",
        "m = Where(keep, zero, low)  y, , , scores = Attention <qk_matmul_output_mode = 2> (q, k, v, m)",
    )
    (mask,) = masks_of(lift(model).model)
    assert mask is not None
    assert mask.dtype == ir.DataType.FLOAT
