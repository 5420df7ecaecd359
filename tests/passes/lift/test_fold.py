"""Constants are folded, exactly: what onnxscript's rules take for nothing stays, and no initializer gets lost."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import onnx_ir as ir
import pytest

from graphwright.passes.lift.fold import Fold

Arrays = dict[str, np.ndarray]
Compare = Callable[[ir.Model, ir.Model, Iterable[Arrays], float, float], None]
Spell = Callable[[ir.Model], str]


def make(body: str, constants: str = "", outputs: str = "float[B, 3, 4] y", functions: str = "") -> ir.Model:
    local = ', "local": 1' if functions else ""
    declared = f"<{constants}>" if constants else ""
    return ir.from_onnx_text(f"""
        <ir_version: 8, opset_import: ["": 23{local}]>
        fold (float[B, 3, 4] x, bool flag) => ({outputs}) {declared} {{ {body} }}
        {functions}""")


def fold(model: ir.Model) -> ir.Model:
    after = model.clone()
    Fold()(after)
    after.clone()  # fails where a node reads what the graph does not hold
    return after


def cases() -> list[Arrays]:
    random = np.random.default_rng(0)
    return [
        {"x": random.standard_normal((batch, 3, 4)).astype(np.float32), "flag": np.array(flag)}
        for batch in (1, 3)
        for flag in (True, False)
    ]


def test_functions_are_inlined_and_constants_folded(compare: Compare, spell: Spell) -> None:
    model = make(
        "two = Add(one, one)  z = local.twice(x)  y = Mul(z, two)",
        "float one = {1.0}",
        functions='<domain: "local", opset_import: ["": 23]> twice (a) => (b) { b = Add(a, a) }',
    )
    after = fold(model)
    assert spell(after) == "Mul(Add(x, x), 2)"
    assert not after.functions
    compare(model, after, cases(), 0, 0)  # doubling is exact


@pytest.mark.parametrize(
    ("body", "constant", "expected"),
    [
        ("y = Mul(x, c)", "1.0", "Identity(x)"),
        ("y = Mul(c, x)", "1.0", "Identity(x)"),
        ("y = Add(x, c)", "0.0", "Identity(x)"),
        ("y = Add(c, x)", "0.0", "Identity(x)"),
        ("y = Sub(x, c)", "0.0", "Identity(x)"),
        ("y = Div(x, c)", "1.0", "Identity(x)"),
        # near misses: numbers that are nearly nothing, and operands that cannot be swapped
        ("y = Mul(x, c)", "1.000001", "Mul(x, 1)"),
        ("y = Div(x, c)", "0.999999", "Div(x, 0.999999)"),
        ("y = Add(x, c)", "0.000000001", "Add(x, 1e-09)"),
        ("y = Sub(c, x)", "0.0", "Sub(0, x)"),
        ("y = Div(c, x)", "1.0", "Div(1, x)"),
    ],
)
def test_only_what_changes_nothing_is_left_out(
    body: str, constant: str, expected: str, compare: Compare, spell: Spell
) -> None:
    model = make(body, f"float c = {{{constant}}}")
    after = fold(model)
    assert spell(after) == expected
    compare(model, after, cases(), 0, 0)


def test_an_epsilon_stays(compare: Compare) -> None:
    model = make("d = Sub(x, x)  v = Add(d, eps)  s = Sqrt(v)  y = Div(v, s)", "float eps = {0.000000000001}")
    compare(model, fold(model), cases(), 0, 0)  # without it 0 / 0


def test_an_initializer_of_the_same_name_pushes_none_out(compare: Compare) -> None:
    outputs = "float[P, Q] a, float[R, S] b"
    model = make(
        "r = Relu(x)  f = Flatten <axis = 0> (r)  g = Flatten <axis = 2> (r)  a = Neg(f)  b = Neg(g)", "", outputs
    )
    after = fold(model)
    assert [node.op_type for node in after.graph].count("Reshape") == 2
    compare(model, after, cases(), 0, 0)


def test_an_input_that_is_an_output_keeps_its_name(compare: Compare) -> None:
    model = make("y = Relu(x)", "", "float[B, 3, 4] x, float[B, 3, 4] y")
    compare(model, fold(model), cases(), 0, 0)


def test_a_clip_below_zero_is_no_relu(compare: Compare) -> None:
    model = make("c = Clip(x, low, high)  y = Relu(c)", "float low = {-1.0}, float high = {-0.5}")
    compare(model, fold(model), cases(), 0, 0)


def test_the_sizes_of_a_split_may_be_an_input() -> None:
    model = ir.from_onnx_text("""
        <ir_version: 10, opset_import: ["": 23]>
        fold (float[6] x, int64 size) => (seq(float[N]) y) { y = SplitToSequence(x, size) }""")
    assert [node.op_type for node in fold(model).graph] == ["SplitToSequence"]


def test_a_cast_that_does_not_saturate_stays_so() -> None:
    model = ir.from_onnx_text("""
        <ir_version: 10, opset_import: ["": 23]>
        fold (float[2] x, float8e5m2[1] like) => (float8e5m2[2] y) { y = CastLike <saturate = 0> (x, like) }""")
    (node,) = fold(model).graph
    assert node.attributes.get_int("saturate") == 0


@pytest.mark.parametrize(
    ("split", "sizes"),
    [
        ("Split <axis = 1> (w, parts)", [1, 3]),
        ("Split <axis = -1, num_outputs = 2> (w)", [2, 2]),
        ("Split <axis = 1> (w, parts)", [3, 1]),
    ],
)
def test_the_parts_of_a_constant_are_constants(split: str, sizes: list[int], compare: Compare) -> None:
    weights = ", ".join(f"{number}.5" for number in range(16))
    constants = f"float[4, 4] w = {{{weights}}}, int64[2] parts = {{{sizes[0]}, {sizes[1]}}}"
    model = make(f"a, b = {split}  c = Concat <axis = 1> (b, a)  y = MatMul(x, c)", constants)
    after = fold(model)
    assert [node.op_type for node in after.graph] == ["MatMul"]
    compare(model, after, cases(), 0, 0)


def test_a_part_that_is_an_output_stays() -> None:
    model = make("a, b = Split <axis = 0, num_outputs = 2> (w)  y = Add(x, b)", "float[2, 4] w = {1,2,3,4,5,6,7,8}")
    part = next(value for node in model.graph for value in node.outputs if value.name == "a")
    part.type, part.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([1, 4])
    model.graph.outputs.append(part)
    after = fold(model)
    assert [node.op_type for node in after.graph] == ["Split", "Add"]
    assert [value.name for value in after.graph.outputs] == ["y", "a"]
