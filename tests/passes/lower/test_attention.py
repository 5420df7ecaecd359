"""An Attention in the form that TensorRT's parser takes computes the same; what no form says is named."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import ShapeInferencePass

from graphwright.errors import BuildError
from graphwright.passes import lowered_to
from graphwright.passes.lower.attention import LowerAttention
from graphwright.runtimes.onnx_reference import OnnxReferenceSession
from graphwright.spec import PATH, SITE

Arrays = dict[str, np.ndarray]
Compare = Callable[[ir.Model, ir.Model, Iterable[Arrays], float, float], None]

# float32, rows of at most 11 keys of 8 numbers each of size 1; the scale is taken in two steps
RTOL, ATOL = 1e-5, 4e-6
KEYS = ", float[B, 4, L, 8] pk2, float[B, 4, L, 6] pv2"
SCORES = ", float[B, 4, S, T] qk"
BOOL, FLOAT = "bool[B, 1, S, T] m", "float[B, 4, S, T] m"
PAST = "float[B, {k}, P, 8] pk, float[B, {k}, P, 6] pv"


def make(
    attributes: str, more: str = "", call: str = "", heads: int = 4, outputs: str = "", last: str = "T"
) -> ir.Model:
    """Q of four heads of 8, K and V of `heads`; `more`: other inputs, `call`: how they are passed."""
    more = more.format(k=heads).replace("T] m", f"{last}] m")
    inputs = f"float[B, 4, S, 8] q, float[B, {heads}, T, 8] k, float[B, {heads}, T, 6] v"
    made, names = f"float[B, 4, S, 6] y{outputs}", ["y", *[part.split()[-1] for part in outputs.split(", float")[1:]]]
    model = ir.from_onnx_text(f"""
        <ir_version: 10, opset_import: ["": 23]> g ({inputs}{", " * bool(more)}{more}) => ({made})
        {{ {", ".join(names)} = Attention <{attributes}> (q, k, v{call}) }}""")
    model.graph.node(0).metadata_props.update({SITE: "attention", PATH: "block.attention"})
    return model


def flat(attributes: str, more: str = "", call: str = "", outputs: str = "") -> ir.Model:
    """The same with heads and sizes in one axis: 2 of 4 heads of K and V."""
    model = ir.from_onnx_text(f"""
        <ir_version: 10, opset_import: ["": 23]>
        g (float[B, S, 32] q, float[B, T, 16] k, float[B, T, 12] v{", " * bool(more)}{more})
        => (float[B, S, 24] y{outputs})
        {{ y{", pk2, pv2" * bool(outputs)} =
           Attention <q_num_heads = 4, kv_num_heads = 2, {attributes}> (q, k, v{call}) }}""")
    model.graph.node(0).metadata_props.update({SITE: "attention", PATH: "block.attention"})
    return model


def cases(model: ir.Model) -> Iterator[Arrays]:
    """Three sets of sizes; the first key, and with a past the keys of the past, are never masked."""
    random = np.random.default_rng(0)
    for size in ({"B": 1, "S": 1, "T": 1, "P": 0}, {"B": 2, "S": 5, "T": 5, "P": 3}, {"B": 3, "S": 4, "T": 7, "P": 4}):
        all_keys = {**size, "P + T": size["P"] + size["T"], "L": size["P"] + size["T"]}
        feeds: Arrays = {}
        for value in model.graph.inputs:
            shape = [dim if isinstance(dim, int) else all_keys[str(dim.value)] for dim in value.shape or ()]
            array: np.ndarray = random.standard_normal(shape).astype(np.float32)
            if value.dtype == ir.DataType.BOOL:
                array = array > 0
                array[..., 0] = True
            feeds[str(value.name)] = array
        yield feeds


# form -> model, op types behind lowering that tell it
AS_ATTENTION = {
    "causal and bool mask": make("is_causal = 1, scale = 0.4", BOOL, ", m"),
    "causal and added mask": make("is_causal = 1", FLOAT, ", m"),
    "causal and a mask of two axes": make("is_causal = 1", "bool[S, T] m", ", m"),
    "causal and a mask of three axes": make("is_causal = 1", "float[4, S, T] m", ", m"),
    "past": make("scale = 0.4", PAST, ", , pk, pv", outputs=KEYS),
    "past, causal": make("is_causal = 1", PAST, ", , pk, pv", heads=2, outputs=KEYS.replace("4, L", "2, L")),
    "past, mask": make("scale = 0.4", f"{BOOL}, {PAST}", ", m, pk, pv", last="L", outputs=KEYS),
    "past, mask, causal": make("is_causal = 1", f"{BOOL}, {PAST}", ", m, pk, pv", last="L", outputs=KEYS),
    "present alone": make("is_causal = 1", outputs=", float[B, 4, T, 8] pk2, float[B, 4, T, 6] pv2"),
    "flat, causal and mask": flat("is_causal = 1", BOOL, ", m"),
    "flat, past, causal": flat("is_causal = 1", PAST.format(k=2), ", , pk, pv", KEYS.replace("4, L", "2, L")),
}
AS_PRIMITIVES = {
    "soft-cap": make("softcap = 2.0, scale = 0.4"),
    "soft-cap, bool mask": make("softcap = 2.0, scale = 0.4", BOOL, ", m"),
    "soft-cap, added mask": make("softcap = 2.0, scale = 0.4", FLOAT, ", m"),
    "soft-cap, the scale by the head size": make("softcap = 2.0"),
    "soft-cap, causal": make("softcap = 2.0, is_causal = 1"),
    "soft-cap, causal, mask": make("softcap = 2.0, is_causal = 1", BOOL, ", m"),
    "soft-cap, past, causal": make("softcap = 2.0, is_causal = 1", PAST, ", , pk, pv", outputs=KEYS),
    "soft-cap, grouped": make("softcap = 2.0", heads=2),
    "soft-cap, grouped, bool mask": make("softcap = 2.0", BOOL, ", m", heads=2),
    "soft-cap, grouped, a mask for each head": make("softcap = 2.0", FLOAT, ", m", heads=2),
    "soft-cap, grouped, causal and a mask for each head": make("softcap = 2.0, is_causal = 1", FLOAT, ", m", heads=2),
    "soft-cap, one head of K": make("softcap = 2.0", heads=1),
    "soft-cap, flat": flat("softcap = 2.0", BOOL, ", m"),
    "soft-cap, flat, past": flat(
        "softcap = 2.0, is_causal = 1", PAST.format(k=2), ", , pk, pv", KEYS.replace("4, L", "2, L")
    ),
    "scores": make("qk_matmul_output_mode = 0", BOOL, ", m", outputs=f", float a, float b{SCORES}"),
    "scores behind the cap": make("qk_matmul_output_mode = 1, softcap = 2.0", outputs=f", float a, float b{SCORES}"),
    "scores behind the mask": make("qk_matmul_output_mode = 2", FLOAT, ", m", outputs=f", float a, float b{SCORES}"),
    "weights": make("qk_matmul_output_mode = 3", BOOL, ", m", outputs=f", float a, float b{SCORES}"),
    "grouped weights": make("qk_matmul_output_mode = 3", BOOL, ", m", heads=2, outputs=f", float a, float b{SCORES}"),
}
for name in [name for name in AS_PRIMITIVES if "scores" in name or "weights" in name]:
    node = AS_PRIMITIVES[name].graph.node(0)
    for index in (2, 1):  # presents that nobody reads
        AS_PRIMITIVES[name].graph.outputs.pop(index)
        node.outputs[index].name = ""


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


@pytest.mark.parametrize("name", AS_ATTENTION)
def test_masks_and_caches_leave_an_attention_that_the_parser_takes(name: str, compare: Compare) -> None:
    model, after = AS_ATTENTION[name], AS_ATTENTION[name].clone()
    assert LowerAttention()(after).modified
    (attention,) = [node for node in after.graph if node.op_type == "Attention"]
    assert len(attention.outputs) == 1
    assert len(attention.inputs) <= 4
    assert not (attention.attributes.get_int("is_causal", 0) and len(attention.inputs) == 4)
    assert attention.metadata_props[PATH] == model.graph.node(0).metadata_props.get(
        PATH, attention.metadata_props[PATH]
    )
    assert lowered_to(after, "attention") == {"Attention": 1}
    assert ops(after).count("Concat") == (2 if "past" in name else 0)
    assert ("LessOrEqual" in ops(after)) == ("causal" in name)
    assert not LowerAttention()(after).modified
    compare(model, after, cases(model), RTOL, ATOL)


@pytest.mark.parametrize("name", AS_PRIMITIVES)
def test_what_the_parser_has_no_word_for_becomes_primitives(name: str, compare: Compare) -> None:
    model, after = AS_PRIMITIVES[name], AS_PRIMITIVES[name].clone()
    assert LowerAttention()(after).modified
    assert "Attention" not in ops(after)
    assert ops(after).count("Tanh") == ("cap" in name)
    assert lowered_to(after, "attention") == {"Softmax": 1}
    products = [node for node in after.graph if node.op_type in ("MatMul", "Softmax")]
    assert {node.outputs[0].dtype for node in products} == {ir.DataType.FLOAT}
    compare(model, after, cases(model), RTOL, ATOL)


@pytest.mark.parametrize("name", ["causal and bool mask", "past, mask, causal", "flat, past, causal"])
def test_a_parser_without_attention_gets_primitives_of_all(name: str, compare: Compare) -> None:
    model, after = AS_ATTENTION[name], AS_ATTENTION[name].clone()
    assert LowerAttention(native=False)(after).modified
    assert lowered_to(after, "attention") == {"Softmax": 1}
    compare(model, after, cases(model), RTOL, ATOL)


def test_scores_behind_a_mask_of_truth_values_are_minus_infinity_as_the_operator_has_it() -> None:
    # in ONNX Runtime they are not
    model = make("qk_matmul_output_mode = 2", BOOL, ", m", outputs=f", float a, float b{SCORES}")
    for index in (2, 1):
        model.graph.outputs.pop(index)
        model.graph.node(0).outputs[index].name = ""
    after = model.clone()
    assert LowerAttention()(after).modified
    with OnnxReferenceSession(ir.to_proto(model)) as old, OnnxReferenceSession(ir.to_proto(after)) as new:
        for feeds in cases(model):
            wanted, got = old.run(feeds), new.run(feeds)
            assert np.isneginf(wanted["qk"]).any() == (feeds["k"].shape[2] > 1)
            np.testing.assert_allclose(got["qk"], wanted["qk"], rtol=RTOL, atol=ATOL)
            np.testing.assert_allclose(got["y"], wanted["y"], rtol=RTOL, atol=ATOL)


def test_attentions_that_share_a_q_or_k_are_taken_apart(compare: Compare) -> None:
    model = ir.from_onnx_text("""
        <ir_version: 10, opset_import: ["": 23]>
        g (float[B, 4, S, 8] q, float[B, 4, T, 8] k, float[B, 4, T, 8] l, float[B, 4, S, 8] r, float[B, 4, S, 8] u)
        => (float[B, 4, S, 8] y) {
            a = Attention (q, k, k)  b = Attention (r, k, l)  c = Attention (u, u, u)  d = Neg(q)
            e = Attention (d, l, l)  y = Sum(a, b, c, e)
        }""")
    ShapeInferencePass()(model)
    after = model.clone()
    assert LowerAttention()(after).modified
    # a and b share K, c has one tensor for both; e shares V with b alone
    found = [name for name in ops(after) if name in ("Attention", "Softmax")]
    assert found == ["Softmax", "Softmax", "Softmax", "Attention"]
    compare(model, after, cases(model), RTOL, ATOL)


def test_attentions_of_the_same_lengths_share_their_causal_mask() -> None:
    model = ir.from_onnx_text("""
        <ir_version: 10, opset_import: ["": 23]>
        g (float[B, 4, S, 8] q, float[B, 4, T, 8] k, float[B, 4, U, 8] l, bool[B, 1, S, T] m, bool[B, 1, S, U] n)
        => (float[B, 4, S, 8] y) {
            o = Neg(q)  p = Neg(k)  r = Abs(q)
            a = Attention <is_causal = 1> (q, k, k, m)
            b = Attention <is_causal = 1> (o, p, k, m)
            c = Attention <is_causal = 1> (r, l, l, n)
            y = Sum(a, b, c)
        }""")
    ShapeInferencePass()(model)
    assert LowerAttention()(model).modified
    assert ops(model).count("LessOrEqual") == 2
    assert ops(model).count("And") == 3


def test_a_causal_mask_of_known_lengths_is_a_constant(compare: Compare) -> None:
    model = ir.from_onnx_text("""
        <ir_version: 10, opset_import: ["": 23]>
        g (float[B, 4, 5, 8] q, float[B, 4, 7, 8] k, bool[B, 1, 5, 7] m) => (float[B, 4, 5, 8] y)
        { y = Attention <is_causal = 1> (q, k, k, m) }""")
    after = model.clone()
    assert LowerAttention()(after).modified
    assert ops(after) == ["And", "Attention"]
    compare(model, after, cases(model), RTOL, ATOL)


@pytest.mark.parametrize(
    ("dtype", "size", "stays"),
    [
        ("float16", 8, False),
        ("float16", 16, True),
        ("bfloat16", 256, True),
        ("bfloat16", 320, False),
        ("float16", "D", True),
        ("float", 8, True),
        ("float", 512, True),
    ],
)
def test_half_precision_stays_an_attention_where_a_fused_kernel_exists(dtype: str, size: object, stays: bool) -> None:
    model = ir.from_onnx_text(f"""
        <ir_version: 10, opset_import: ["": 23]>
        g ({dtype}[B, 4, S, {size}] q, {dtype}[B, 4, S, {size}] k) => ({dtype}[B, 4, S, {size}] y)
        {{ y = Attention <scale = 0.5, softmax_precision = 1> (q, k, k) }}""")
    assert LowerAttention()(model).modified
    assert ("Attention" in ops(model)) == stays
    assert all("softmax_precision" not in node.attributes for node in model.graph)
    if not stays:
        (product, _) = [node for node in model.graph if node.op_type == "MatMul"]
        assert product.outputs[0].dtype == model.graph.inputs[0].dtype


@pytest.mark.parametrize(
    "body",
    [
        "y = Attention(q, k, v)",
        "y = Attention <scale = 0.5> (q, k, v, m)",
        "y = Attention <is_causal = 1, softcap = 0.0> (q, k, v)",
        "y = custom.Attention <softcap = 30.0> (q, k, v)",
    ],
)
def test_other_attentions_are_left_alone(body: str) -> None:
    model = ir.from_onnx_text(f"""
        <ir_version: 10, opset_import: ["": 23, "custom": 1]>
        g (float[B, 4, S, 8] q, float[B, 4, S, 8] k, float[B, 4, S, 8] v, bool[B, 1, S, S] m) => (float[B, 4, S, 8] y)
        {{ {body} }}""")
    assert not LowerAttention()(model).modified


@pytest.mark.parametrize(
    ("inputs", "call", "reason"),
    [
        ("int64[B] n", "(q, k, k, , , , n)", "it counts the keys of each row (nonpad_kv_seqlen)"),
        ("float[B, 2, P, 8] p", "(q, k, k, , p)", "it has a past of keys or of values alone"),
        ("bool[B, 3, S, T] m", "<softcap = 2.0> (q, k, k, m)", "its mask has 3 heads, where 1 or 4 are wanted"),
    ],
)
def test_what_has_no_form_is_named(inputs: str, call: str, reason: str) -> None:
    model = ir.from_onnx_text(f"""
        <ir_version: 10, opset_import: ["": 24]>
        g (float[B, 4, S, 8] q, float[B, 2, T, 8] k, {inputs}) => (float[B, 4, S, 8] y) {{ y = Attention {call} }}""")
    model.graph.node(0).metadata_props[PATH] = "encoder.0"
    with pytest.raises(BuildError) as caught:
        LowerAttention()(model)
    assert str(caught.value) == f"TensorRT has no form for the Attention at encoder.0: {reason}."


def test_a_soft_cap_of_unknown_heads_is_named() -> None:
    model = ir.from_onnx_text("""
        <ir_version: 10, opset_import: ["": 23]>
        g (float[B, H, S, 8] q, float[B, G, T, 8] k) => (float[B, H, S, 8] y)
        { y = Attention <softcap = 2.0> (q, k, k) }""")
    with pytest.raises(BuildError, match="its heads, sizes or scale are no numbers that primitives can be made of"):
        LowerAttention()(model)
