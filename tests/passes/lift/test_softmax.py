"""Exponentials over their sum, and Softmax of a flattened tensor, become one Softmax; near misses stay."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import onnx_ir as ir
import pytest

from graphwright.passes.base import run
from graphwright.passes.lift import softmax
from graphwright.passes.lift.fold import Fold
from graphwright.passes.lift.opset import ConvertOpset
from graphwright.passes.lift.shapes import ResolveShapes
from graphwright.passes.lift.softmax import UnifySoftmax
from graphwright.passes.prover import Prover

Arrays = dict[str, np.ndarray]
Compare = Callable[[ir.Model, ir.Model, Iterable[Arrays], float, float], None]
Spell = Callable[[ir.Model], str]

RTOL, ATOL = 1e-6, 1e-6  # float32, at most 16 terms; the shift is another one
CONSTANTS = """int64[1] last = {-1}, int64[1] one = {1}, int64[2] both = {1, 2}, float tiny = {1e-3},
    int64[2] rows = {-1, 8}, int64[2] pairs = {-1, 16}, float[8] kept = {1, 1, 1, 0, 1, 1, 0, 1}"""


def model(body: str, inputs: str = "float[B, S, 8] x", output: str = "B, S, 8", opset: int = 23) -> ir.Model:
    return ir.from_onnx_text(f"""
        <ir_version: 8, opset_import: ["": {opset}]>
        softmax ({inputs}) => (float[{output}] y) <{CONSTANTS}> {{ {body} }}""")


def cases(graph: ir.Model) -> Iterator[Arrays]:
    random = np.random.default_rng(0)
    for size in ({"B": 1, "S": 1}, {"B": 2, "S": 5}, {"B": 3, "S": 4}):
        feeds: Arrays = {}
        for value in graph.graph.inputs:
            shape = [dim if isinstance(dim, int) else size[str(dim.value)] for dim in value.shape or ()]
            array: np.ndarray = random.standard_normal(shape).astype(np.float32)
            feeds[str(value.name)] = array > -0.5 if value.dtype == ir.DataType.BOOL else array
        yield feeds


def unified(graph: ir.Model) -> ir.Model:
    made = graph.clone()
    run(made, [ConvertOpset(), Fold(), ResolveShapes(), UnifySoftmax(prover=Prover())])
    return made


EXP = "e = Exp(x) t = ReduceSum(e, last)"
MAX = "m = ReduceMax(x, last)"

# name -> the graph, what it becomes, and the axis of that Softmax
UNIFIED: dict[str, tuple[ir.Model, str, int]] = {
    "exponentials over their sum": (model(f"{EXP} y = Div(e, t)"), "Softmax(x)", -1),
    "stable": (model(f"{MAX} d = Sub(x, m) e = Exp(d) t = ReduceSum(e, last) y = Div(e, t)"), "Softmax(x)", -1),
    "shifted twice": (
        model(f"{MAX} a = Sub(x, m) d = Sub(a, tiny) e = Exp(d) t = ReduceSum(e, last) y = Div(e, t)"),
        "Softmax(x)",
        -1,
    ),
    "another axis": (model("e = Exp(x) t = ReduceSum(e, one) y = Div(e, t)"), "Softmax(x)", 1),
    "the sum unsqueezed": (
        model("e = Exp(x) t = ReduceSum<keepdims = 0>(e, last) u = Unsqueeze(t, last) y = Div(e, u)"),
        "Softmax(x)",
        -1,
    ),
    "exponentials that are read elsewhere": (
        model(f"{EXP} d = Div(e, t) y = Add(d, e)"),
        "Add(Softmax(x), Exp(x))",
        -1,
    ),
    "its logarithm": (model("l = LogSoftmax<axis = 1>(x) y = Exp(l)"), "Softmax(x)", 1),
    "the logarithm of its sum": (model("l = ReduceLogSumExp(x, last) d = Sub(x, l) y = Exp(d)"), "Softmax(x)", -1),
    "divided behind the product": (
        model(
            f"{MAX} d = Sub(x, m) e = Exp(d) t = ReduceSum(e, last) o = MatMul(e, z) y = Div(o, t)",
            "float[B, S, 8] x, float[B, 8, 8] z",
        ),
        "MatMul(Softmax(x), z)",
        -1,
    ),
    "masked by a constant": (
        model("a = Exp(x) e = Mul(a, kept) t = ReduceSum(e, last) y = Div(e, t)"),
        "Softmax(Where(Cast(kept), x, -inf))",
        -1,
    ),
    "masked": (
        model(
            f"{MAX} d = Sub(x, m) a = Exp(d) f = Cast<to = 1>(allowed) e = Mul(f, a)"
            " t = ReduceSum(e, last) y = Div(e, t)",
            "float[B, S, 8] x, bool[B, 1, 8] allowed",
        ),
        "Softmax(Where(allowed, x, -inf))",
        -1,
    ),
    "a shift that varies along the axis": (
        model("d = Sub(x, kept) e = Exp(d) t = ReduceSum(e, last) y = Div(e, t)"),
        "Softmax(Sub(x, kept))",
        -1,
    ),
    "a shift that is the same along another axis alone": (
        model("m = ReduceMax(x, one) d = Sub(x, m) e = Exp(d) t = ReduceSum(e, last) y = Div(e, t)"),
        "Softmax(Sub(x, ReduceMax(x, 1)))",
        -1,
    ),
    "a shift that x is broadcast to": (
        model("d = Sub(x, z) e = Exp(d) t = ReduceSum(e, last) y = Div(e, t)", "float[1, 8] x, float[S, 1] z", "S, 8"),
        "Softmax(Sub(x, z))",
        -1,
    ),
    "of opset 11": (model("y = Softmax<axis = 2>(x)", opset=11), "Softmax(x)", -1),
    "flattened in front": (
        model("f = Flatten<axis = 2>(x) s = Softmax(f) h = Shape(x) y = Reshape(s, h)"),
        "Softmax(x)",
        -1,
    ),
    "in rows": (
        model("f = Reshape(x, rows) s = Softmax<axis = 1>(f) h = Shape(x) y = Reshape(s, h)"),
        "Softmax(x)",
        -1,
    ),
}


@pytest.mark.parametrize("name", UNIFIED)
def test_a_spelling_becomes_softmax(name: str, compare: Compare, spell: Spell) -> None:
    graph, expected, axis = UNIFIED[name]
    made = unified(graph)
    assert spell(made) == expected
    assert [node.attributes.get_int("axis", 9) for node in made.graph if node.op_type == "Softmax"] == [axis]
    compare(graph, made, cases(graph), RTOL, ATOL)


SQUARE = "float[8, 8] x", "8, 8"

# name -> a graph that is none, and the ops that it keeps
STAYS: dict[str, tuple[ir.Model, list[str]]] = {
    "over several axes": (model("e = Exp(x) t = ReduceSum(e, both) y = Div(e, t)"), ["Exp", "ReduceSum", "Div"]),
    "over all axes": (model("e = Exp(x) t = ReduceSum(e) y = Div(e, t)"), ["Exp", "ReduceSum", "Div"]),
    "a sum that is broadcast to the columns": (
        model("e = Exp(x) t = ReduceSum<keepdims = 0>(e, last) y = Div(e, t)", *SQUARE),
        ["Exp", "ReduceSum", "Div"],
    ),
    "a sum unsqueezed elsewhere": (
        model(
            "e = Exp(x) t = ReduceSum<keepdims = 0>(e, one) u = Unsqueeze(t, last) y = Div(e, u)",
            "float[B, 8, 8] x",
            "B, 8, 8",
        ),
        ["Exp", "ReduceSum", "Unsqueeze", "Div"],
    ),
    "the sum of something else": (
        model("n = Neg(x) f = Exp(n) t = ReduceSum(f, last) e = Exp(x) y = Div(e, t)"),
        ["Neg", "Exp", "ReduceSum", "Exp", "Div"],
    ),
    "a number is added to the sum": (
        model(f"{EXP} u = Add(t, tiny) y = Div(e, u)"),
        ["Exp", "ReduceSum", "Add", "Div"],
    ),
    "exponentials with factors": (
        model("a = Exp(x) e = Mul(a, z) t = ReduceSum(e, last) y = Div(e, t)", "float[B, S, 8] x, float[8] z"),
        ["Exp", "Mul", "ReduceSum", "Div"],
    ),
    "masked in the sum alone": (
        model("a = Exp(x) e = Mul(a, kept) t = ReduceSum(e, last) y = Div(a, t)"),
        ["Exp", "Mul", "ReduceSum", "Div"],
    ),
    "the logarithm of another sum": (
        model("l = ReduceLogSumExp(z, last) d = Sub(x, l) y = Exp(d)", "float[B, S, 8] x, float[B, S, 8] z"),
        ["ReduceLogSumExp", "Sub", "Exp"],
    ),
    "a product over another axis": (
        model("e = Exp(x) t = ReduceSum(e, one) o = MatMul(e, z) y = Div(o, t)", "float[8, 8, 8] x, float[8, 8] z"),
        ["Exp", "ReduceSum", "MatMul", "Div"],
    ),
    "the mean": (model("e = Exp(x) t = ReduceMean(e, last) y = Div(e, t)"), ["Exp", "ReduceMean", "Div"]),
    "the sum over the exponentials": (model(f"{EXP} y = Div(t, e)"), ["Exp", "ReduceSum", "Div"]),
    "flattened elsewhere": (
        model("f = Flatten<axis = 1>(x) s = Softmax(f) h = Shape(x) y = Reshape(s, h)"),
        ["Flatten", "Softmax", "Shape", "Reshape"],
    ),
    "over the rows": (
        model("f = Flatten<axis = 2>(x) s = Softmax<axis = 0>(f) h = Shape(x) y = Reshape(s, h)"),
        ["Flatten", "Softmax", "Shape", "Reshape"],
    ),
    "in pairs of rows": (
        model("f = Reshape(x, pairs) s = Softmax(f) h = Shape(x) y = Reshape(s, h)", "float[B, 4, 8] x", "B, 4, 8"),
        ["Reshape", "Softmax", "Shape", "Reshape"],
    ),
    "the shape of another tensor": (
        model(
            "f = Flatten<axis = 2>(x) s = Softmax(f) h = Shape(z) y = Reshape(s, h)",
            "float[B, 4, 8] x, float[4, B, 8] z",
            "4, B, 8",
        ),
        ["Flatten", "Softmax", "Shape", "Reshape"],
    ),
    "read before its shape is back": (
        model("f = Flatten<axis = 2>(x) s = Softmax(f) r = ReduceMax(s) h = Shape(x) d = Reshape(s, h) y = Add(d, r)"),
        ["Flatten", "Softmax", "ReduceMax", "Shape", "Reshape", "Add"],
    ),
}


@pytest.mark.parametrize("name", STAYS)
def test_what_is_no_softmax_stays(name: str, compare: Compare) -> None:
    graph, expected = STAYS[name]
    made = graph.clone()
    run(made, [ConvertOpset(), ResolveShapes()])
    assert not UnifySoftmax(prover=Prover())(made).modified
    assert [node.op_type for node in made.graph] == expected
    compare(graph, made, cases(graph), 0, 0)


def test_a_broken_check_is_caught_by_the_proof(monkeypatch: pytest.MonkeyPatch, compare: Compare) -> None:
    graph = model("d = Sub(x, kept) e = Exp(d) t = ReduceSum(e, last) y = Div(e, t)")
    monkeypatch.setattr(softmax, "_is_shift", lambda node, axis: True)
    made = unified(graph)
    assert [node.op_type for node in made.graph] == ["Sub", "Exp", "ReduceSum", "Div"]
    compare(graph, made, cases(graph), 0, 0)
