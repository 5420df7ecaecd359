"""float16 and bfloat16: every type is in the graph and right, what is sensitive stays float32, masks give no NaN."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphwright.passes import lift
from graphwright.passes.quantize.half import HalfPrecision
from graphwright.passes.quantize.islands import SENSITIVE

Arrays = dict[str, np.ndarray]
Run = Callable[[ir.Model, Arrays], Arrays]
Spell = Callable[[ir.Model], str]

FLOAT, HALF, BRAIN = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16
BOTH = pytest.mark.parametrize("dtype", [HALF, BRAIN], ids=["fp16", "bf16"])
LOWEST = float(np.finfo(np.float32).min)
CASES = ((1, 1), (1, 7), (3, 5))


def weights(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.3, shape).astype(np.float32)


CONSTANTS: Arrays = {
    "w": weights(8, 8),
    "v": weights(8, 8, seed=1),
    "b": weights(8, seed=2),
    "two": np.array(2, np.float32),
    "big": np.array(1e5, np.float32),
    "eps": np.array(1e-12, np.float32),
    "third": np.array(1 / 3, np.float32),
    "zero": np.array(0, np.float32),
    "lowest": np.array(LOWEST, np.float32),
    "huge": np.array(-1e38, np.float32),
    "inf": np.array(-np.inf, np.float32),
    "heavy": weights(8, 8) * np.float32(1e6),
    "faint": weights(8) * np.float32(1e-9),
    "table": weights(11, 8),
    "u": weights(3, seed=4),
    "last": np.array([-1], np.int64),
    "one": np.array([1], np.int64),
    "scales": np.array([1, 2, 1], np.float32),
    "causal": np.triu(np.full((5, 5), LOWEST, np.float32), 1),
}


def make(body: str, inputs: str = "float[B, S, 8] x", outputs: str = "float[B, S, 8] y") -> ir.Model:
    words = set("".join(c if c.isalnum() else " " for c in body).split())
    return ir.from_onnx_text(
        f'<ir_version: 10, opset_import: ["": 23]> half ({inputs}) => ({outputs}) {{ {body} }}',
        initializers=[ir.tensor(array, name=name) for name, array in CONSTANTS.items() if name in words],
    )


def lower(model: ir.Model, dtype: ir.DataType = HALF) -> ir.Model:
    """The model in half; its types are those that ONNX infers, its inputs and outputs as they were."""
    after = model.clone()
    assert HalfPrecision(dtype)(after).modified
    for old, new in ((model.graph.inputs, after.graph.inputs), (model.graph.outputs, after.graph.outputs)):
        assert [(value.name, value.dtype) for value in new] == [(value.name, value.dtype) for value in old]
    proto = ir.to_proto(after)
    onnx.checker.check_model(proto, full_check=True)
    del proto.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*inferred.value_info, *inferred.output)}
    for node in after.graph:
        for value in node.outputs:
            if isinstance(value.type, ir.TensorType):
                assert value.dtype == types[value.name], value
    return after


def types(model: ir.Model) -> dict[str, list[ir.DataType | None]]:
    """Op type -> the types of what its nodes give, casts left out."""
    found: dict[str, list[ir.DataType | None]] = {}
    for node in model.graph:
        if node.op_type != "Cast":
            found.setdefault(node.op_type, []).append(node.outputs[0].dtype)
    return found


def agree(model: ir.Model, run: Run, rtol: float, atol: float, **more: np.ndarray) -> None:
    after = lower(model)
    for batch, length in CASES:
        feeds = {"x": weights(batch, length, 8, seed=3) * 3} | more
        np.testing.assert_allclose(run(after, feeds)["y"], run(model, feeds)["y"], rtol=rtol, atol=atol)


# 8 products of numbers of size 1 and 0.3, each operand rounded to 11 bits (5e-4), and the sum once more
RTOL, ATOL = 2e-3, 5e-3
LAYER = "m = MatMul(x, w)  y = Add(m, b)"


def test_a_layer_computes_in_half(run: Run, spell: Spell) -> None:
    after = lower(make(LAYER))
    assert spell(after) == "Cast(Add(MatMul(Cast(x), w.float16), b.float16))"
    assert [(name, value.dtype) for name, value in after.graph.initializers.items()] == [
        ("w.float16", HALF),
        ("b.float16", HALF),
    ]
    agree(make(LAYER), run, RTOL, ATOL)


def test_a_layer_computes_in_bfloat16(spell: Spell) -> None:
    after = lower(make(LAYER), BRAIN)
    assert spell(after) == "Cast(Add(MatMul(Cast(x), w.bfloat16), b.bfloat16))"
    assert types(after) == {"MatMul": [BRAIN], "Add": [BRAIN]}


def test_the_two_layers_of_one_input_share_its_cast(spell: Spell) -> None:
    after = lower(make("a = MatMul(x, w)  c = MatMul(x, v)  y = Sub(a, c)"))
    assert spell(after) == "Cast(Sub(MatMul(Cast(x), w.float16), MatMul(Cast(x), v.float16)))"
    assert [node.op_type for node in after.graph].count("Cast") == 2


def test_an_output_that_is_read_inside_keeps_its_name(run: Run, spell: Spell) -> None:
    model = make("z = MatMul(x, w)  y = Relu(z)", outputs="float[B, S, 8] y, float[B, S, 8] z")
    after = lower(model)
    assert spell(after) == "Cast(Relu(MatMul(Cast(x), w.float16))); Cast(MatMul(Cast(x), w.float16))"
    outputs = run(after, {"x": weights(2, 3, 8)})
    np.testing.assert_array_equal(outputs["y"], np.maximum(outputs["z"], 0))


def test_nothing_is_halved_before_the_first_product(spell: Spell) -> None:
    after = lower(make("a = Relu(x)  c = Mul(a, two)  m = MatMul(c, w)  y = Tanh(m)"))
    assert spell(after) == "Cast(Tanh(MatMul(Cast(Mul(Relu(x), 2)), w.float16)))"


ONE_INPUT = (
    *("Softmax", "LogSoftmax", "Softplus", "Exp", "Log", "Sqrt", "Reciprocal", "Erf"),
    "LpNormalization",
)
WITH_AXES = sorted(op for op in SENSITIVE if op.startswith("Reduce"))
BODIES = {op: f"s = {op}(m)" for op in ONE_INPUT} | {op: f"s = {op}(m, last)" for op in WITH_AXES}
BODIES |= {
    "CumSum": "s = CumSum(m, one)",
    "Pow": "s = Pow(m, two)",
    "Resize": "s = Resize(m, , scales)",
}


@pytest.mark.parametrize("op", BODIES)
@BOTH
def test_a_sensitive_op_computes_in_float32(op: str, dtype: ir.DataType) -> None:
    # a Reduce over the last axis leaves one number of a row: [B, S, 1] * [8]
    model = make(f"m = MatMul(x, w)  {BODIES[op]}  t = Mul(s, b)  y = MatMul(t, v)", outputs="float[B, T, 8] y")
    assert types(lower(model, dtype)) == {"MatMul": [dtype, dtype], op: [FLOAT], "Mul": [FLOAT]}


# what an angle comes of is as sensitive: a rounded one of 1000 is off by half a radian
@pytest.mark.parametrize("op", ["Sin", "Cos", "Tan"])
@BOTH
def test_an_angle_is_computed_in_float32(op: str, dtype: ir.DataType) -> None:
    model = make(f"m = MatMul(x, w)  a = Add(m, b)  s = {op}(a)  y = MatMul(s, v)")
    assert types(lower(model, dtype)) == {"MatMul": [FLOAT, dtype], "Add": [FLOAT], op: [FLOAT]}


@BOTH
def test_an_angle_that_rules_bound_is_not(dtype: ir.DataType) -> None:
    scale = "faint" if dtype == BRAIN else "third"  # at most 1e-9, and 1/3
    model = make(f"t = Tanh(x)  m = MatMul(t, w)  h = Tanh(m)  a = Mul(h, {scale})  s = Sin(a)  y = MatMul(s, v)")
    found = types(lower(model, dtype))
    assert (found["MatMul"], found["Sin"]) == ([dtype, dtype], [FLOAT])


# the standard lets these compute in float32 inside (stash_type), so that what they read and give may be half
NORMS = {
    "LayerNormalization": "s = LayerNormalization(m, b, b)",
    "RMSNormalization": "s = RMSNormalization(m, b)",
    "GroupNormalization": "s = GroupNormalization <num_groups = 1> (m, u, u)",
}


@pytest.mark.parametrize("op", NORMS)
@BOTH
def test_a_norm_takes_and_gives_half_with_its_scale(op: str, dtype: ir.DataType) -> None:
    model = make(f"m = MatMul(x, w)  {NORMS[op]}  y = MatMul(s, v)", "float[B, 3, 8] x", "float[B, 3, 8] y")
    after = lower(model, dtype)
    assert types(after) == {"MatMul": [dtype, dtype], op: [dtype]}
    (norm,) = [node for node in after.graph if node.op_type == op]
    assert {value.dtype for value in norm.inputs if value is not None} == {dtype}  # TensorRT refuses mixed types
    assert [node.op_type for node in after.graph].count("Cast") == 2


def test_a_norm_of_float32_stays_float32_with_its_scale(spell: Spell) -> None:
    after = lower(make("n = LayerNormalization(x, b, b)  y = MatMul(n, w)"))
    assert spell(after) == "Cast(MatMul(Cast(LayerNormalization(x, b, b)), w.float16))"


def test_what_products_read_is_cast_once_in_front_of_what_moves_it(spell: Spell) -> None:
    moves = "t = Transpose <perm = [0, 2, 1]> (x)  e = Unsqueeze(t, one)  g = Squeeze(e, one)"
    body = f"{moves}  m = MatMul(x, t)  n = MatMul(m, x)  y = MatMul(n, g)"
    after = lower(make(body, "float[B, 8, 8] x", "float[] y"))
    assert [node.op_type for node in after.graph].count("Cast") == 2
    assert types(after)["Transpose"] == types(after)["Unsqueeze"] == [HALF]
    near = lower(
        make(
            "t = Transpose <perm = [0, 2, 1]> (x)  m = MatMul(x, t)  r = Exp(t)  y = MatMul(m, r)",
            "float[B, 8, 8] x",
            "float[] y",
        )
    )
    assert types(near)["Transpose"] == [FLOAT]  # Exp reads it too


def test_a_quotient_by_what_float32_computed_stays_float32(spell: Spell) -> None:
    after = lower(make("m = MatMul(x, w)  n = ReduceL2(m, last)  y = Div(m, n)"))
    assert spell(after) == "Div(Cast(MatMul(Cast(x), w.float16)), ReduceL2(Cast(MatMul(Cast(x), w.float16)), -1))"
    assert types(lower(make("m = MatMul(x, w)  n = MatMul(x, v)  y = Div(m, n)")))["Div"] == [HALF]


def test_integers_are_cast_to_half_at_once(spell: Spell) -> None:
    after = lower(make("f = Cast <to = 1> (i)  y = MatMul(f, w)", "int64[B, S, 8] i"))
    assert spell(after) == "Cast(MatMul(Cast(i), w.float16))"
    assert [node.op_type for node in after.graph].count("Cast") == 2


FOLLOWERS = {
    "Relu": "s = Relu(m)",
    "Gelu": "s = Gelu(m)",
    "Add": "s = Add(m, b)",
    "Mul": "s = Mul(m, third)",
    "Where": "c = Greater(m, zero)  s = Where(c, m, two)",
    "Clip": "s = Clip(m, zero, two)",
    "Concat": "s = Concat <axis = 1> (m, m)",
    "Max": "s = Max(m, x)",
    "CastLike": "s = CastLike(x, m)",
    "Unsqueeze": "s = Unsqueeze(m, one)",
    "Split": "s, r = Split <axis = 2, num_outputs = 2> (m)",
}


@pytest.mark.parametrize("op", FOLLOWERS)
@BOTH
def test_other_ops_follow_their_inputs(op: str, dtype: ir.DataType) -> None:
    model = make(f"m = MatMul(x, w)  {FOLLOWERS[op]}  y = Neg(s)", outputs="float[] y")
    found = types(lower(model, dtype))
    assert (found["MatMul"], found[op], found["Neg"]) == ([dtype], [dtype], [dtype])


FLOAT_ONLY = {
    "Celu": ("s = Celu(m)", (HALF, BRAIN)),
    "RandomNormalLike": ("s = RandomNormalLike <dtype = 1> (m)", (HALF, BRAIN)),
    "DynamicQuantizeLinear": ("q, t, z = DynamicQuantizeLinear(m)  s = DequantizeLinear(q, t, z)", (HALF, BRAIN)),
    "SequenceConstruct": ("q = SequenceConstruct(m, m)  s = SequenceAt(q, n)", (HALF, BRAIN)),
    "TopK": ("s, i = TopK(m, one)", (BRAIN,)),
    "Einsum": ('s = Einsum <equation = "bsd,bsd->bs"> (m, m)', (BRAIN,)),
}


@pytest.mark.parametrize(("op", "dtype"), [(op, dtype) for op, (_, refused) in FLOAT_ONLY.items() for dtype in refused])
def test_an_op_that_has_no_half_form_stays_float32(op: str, dtype: ir.DataType) -> None:
    body = f"m = MatMul(x, w)  {FLOAT_ONLY[op][0]}  y = Neg(s)"
    model = lift(make(body, "float[B, S, 8] x, int64 n", "float[] y")).model
    after = lower(model, dtype)
    (node,) = [node for node in after.graph if node.op_type == op]
    assert all(value.dtype != dtype for value in (*node.inputs, *node.outputs) if value is not None)
    assert types(after)["MatMul"] == [dtype]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("m = MatMul(x, w)  y = Mul(m, big)", "Mul(Cast(MatMul(Cast(x), w.float16)), 100000)"),
        ("m = MatMul(x, w)  a = Abs(m)  y = Add(a, eps)", "Add(Cast(Abs(MatMul(Cast(x), w.float16))), 1e-12)"),
        ("m = MatMul(x, w)  y = Add(m, faint)", "Cast(Add(MatMul(Cast(x), w.float16), faint.float16))"),
        ("m = MatMul(x, heavy)  y = Mul(m, eps)", "Mul(MatMul(x, heavy), 1e-12)"),
        ("m = MatMul(x, w)  l = Max(m, inf)  y = Neg(l)", "Cast(Neg(Max(MatMul(Cast(x), w.float16), -inf)))"),
    ],
)
def test_a_constant_that_does_not_fit_keeps_its_op_in_float32(body: str, expected: str, run: Run, spell: Spell) -> None:
    assert spell(lower(make(body))) == expected
    scale = 1e5 if "big" in body else 1
    agree(make(body), run, RTOL, ATOL * scale)


def test_bfloat16_holds_what_float16_does_not() -> None:
    body = "m = MatMul(x, heavy)  a = Mul(m, big)  c = Add(a, eps)  y = Max(c, huge)"
    assert types(lower(make(body), BRAIN)) == {"MatMul": [BRAIN], "Mul": [BRAIN], "Add": [BRAIN], "Max": [BRAIN]}


def test_what_comes_of_such_a_constant_stays_float32_up_to_a_product_and_with_it() -> None:
    model = make("m = MatMul(x, w)  a = Mul(m, big)  c = Add(m, a)  d = Relu(c)  e = MatMul(d, v)  y = MatMul(e, w)")
    assert types(lower(model)) == {"MatMul": [HALF, FLOAT, HALF], "Mul": [FLOAT], "Add": [FLOAT], "Relu": [FLOAT]}


def test_an_embedding_is_read_in_half(run: Run, spell: Spell) -> None:
    model = make("e = Gather(table, ids)  y = MatMul(e, w)", "int64[B, S] ids")
    after = lower(model)
    assert spell(after) == "Cast(MatMul(Gather(table.float16, ids), w.float16))"
    assert sorted(after.graph.initializers) == ["table.float16", "w.float16"]
    feeds = {"ids": np.array([[0, 10, 3]])}
    np.testing.assert_allclose(run(after, feeds)["y"], run(model, feeds)["y"], rtol=RTOL, atol=ATOL)


def test_tensors_of_other_types_stay() -> None:
    model = make(
        "s = Shape(x)  n = Size(s)  i = Cast <to = 7> (x)  j = Mul(i, i)  c = Cast <to = 1> (j)  y = MatMul(c, w)",
        outputs="float[B, S, 8] y, int64[B, S, 8] j, int64 n",
    )
    found = types(lower(model))
    assert (found["Mul"], found["Size"], found["MatMul"]) == ([ir.DataType.INT64], [ir.DataType.INT64], [HALF])


def test_a_constant_is_not_confused_with_one_of_the_same_name(run: Run) -> None:
    model = make(LAYER)
    taken = ir.Value(name="w.float16", const_value=ir.tensor(weights(8, seed=5), name="w.float16"))
    taken.type, taken.shape = ir.TensorType(FLOAT), ir.Shape([8])
    model.graph.register_initializer(taken)
    model.graph.node(1).replace_input_with(1, taken)
    agree(model, run, RTOL, ATOL)
