"""Scores read backwards from softmax: what the reading finds, and in words why it finds nothing."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from graphwright.passes.base import MisfitError, UnsayableError
from graphwright.passes.lift.scores import CUSTOM, DEPTH, SIDES, ScoreReader, is_binary, scaled, unscaled
from graphwright.passes.lift.shapes import ResolveShapes

QKV = "float[B, 2, S, 8] q, float[B, 2, 8, T] k, float[B, 1, S, T] bias, bool[B, 1, 1, T] allowed, float[B, 2, S, 1] f"
WEIGHT = ", ".join(["1"] * 64)
CONSTANTS = f"""float half = {{0.5}}, float two = {{2}}, float low = {{-1e9}}, float five = {{-5}}, bool on = {{1}},
    bool off = {{0}}, int64[1] last = {{-1}}, float[8, 8] w = {{{WEIGHT}}}, float[1, 1, 1, 1] four = {{4}},
    float[1] one = {{1}}"""


def graph(body: str, inputs: str = QKV) -> ir.Model:
    made = ir.from_onnx_text(f"""
        <ir_version: 10, opset_import: ["": 23]>
        scores ({inputs}) => (float y) <{CONSTANTS}> {{ {body} y = Softmax(s) }}""")
    ResolveShapes()(made)
    for node in made.graph:
        if node.op_type == "Cast":
            node.outputs[0].dtype = ir.DataType(node.attributes.get_int("to", 0))
    return made


def scores(body: str, inputs: str = QKV) -> ir.Value | None:
    return graph(body, inputs).graph.node(-1).inputs[0]


P = "p = MatMul(q, k)"

# name -> what makes the scores s; then scale, cap, masks by kind and factor, the number of factors and shifts
READ: dict[str, tuple[str, float, float, list[tuple[str, float]], tuple[int, int]]] = {
    "the product": ("s = MatMul(q, k)", 1, 0, [], (0, 0)),
    "a scale in three parts": (f"{P} a = Mul(half, p) b = Div(a, two) s = Mul(b, four)", 1, 0, [], (0, 0)),
    "a cap": (f"{P} a = Div(p, two) b = Tanh(a) s = Mul(b, two)", 1, 2, [], (0, 0)),
    "a cap below zero": (f"{P} b = Tanh(p) s = Div(b, five)", -0.2, 0.2, [], (0, 0)),
    "masks of each kind": (
        f"{P} a = Where(allowed, p, low) b = Where(allowed, low, a) s = Add(bias, b)",
        1,
        0,
        [("allowed", 1), ("forbidden", 1), ("added", 1)],
        (0, 0),
    ),
    "a mask taken off, and scaled": (f"{P} a = Sub(p, bias) s = Mul(a, half)", 0.5, 0, [("added", -0.5)], (0, 0)),
    "a choice that is none": (f"{P} a = Where(on, p, bias) s = Where(off, bias, a)", 1, 0, [], (0, 0)),
    "factors": (f"{P} a = Mul(f, p) s = Div(a, f)", 1, 0, [], (2, 0)),
    "a mask of zeros and ones": (
        f"c = Cast<to = 1>(allowed) {P} a = Mul(p, c) s = Add(a, bias)",
        1,
        0,
        [("added", 1)],
        (0, 0),
    ),
    "the row's largest taken off": (f"{P} m = ReduceMax(p, last) s = Sub(p, m)", 1, 0, [], (0, 1)),
    "bounds": (f"{P} a = Max(low, p) b = Max(a, low) s = Clip(b, low)", 1, 0, [], (0, 0)),
    "what changes nothing": (f"{P} a = Cast<to = 1>(p) b = Identity(a) s = Dropout(b, half, off)", 1, 0, [], (0, 0)),
}


@pytest.mark.parametrize("name", READ)
def test_what_stands_between_softmax_and_the_product(name: str) -> None:
    body, scale, cap, masks, (factors, shifts) = READ[name]
    found = ScoreReader().read(scores(body))[0]
    assert found.product.op_type == "MatMul"
    assert (found.scale, found.cap) == pytest.approx((scale, cap))
    assert [mask.kind for mask in found.masks] == [kind for kind, _ in masks]
    assert [mask.factor for mask in found.masks] == pytest.approx([factor for _, factor in masks])
    assert (len(found.factors), len(found.shifts)) == (factors, shifts)
    assert [axis.size for axis in found.frame.axes] == ["B", 2, "S", "T"]


BETWEEN = "stands between the product of Q and K and softmax"

# name -> what makes the scores, inputs, the reason, and the name of what it becomes, if it has one
UNREAD: dict[str, tuple[str, str, str, str]] = {
    "a bias less the product": (f"{P} s = Sub(bias, p)", QKV, f"Sub {BETWEEN}", "CustomAttention"),
    "a number over the product": (f"{P} s = Div(two, p)", QKV, f"Div {BETWEEN}", "CustomAttention"),
    "an activation": (f"{P} s = Relu(p)", QKV, f"Relu {BETWEEN}", "CustomAttention"),
    "further logits": (f"{P} s = Concat<axis = -1>(p, bias)", QKV, f"Concat {BETWEEN}", "SinkAttention"),
    "a bound that is not low": (f"{P} s = Max(p, five)", QKV, f"Max {BETWEEN}", "CustomAttention"),
    "two bounds": (f"{P} s = Max(p, low, bias)", QKV, f"Max {BETWEEN}", "CustomAttention"),
    "a bound above": (f"{P} s = Clip(p, low, two)", QKV, f"Clip {BETWEEN}", "CustomAttention"),
    "integers": (f"{P} a = Cast<to = 7>(p) s = Cast<to = 1>(a)", QKV, f"Cast {BETWEEN}", "CustomAttention"),
    "dropout at work": (f"{P} s = Dropout(p, half, on)", QKV, f"Dropout {BETWEEN}", "CustomAttention"),
    "a number that is not low": (f"{P} s = Where(allowed, p, five)", QKV, f"Where {BETWEEN}", "CustomAttention"),
    "two sides without a product": (
        "a = Neg(bias) s = Add(a, bias)",
        QKV,
        f"neither side of the Add leads to the product of Q and K: Neg {BETWEEN}; the scores are no result of an op",
        "CustomAttention",
    ),
    "no op": ("a = Identity(bias) s = Mul(a, half)", QKV, "the scores are no result of an op", ""),
    "a linear layer": (
        "a = MatMul(x, w) s = Mul(a, half)",
        "float[B, S, 8] x",
        "the product is that of a linear layer: one side is a constant matrix",
        CUSTOM,
    ),
    "vectors": ("s = MatMul(x, z)", "float[B, S, 8] x, float[8] z", "the ranks of Q and K are 3 and 1", CUSTOM),
    "queries and keys merged": (
        f"{P} s = Reshape(p, last)",
        QKV,
        "a Reshape from ['B', 2, 'S', 'T'] to ['2*B*S*T'] mixes queries, keys, heads or batch",
        "",
    ),
    "too far away": (
        f"a0 = MatMul(q, k) {' '.join(f'a{i + 1} = Identity(a{i})' for i in range(DEPTH))} s = Identity(a{DEPTH})",
        QKV,
        f"more than {DEPTH} ops stand between the product of Q and K and softmax",
        "",
    ),
}


@pytest.mark.parametrize("name", UNREAD)
def test_what_may_not_stand_there_is_told_in_words(name: str) -> None:
    body, inputs, reason, becomes = UNREAD[name]
    with pytest.raises(MisfitError) as misfit:
        ScoreReader().read(scores(body, inputs))
    assert str(misfit.value) == reason
    assert (misfit.value.name if isinstance(misfit.value, UnsayableError) else "") == becomes


def test_both_sides_of_a_sum_are_candidates_those_that_were_not_transposed_first() -> None:
    found = ScoreReader().read(
        scores(
            "a = MatMul(r, g) t = Transpose<perm = [0, 1, 3, 2]>(a) p = MatMul(q, k) s = Add(t, p)",
            "float[B, 2, S, 8] q, float[B, 2, 8, T] k, float[B, 2, T, 8] r, float[B, 2, 8, S] g",
        )
    )
    assert [scores.product.outputs[0].name for scores in found] == ["p", "a"]
    assert [[mask.value.name for mask in scores.masks] for scores in found] == [["t"], ["p"]]
    assert [len(scores.frame.where("rows")) for scores in found] == [1, 1]


def test_only_so_many_candidates_are_followed() -> None:
    sums = " ".join(f"p{i} = MatMul(q, k) s{i + 1} = Add(s{i}, p{i})" for i in range(12))
    found = ScoreReader().read(scores(f"s0 = MatMul(q, k) {sums} s = Identity(s12)"))
    assert len(found) == SIDES


SCALARS = {
    "Mul": ("s = Mul(q, half)", "q", 0.5),
    "Mul, the number first": ("s = Mul(half, q)", "q", 0.5),
    "Div": ("s = Div(q, two)", "q", 0.5),
    "a list of one": ("s = Mul(q, one)", "q", 1),
    "several": ("a = Mul(q, half) b = Div(a, two) s = Mul(b, four)", "q", 1),
    "Div, the number first": ("s = Div(two, q)", "s", 1),
    "two tensors": ("s = Mul(q, f)", "s", 1),
    "a number that adds axes": ("a = Mul(x, four) s = Mul(a, half)", "a", 0.5),
}


@pytest.mark.parametrize("name", SCALARS)
def test_numbers_are_taken_off_an_operand(name: str) -> None:
    body, left, scale = SCALARS[name]
    value = scores(body, f"{QKV}, float[T, 8] x")
    found, factor = unscaled(value)
    assert (found.name, factor) == (left, scale)


def test_a_number_over_zero_is_no_scale() -> None:
    made = graph("z = Sub(half, half) s = Div(q, half)")
    node = made.graph.node(1)
    zero = ir.Value(name="none", const_value=ir.tensor(0.0), shape=ir.Shape([]))
    made.graph.register_initializer(zero)
    node.replace_input_with(1, zero)
    assert scaled(node) is None


BINARY = {
    "a Cast of booleans": ("s = Cast<to = 1>(allowed)", True),
    "a view of one": ("a = Cast<to = 1>(allowed) s = Transpose<perm = [0, 2, 1, 3]>(a)", True),
    "a constant of ones": ("s = Identity(w)", True),
    "a constant of others": ("s = Identity(five)", False),
    "a Cast of floats": ("s = Cast<to = 1>(bias)", False),
    "data": ("s = Neg(bias)", False),
}


@pytest.mark.parametrize("name", BINARY)
def test_masks_of_zeros_and_ones_are_told(name: str) -> None:
    body, expected = BINARY[name]
    value = scores(body)
    assert value is not None
    assert is_binary(value) == expected
