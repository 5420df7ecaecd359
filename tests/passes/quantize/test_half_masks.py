"""Half precision around attention: masks of the lowest number give no NaN; graphs of one lift stay apart."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphwright.errors import BuildError
from graphwright.passes import count_precisions, lift, optimize
from graphwright.passes.lift.functions import inline
from graphwright.passes.quantize.half import HalfPrecision

Arrays = dict[str, np.ndarray]
Run = Callable[[ir.Model, Arrays], Arrays]
Spell = Callable[[ir.Model], str]

HALF, BRAIN = ir.DataType.FLOAT16, ir.DataType.BFLOAT16
LENGTH = 5
# scores of 8 products of size 1 in half (11 bits), then weights that sum to 1 and values of size 1 in half
RTOL, ATOL = 4e-3, 4e-3

QKV = "float[B, 2, 5, 8] q, float[B, 2, 8, 5] kt, float[B, 2, 5, 8] v"
CONSTANTS = {
    "lowest": np.array(np.finfo(np.float32).min, np.float32),
    "zero": np.array(0, np.float32),
    "one": np.array(1, np.float32),
    "half": np.array(0.5, np.float32),
    "causal": np.triu(np.full((LENGTH, LENGTH), np.finfo(np.float32).min, np.float32), 1),
    "scales": np.array([0.5, 2, 1, 0.5, 2], np.float32),
}
# m, [B, 1, 1, S] or [S, S], from `keep` or as it is: what an exporter writes for a padding mask
MASKS = {
    "Where": "b = Cast <to = 9> (keep)  m = Where(b, zero, lowest)",
    "one minus keep": "f = Cast <to = 1> (keep)  n = Sub(one, f)  m = Mul(n, lowest)",
    "constant": "m = Identity(causal)",
    "input": "m = Identity(given)",
    "two": "b = Cast <to = 9> (keep)  n = Where(b, zero, lowest)  m = Add(n, causal)",
}
ATTEND = "p = MatMul(q, kt)  s = Add(p, m)  w = Softmax(s)  y = MatMul(w, v)"
# its weights are scaled by key, so that no Attention comes of it, but a function
SCALED = "p = MatMul(q, kt)  s = Add(p, m)  r = Softmax(s)  w = Mul(r, scales)  y = MatMul(w, v)"


def make(mask: str, attend: str) -> ir.Model:
    text = f"{MASKS[mask]} {attend}"
    inputs = [QKV, *["int64[B, 1, 1, 5] keep"] * ("keep" in text), *["float[B, 1, 1, 5] given"] * ("given" in text)]
    words = set("".join(c if c.isalnum() else " " for c in text).split())
    return ir.from_onnx_text(
        f'<ir_version: 10, opset_import: ["": 23]> masked ({", ".join(inputs)}) => (float[B, 2, 5, 8] y) {{ {text} }}',
        initializers=[ir.tensor(array, name=name) for name, array in CONSTANTS.items() if name in words],
    )


def feeds(model: ir.Model) -> Arrays:
    """A batch of three; the second holds padding alone, the third some."""
    random = np.random.default_rng(0)
    shapes = {"q": (3, 2, LENGTH, 8), "kt": (3, 2, 8, LENGTH), "v": (3, 2, LENGTH, 8)}
    made: Arrays = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    keep = np.ones((3, 1, 1, LENGTH), np.int64)
    keep[1], keep[2, ..., 3:] = 0, 0
    given = np.where(keep == 1, 0, np.finfo(np.float32).min).astype(np.float32)
    masks: Arrays = {"keep": keep, "given": given}
    return made | {str(v.name): masks[str(v.name)] for v in model.graph.inputs if v.name in masks}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("attend", [ATTEND, SCALED], ids=["attention", "primitives"])
def test_a_mask_of_the_lowest_number_gives_no_nan(mask: str, attend: str, run: Run) -> None:
    model = make(mask, attend)
    lifted = lift(model)
    assert {node.op_type for node in lifted.model.graph} & {"Attention", "CustomAttention"}
    after = lifted.model.clone()
    inline(after)
    HalfPrecision(HALF)(after)
    onnx.checker.check_model(ir.to_proto(after), full_check=True)
    case = feeds(model)
    got, wanted = run(after, case)["y"], run(model, case)["y"]
    assert np.isfinite(got).all()
    rows = slice(None) if mask == "constant" else [0, 2]  # a batch of padding alone has no defined result
    np.testing.assert_allclose(got[rows], wanted[rows], rtol=RTOL, atol=ATOL)


def test_the_scores_of_primitives_are_float32_up_to_softmax(spell: Spell) -> None:
    after = make("input", "p = MatMul(q, kt)  d = Mul(p, half)  s = Add(d, m)  w = Softmax(s)  y = MatMul(w, v)")
    HalfPrecision(HALF)(after)
    scores = "Softmax(Add(Mul(Cast(MatMul(Cast(q), Cast(kt))), 0.5), Identity(given)))"
    assert spell(after) == f"Cast(MatMul(Cast({scores}), Cast(v)))"
    read_twice = make(
        "input", f"{ATTEND.replace('y =', 'n =')}  t = Transpose <perm = [0, 1, 3, 2]> (s)  y = MatMul(t, n)"
    )
    HalfPrecision(HALF)(read_twice)
    (add,) = [node for node in read_twice.graph if node.op_type == "Add"]
    assert add.outputs[0].dtype == HALF


@pytest.mark.parametrize("dtype", [HALF, BRAIN], ids=["fp16", "bf16"])
def test_the_mask_of_an_attention_is_clipped_and_no_other_reader_of_it_is(dtype: ir.DataType, spell: Spell) -> None:
    body = "m = Identity(given)  a = Attention(q, k, v, m)  s = MatMul(a, kt)  b = Where(c, s, m)  y = MatMul(b, v)"
    inputs = f"{QKV}, float[B, 2, 5, 8] k, float[B, 1, 5, 5] given, bool[B, 1, 1, 5] c"
    after = ir.from_onnx_text(
        f'<ir_version: 10, opset_import: ["": 23]> masked ({inputs}) => (float[B, 2, 5, 8] y) {{ {body} }}'
    )
    HalfPrecision(dtype)(after)
    onnx.checker.check_model(ir.to_proto(after), full_check=True)
    attention = "Attention(Cast(q), Cast(k), Cast(v), Cast(Clip(Identity(given), {0:g}, {1:g})))"
    limits = ml_dtypes.finfo(dtype.numpy())  # type: ignore[no-untyped-call]
    attention = attention.format(np.float32(limits.min), np.float32(limits.max))
    assert spell(after) == f"Cast(MatMul(Where(c, MatMul({attention}, Cast(kt)), Cast(Identity(given))), Cast(v)))"


@pytest.mark.parametrize("dtype", [HALF, BRAIN], ids=["fp16", "bf16"])
def test_a_constant_mask_of_an_attention_is_clipped(dtype: ir.DataType) -> None:
    model = make("constant", "k = Transpose <perm = [0, 1, 3, 2]> (kt)  y = Attention(q, k, v, causal)")
    HalfPrecision(dtype)(model)
    (mask,) = [value for name, value in model.graph.initializers.items() if "clipped" in name]
    assert mask.const_value is not None
    array = mask.const_value.numpy().astype(np.float32)
    limits = ml_dtypes.finfo(dtype.numpy())  # type: ignore[no-untyped-call]
    np.testing.assert_array_equal(array, np.triu(np.full((LENGTH, LENGTH), np.float32(limits.min)), 1))


def test_the_mask_of_an_attention_that_stays_float32_is_not_clipped(spell: Spell) -> None:
    heavy = np.full((1, 2, 5, 8), 1e6, np.float32)  # a constant key that float16 does not hold
    model = ir.from_onnx_text(
        f"""<ir_version: 10, opset_import: ["": 23]> masked ({QKV.replace("[B", "[1")}) => (float[1, 2, 5, 8] y) {{
            p = MatMul(q, kt)  m = Relu(p)  y = Attention(q, heavy, v, m) }}""",
        initializers=[ir.tensor(heavy, name="heavy")],
    )
    HalfPrecision(HALF)(model)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert spell(model) == "Attention(q, heavy, v, Cast(Relu(MatMul(Cast(q), Cast(kt)))))"


def test_boolean_masks_stay(run: Run) -> None:
    model = lift(make("Where", ATTEND)).model
    HalfPrecision(HALF)(model)
    (attention,) = [node for node in model.graph if node.op_type == "Attention"]
    assert [value.dtype for value in attention.inputs if value is not None] == [HALF, HALF, HALF, ir.DataType.BOOL]


def test_targets_of_one_lift_do_not_touch_each_other() -> None:
    lifted = lift(make("two", ATTEND))
    before = ir.to_proto(lifted.model).SerializeToString(deterministic=True)
    types = [value.dtype for node in lifted.model.graph for value in node.outputs]
    jobs = {"ort-cuda:fp16": "fp16", "ort-cuda:bf16": "bf16", "tensorrt:fp16": "fp16", "ort-cpu:fp32": "fp32"}
    made = {job: optimize(lifted, job).model for job in jobs}
    for job, precision in jobs.items():
        assert set(count_precisions(made[job])) == {precision}
        onnx.checker.check_model(ir.to_proto(made[job]), full_check=True)
    assert [value.dtype for node in lifted.model.graph for value in node.outputs] == types
    assert ir.to_proto(lifted.model).SerializeToString(deterministic=True) == before


BRANCHES = """
    <ir_version: 10, opset_import: ["": 23]>
    branches (float[B, 8] x, bool flag) => (float[B, 8] y) {
        m = MatMul(x, w)
        c = If (flag) <
            then_branch = then () => (float[B, 8] a) { r = Relu(m)  a = Mul(r, x) },
            else_branch = other () => (float[B, 8] b) { b = Neg(m) }
        >
        y = MatMul(c, w)
    }"""
LOOP = """
    <ir_version: 10, opset_import: ["": 23]>
    loop (float[B, 8] x, bool flag) => (float[B, 8] y) {
        m = MatMul(x, w)
        n = Constant <value_int = 3> ()
        c = Loop (n, flag, m) <
            body = step (int64 i, bool go, float[B, 8] s) => (bool on, float[B, 8] t) {
                on = Identity(go)
                t = Add(s, m)
            }
        >
        y = MatMul(c, w)
    }"""


@pytest.mark.parametrize("text", [BRANCHES, LOOP], ids=["If", "Loop"])
def test_a_body_stays_float32_and_what_it_reads_is_cast_at_its_border(text: str, run: Run) -> None:
    w = np.random.default_rng(1).normal(0, 0.3, (8, 8)).astype(np.float32)
    model = ir.from_onnx_text(text, initializers=[ir.tensor(w, name="w")])
    after = model.clone()
    HalfPrecision(HALF)(after)
    onnx.checker.check_model(ir.to_proto(after), full_check=True)
    assert [node.outputs[0].dtype for node in after.graph if node.op_type == "MatMul"] == [HALF, HALF]
    inside = [
        value.dtype for graph in after.graphs() if graph is not after.graph for node in graph for value in node.outputs
    ]
    assert set(inside) <= {ir.DataType.FLOAT, ir.DataType.BOOL}
    x = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    for flag in (True, False):
        case: Arrays = {"x": x, "flag": np.array(flag)}
        # two products in half behind one another
        np.testing.assert_allclose(run(after, case)["y"], run(model, case)["y"], rtol=RTOL, atol=2 * ATOL)


def test_a_graph_whose_types_are_unknown_is_refused() -> None:
    model = ir.from_onnx_text("""
        <ir_version: 10, opset_import: ["": 23, "custom": 1]>
        unknown (float[B, 4] x) => (float[B, 4] y) { a = custom.Mystery(x)  [late] b = Relu(a)  y = Add(b, x) }""")
    with pytest.raises(BuildError, match=r"^The type of what Relu at late gives could not be inferred\.$"):
        HalfPrecision(HALF)(model)
