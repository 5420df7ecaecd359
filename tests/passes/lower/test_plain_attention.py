"""An Attention in primitives computes the same, reads one additive mask, and never a row of NaN."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import onnx_ir as ir
import pytest

from graphwright.passes import count_ops, lowered_to
from graphwright.passes.lower.plain_attention import LOWEST, PlainAttention
from graphwright.spec import SITE

Arrays = dict[str, np.ndarray]
Compare = Callable[[ir.Model, ir.Model, Iterable[Arrays], float, float], None]
Run = Callable[[ir.Model, Arrays], Arrays]

# float32, rows of at most 7 keys of 8 numbers each of size 1
RTOL, ATOL = 1e-5, 4e-6
Q, K, V = "float[B, 4, S, 8] q", "float[B, 4, T, 8] k", "float[B, 4, T, 6] v"
BOOL, BIAS, FLAT = "bool[B, 1, S, T] m", "float[B, 4, S, T] m", "float[S, T] m"
SIZES = ({"B": 1, "S": 1, "T": 1}, {"B": 2, "S": 5, "T": 3}, {"B": 3, "S": 4, "T": 7})


def make(body: str = "y = Attention <scale = 0.4> (q, k, v, m)", inputs: str = f"{Q}, {K}, {V}, {BOOL}") -> ir.Model:
    model = ir.from_onnx_text(f"""
        <ir_version: 10, opset_import: ["": 23]> plain ({inputs}) => (float[B, 4, S, 6] y) {{ {body} }}""")
    for node in model.graph:
        if node.op_type == "Attention":
            node.metadata_props[SITE] = "attention"
    return model


def cases(model: ir.Model) -> Iterator[Arrays]:
    random = np.random.default_rng(0)
    for size in SIZES:
        feeds: Arrays = {}
        for value in model.graph.inputs:
            shape = [dim if isinstance(dim, int) else size[str(dim.value)] for dim in value.shape or ()]
            array: np.ndarray = random.standard_normal(shape).astype(np.float32)
            if value.dtype == ir.DataType.BOOL:
                array = array > 0
                array[..., 0] = True
            feeds[str(value.name)] = array
        yield feeds


def lowered(model: ir.Model) -> ir.Model:
    made = model.clone()
    assert PlainAttention()(made).modified
    return made


@pytest.mark.parametrize(
    ("attributes", "mask", "heads"),
    [
        ("scale = 0.4", "", 4),
        ("is_causal = 0", "", 4),
        ("scale = 0.4", BOOL, 4),
        ("scale = 0.4", BIAS, 4),
        ("scale = 0.4", FLAT, 4),
        ("is_causal = 1", "", 4),
        ("is_causal = 1", BOOL, 4),
        ("softcap = 2.0", BOOL, 4),
        ("scale = 0.4", BOOL, 2),
        ("is_causal = 1", BIAS, 1),
    ],
)
def test_it_computes_the_same(attributes: str, mask: str, heads: int, compare: Compare) -> None:
    inputs = f"{Q}, float[B, {heads}, T, 8] k, float[B, {heads}, T, 6] v{', ' * bool(mask)}{mask}"
    model = make(f"y = Attention <{attributes}> (q, k, v{', m' * bool(mask)})", inputs)
    after = lowered(model)
    assert "Attention" not in count_ops(after)
    assert lowered_to(after, "attention") == {"Softmax": 1}
    assert PlainAttention()(after).modified is False
    compare(model, after, cases(model), RTOL, ATOL)


def test_attentions_that_read_one_mask_add_the_same(compare: Compare) -> None:
    one, other = (
        "Attention <scale = 0.4, is_causal = 1> (q, k, v, m)",
        "Attention <scale = 0.2, is_causal = 1> (q, k, v, m)",
    )
    model = make(f"a = {one} b = {other} y = Add(a, b)")
    after = lowered(model)
    ops = count_ops(after)
    assert (ops["Softmax"], ops["Where"], ops["Range"]) == (2, 2, 2), "one mask of the input, one of the causal flag"
    compare(model, after, cases(model), RTOL, ATOL)


def test_a_row_without_a_key_is_no_nan(run: Run) -> None:
    for mask, forbidden in ((BOOL, False), (BIAS, -np.inf), (BIAS, np.finfo(np.float32).min)):
        model = make(inputs=f"{Q}, {K}, {V}, {mask}")
        (*_, feeds) = cases(model)
        feeds["m"][:, :, 1] = forbidden
        found, wanted = run(lowered(model), feeds)["y"], run(model, feeds)["y"]
        assert np.isfinite(found).all()
        np.testing.assert_allclose(found[:, :, 1], feeds["v"].mean(axis=2), rtol=RTOL, atol=ATOL)
        np.testing.assert_allclose(np.delete(found, 1, 2), np.delete(wanted, 1, 2), rtol=RTOL, atol=ATOL)


def test_what_is_forbidden_is_a_number_in_bfloat16() -> None:
    bits = np.float32(LOWEST).view(np.uint32)
    assert bits & 0xFFFF == 0, "bfloat16 holds it as it is"
    assert np.isfinite(np.float32(LOWEST))


@pytest.mark.parametrize(
    ("body", "inputs"),
    [
        (
            "y3 = Attention <q_num_heads = 4, kv_num_heads = 4> (q, k, v) y = Identity(y3)",
            "float[B, S, 32] q, float[B, T, 32] k, float[B, T, 24] v",
        ),
        (
            "y, nk, nv = Attention <scale = 0.4> (q, k, v, , pk, pv)",
            f"{Q}, {K}, {V}, float[B, 4, P, 8] pk, float[B, 4, P, 6] pv",
        ),
        ("y, nk, nv, s = Attention <scale = 0.4> (q, k, v)", f"{Q}, {K}, {V}"),
        ("y = Attention (q, k, v)", "float[B, H, S, D] q, float[B, H, T, D] k, float[B, H, T, D] v"),
        ("y = Attention <scale = 0.4> (q, k, v)", "float[B, H, S, 8] q, float[B, G, T, 8] k, float[B, G, T, 6] v"),
        (
            "y = Attention <scale = 0.4> (q, k, v)",
            "float16[B, 4, S, 8] q, float16[B, 4, T, 8] k, float16[B, 4, T, 6] v",
        ),
    ],
    ids=["rank 3", "cache", "scores", "size unknown", "heads unknown", "float16"],
)
def test_what_stays_an_attention(body: str, inputs: str) -> None:
    model = make(body, inputs)
    before = count_ops(model)
    assert not PlainAttention()(model).modified
    assert count_ops(model) == before
