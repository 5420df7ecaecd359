"""Attention that the standard op cannot say becomes a function with its own nodes as body."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import onnx_ir as ir
import pytest

from graphwright.passes import lift, lowered_to
from graphwright.passes.lift.functions import inline

Arrays = dict[str, np.ndarray]
Compare = Callable[[ir.Model, ir.Model, Iterable[Arrays], float, float], None]
Spell = Callable[[ir.Model], str]

# float32, rows of at most 7 keys of 8 numbers each of size 1, in the same order before and after
RTOL, ATOL = 1e-6, 1e-6
CONSTANTS = """float half = {0.5}, float two = {2.0}, float zero = {0.0}, float low = {-5}, float lowest = {-3.4e38},
    float deep = {-1e5}, int64[1] queries = {2}, bool on = {1}, int64[1] minus = {-1}, int64[1] first = {0},
    int64[1] one = {1}, int64[1] last = {3}, float unit = {1.0}, float[2, 2] mixed = {0.5, 1.0, -0.5, 0.25},
    float[2, 2] mixed_2 = {1.0, 0.25, 0.5, 2.0}"""
SCORES = "p = MatMul(q, kt) s = Mul(p, half)"
WEIGHTS = "w = Softmax(s)"


def model(scores: str = SCORES, weights: str = WEIGHTS, inputs: str = "", outputs: str = "") -> ir.Model:
    extra = f", {inputs}" if inputs else ""
    return ir.from_onnx_text(f"""
        <ir_version: 10, opset_import: ["": 23]>
        custom (float[B, 2, S, 8] q, float[B, 2, 8, T] kt, float[B, 2, T, 8] v{extra}) => (float[B, 2, S, 8] y{outputs})
        <{CONSTANTS}> {{ {scores} {weights} y = MatMul(w, v) }}""")


def cases(graph: ir.Model) -> Iterator[Arrays]:
    random = np.random.default_rng(0)
    for size in ({"B": 1, "S": 1, "T": 1}, {"B": 2, "S": 5, "T": 5}, {"B": 3, "S": 7, "T": 4}):
        feeds: Arrays = {}
        for value in graph.graph.inputs:
            shape = [dim if isinstance(dim, int) else size[str(dim.value)] for dim in value.shape or ()]
            array: np.ndarray = random.standard_normal(shape).astype(np.float32)
            feeds[str(value.name)] = array > 0 if value.dtype == ir.DataType.BOOL else array
        yield feeds


BEFORE = "stands between the product of Q and K and softmax"
BEHIND = "stands between softmax and the product with V"

READ = "the attention weights are read more than once, or are an output of the graph"
MIX = "{0}0 = Transpose<perm = [0, 2, 3, 1]>({1}) {0}1 = MatMul({0}0, {2}) {3} = Transpose<perm = [0, 3, 1, 2]>({0}1)"

# name -> the graph, the function with its inputs, and why it is one
ENCLOSED: dict[str, tuple[ir.Model, str, str]] = {
    "clipped softmax": (
        model(weights="r = Softmax(s) a = Mul(r, two) b = Sub(a, half) w = Clip(b, zero, half)"),
        "ClippedAttention(q, kt, v)",
        f"Sub {BEHIND}",
    ),
    "a sink beside the keys": (
        model(
            "p = MatMul(q, kt) s = Concat<axis = 3>(p, sink)",
            "r = Softmax(s) w = Slice(r, first, minus, last)",
            "float[B, 2, S, 1] sink",
        ),
        "SinkAttention(q, kt, sink, v)",
        f"Concat {BEFORE}",
    ),
    "softmax over the queries": (
        model(weights="w = Softmax<axis = 2>(s)"),
        "QueryAttention(q, kt, v)",
        "softmax is over the queries, not the keys",
    ),
    "weights renormalised": (
        model(weights="r = Softmax(s) a = Add(r, half) t = ReduceSum(a, minus) w = Div(a, t)"),
        "CustomAttention(q, kt, v)",
        f"Add {BEHIND}",
    ),
    "reciprocal of the scores": (
        model("p = MatMul(q, kt) s = Div(two, p)"),
        "CustomAttention(q, kt, v)",
        f"Div {BEFORE}",
    ),
    "low not low enough": (
        model("p = MatMul(q, kt) s = Where(allowed, p, low)", inputs="bool[B, 1, S, T] allowed"),
        "CustomAttention(q, kt, allowed, v)",
        f"Where {BEFORE}",
    ),
    "scores pruned by their own largest": (
        model("p = MatMul(q, kt) m = ReduceMax(p, minus) l = Sub(m, half) c = Less(p, l) s = Where(c, low, p)"),
        "CustomAttention(q, kt, v)",
        f"Where {BEFORE}",
    ),
    "two halves of the weights, one taken off the other": (
        model(
            """m = Concat<axis = 1>(q, q) n = Concat<axis = 1>(kt, kt) s = MatMul(m, n)""",
            """r = Softmax(s) a, b = Split<axis = 1, num_outputs = 2>(r) h = Mul(b, half) w = Sub(a, h)""",
        ),
        "CustomAttention(Concat(q, q), Concat(kt, kt), v)",
        f"Split {BEHIND}",
    ),
    "heads mixed before and behind softmax": (
        model(
            f"p = MatMul(q, kt) {MIX.format('t', 'p', 'mixed', 's')}",
            f"r = Softmax(s) {MIX.format('u', 'r', 'mixed_2', 'w')}",
        ),
        "CustomAttention(q, kt, v)",
        "the product is that of a linear layer: one side is a constant matrix",
    ),
    "heads mixed behind softmax": (
        model(weights=f"r = Softmax(s) {MIX.format('u', 'r', 'mixed_2', 'w')}"),
        "CustomAttention(q, kt, v)",
        "a linear layer stands between softmax and the product with V",
    ),
    "one is added to the sum of exponentials": (
        model("p = MatMul(q, kt) e = Exp(p)", "t = ReduceSum(e, minus) u = Add(t, unit) w = Div(e, u)"),
        "CustomAttention(q, kt, v)",
        "exponentials that are no softmax of the scores",
    ),
    "low of many elements": (
        model("p = MatMul(q, kt) s = Where(allowed, p, bias)", inputs="bool[B, 1, S, T] allowed, float[T] bias"),
        "CustomAttention(q, kt, allowed, bias, v)",
        f"Where {BEFORE}",
    ),
    "the product is read twice": (
        model("p = MatMul(q, kt) d = Mul(p, half) s = Add(d, p)"),
        "CustomAttention(q, kt, v)",
        "the scores behind MatMul are read more than once",
    ),
    "the mean of a row is taken off": (
        model("p = MatMul(q, kt) m = ReduceMean(p, minus) s = Sub(p, m)"),
        "CustomAttention(q, kt, v)",
        "the scores behind MatMul are read more than once",
    ),
    "weights over their sum, once more": (
        model(weights="r = Softmax(s) t = ReduceSum(r, minus) w = Div(r, t)"),
        "CustomAttention(q, kt, v)",
        "the attention weights are read more than once, or are an output of the graph",
    ),
    "a NaN guard of something else": (
        model(weights="r = Softmax(s) n = IsNaN(r) w = Where(n, half, r)"),
        "CustomAttention(q, kt, v)",
        "the attention weights are read more than once, or are an output of the graph",
    ),
    "a factor that is another one for each key": (
        model("p = MatMul(q, kt) s = Mul(p, f)", inputs="float[B, 1, 1, T] f"),
        "CustomAttention(q, kt, f, v)",
        "the scores meet [B,1,1,T], which is not the same for all keys",
    ),
    "a shift that is another one for each key": (
        model("p = MatMul(q, kt) m = ReduceMax(p, queries) s = Sub(p, m)"),
        "CustomAttention(q, kt, v)",
        "the scores meet [B,2,1,T], which is not the same for all keys",
    ),
    "Tanh behind a mask": (
        model("p = MatMul(q, kt) a = Add(p, f) s = Tanh(a)", inputs="float[B, 1, 1, T] f"),
        "CustomAttention(q, kt, f, v)",
        "Tanh stands behind a mask, a shift or another Tanh",
    ),
    "Tanh behind a shift": (
        model("p = MatMul(q, kt) m = ReduceMax(p, minus) a = Sub(p, m) s = Tanh(a)"),
        "CustomAttention(q, kt, v)",
        "Tanh stands behind a mask, a shift or another Tanh",
    ),
    "Tanh twice": (
        model("p = MatMul(q, kt) a = Tanh(p) s = Tanh(a)"),
        "CustomAttention(q, kt, v)",
        "Tanh stands behind a mask, a shift or another Tanh",
    ),
    "a factor behind a mask": (
        model("p = MatMul(q, kt) a = Add(p, f) s = Mul(a, g)", inputs="float[B, 1, 1, T] f, float[B, 2, S, 1] g"),
        "CustomAttention(q, kt, f, g, v)",
        "Mul by a tensor stands behind the mask or the soft-cap",
    ),
    "a scale below zero": (
        model("p = MatMul(q, kt) s = Mul(p, low)"),
        "CustomAttention(q, kt, v)",
        "the scale is -5",
    ),
    "a scale of zero": (model("p = MatMul(q, kt) s = Mul(p, zero)"), "CustomAttention(q, kt, v)", "the scale is 0"),
    "a scale below zero, of masked scores": (
        model("p = MatMul(q, kt) a = Where(allowed, p, deep) s = Mul(a, low)", inputs="bool[B, 1, S, T] allowed"),
        "CustomAttention(q, kt, allowed, v)",
        "the scores are multiplied by a number that is not positive behind a mask",
    ),
    "two softmaxes": (
        model(weights="r = Softmax(s) w = Softmax(r)"),
        "CustomAttention(q, kt, v)",
        f"Softmax {BEHIND}",
    ),
    "a bound that is not low": (
        model("p = MatMul(q, kt) s = Max(low, p)"),
        "CustomAttention(q, kt, v)",
        f"Max {BEFORE}",
    ),
    "a bound above": (
        model("p = MatMul(q, kt) s = Clip(p, lowest, two)"),
        "CustomAttention(q, kt, v)",
        f"Clip {BEFORE}",
    ),
}


@pytest.mark.parametrize("name", ENCLOSED)
def test_what_the_standard_cannot_say_becomes_a_function(name: str, compare: Compare, spell: Spell) -> None:
    graph, expected, reason = ENCLOSED[name]
    lifted = lift(graph)
    (site,) = lifted.log.sites
    assert (site.kind, site.status, site.spelling, site.reason) == ("attention", "lifted", "softmax(QK)V", reason)
    assert site.became == f"graphwright.{expected.partition('(')[0]}"
    assert spell(lifted.model) == f"graphwright.{expected}"
    compare(graph, lifted.model, cases(graph), RTOL, ATOL)
    inlined = lifted.model.clone()
    inline(inlined)
    assert lowered_to(inlined, "attention") in ({"Softmax": 1}, {"Exp": 1})
    compare(graph, inlined, cases(graph), RTOL, ATOL)


def test_equal_sites_share_a_function_and_others_get_a_number() -> None:
    text = " ".join(
        f"p{i} = MatMul({x}, kt) s{i} = Mul(p{i}, {scale}) w{i} = Softmax<axis = 2>(s{i}) y{i} = MatMul(w{i}, v)"
        for i, x, scale in ((0, "q", "half"), (1, "y0", "half"), (2, "y1", "two"))
    )
    graph = ir.from_onnx_text(f"""
        <ir_version: 10, opset_import: ["": 23]>
        stack (float[B, 2, S, 8] q, float[B, 2, 8, T] kt, float[B, 2, T, 8] v) => (float[B, 2, S, 8] y2)
        <{CONSTANTS}> {{ {text} }}""")
    lifted = lift(graph).model
    assert [node.op_type for node in lifted.graph] == ["QueryAttention", "QueryAttention", "QueryAttention_2"]
    assert len(lifted.functions) == 2


# name -> the graph, the function with its inputs, and which of its outputs each of the graph's is
READ_OUTSIDE: dict[str, tuple[ir.Model, str, list[int], str]] = {
    "weights": (model(outputs=", float[B, 2, S, T] w"), "CustomAttention(q, kt, v)", [0, 1], READ),
    "their mean over the heads": (
        model(weights="w = Softmax(s) m = ReduceMean(w, one)", outputs=", float[B, 1, S, T] m"),
        "CustomAttention(q, kt, v)",
        [0],
        READ,
    ),
    "scores": (
        model(outputs=", float[B, 2, S, T] s"),
        "CustomAttention(q, kt, v)",
        [0, 1],
        "the scores behind Mul are read more than once",
    ),
    "scores and clipped weights": (
        model(weights="r = Softmax(s) w = Clip(r, zero, half)", outputs=", float[B, 2, S, T] s, float[B, 2, S, T] w"),
        "ClippedAttention(q, kt, v)",
        [0, 1, 2],
        f"Clip {BEHIND}",
    ),
    "scores, by the layer behind": (
        model(
            weights="w = Softmax(s) o = MatMul(w, v) p2 = MatMul(o, kt) s2 = Add(p2, s) w2 = Softmax(s2)"
            " y2 = MatMul(w2, v)",
            outputs=", float[B, 2, S, 8] y2",
        ),
        "CustomAttention(q, kt, v)",
        [0],
        "the scores behind Mul are read more than once",
    ),
}


@pytest.mark.parametrize("name", READ_OUTSIDE)
def test_what_is_read_outside_is_an_output_of_the_function(name: str, compare: Compare, spell: Spell) -> None:
    graph, expected, places, reason = READ_OUTSIDE[name]
    lifted = lift(graph)
    site = lifted.log.sites[0]
    assert (site.status, site.reason) == ("lifted", reason)
    (call,) = [node for node in lifted.model.graph if node.op_type == expected.partition("(")[0]]
    assert spell(lifted.model).startswith(f"graphwright.{expected}")
    outputs = [value for value in lifted.model.graph.outputs if value.producer() is call]
    assert [value.index() for value in outputs] == places
    compare(graph, lifted.model, cases(graph), 1e-5, 4e-6)
    inlined = lifted.model.clone()
    inline(inlined)
    compare(graph, inlined, cases(graph), 1e-5, 4e-6)


PRODUCTS = {
    "Einsum": (
        """s = Einsum<equation = "bhsd,bhsdw->bhsw">(q, k)""",
        """y = Einsum<equation = "bhsw,bhsdw->bhsd">(w, v)""",
    ),
    "ReduceSum": (
        "q5 = Unsqueeze(q, last) p = Mul(q5, k) s = ReduceSum<keepdims = 0>(p, third)",
        "w5 = Unsqueeze(w, third) o = Mul(v, w5) y = ReduceSum<keepdims = 0>(o, fourth)",
    ),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_each_query_may_have_keys_of_its_own(name: str, compare: Compare, spell: Spell) -> None:
    scores, result = PRODUCTS[name]
    graph = ir.from_onnx_text(f"""
        <ir_version: 10, opset_import: ["": 23]>
        local (float[B, 2, S, 8] q, float[B, 2, S, 8, 3] k, float[B, 2, S, 8, 3] v) => (float[B, 2, S, 8] y)
        <int64[1] last = {{4}}, int64[1] third = {{3}}, int64[1] fourth = {{4}}> {{
            {scores} w = Softmax(s) {result} }}""")
    lifted = lift(graph)
    (site,) = lifted.log.sites
    assert (site.became, site.reason) == ("graphwright.CustomAttention", f"the product of Q and K is spelled as {name}")
    compare(graph, lifted.model, cases(graph), RTOL, ATOL)


NO_ATTENTION = {
    "a linear layer over the features, not the heads": "t = MatMul(q, square) s = MatMul(t, square) w = Softmax(s)",
    "the sum of squares": "p = Mul(q, q) s = ReduceSum(p, minus) w = Softmax(s)",
    "exponentials of one product": "p = MatMul(q, kt) w0 = Exp(p) w = ReduceMax(w0)",
    "one product behind alone": "w = Softmax<axis = 2>(q)",
}


@pytest.mark.parametrize("name", NO_ATTENTION)
def test_a_softmax_without_a_product_of_queries_and_keys_is_no_site(name: str) -> None:
    numbers = ", ".join(["0.5"] * 64)
    graph = ir.from_onnx_text(f"""
        <ir_version: 10, opset_import: ["": 23]>
        none (float[B, 2, S, 8] q, float[B, 2, 8, T] kt) => (float y)
        <{CONSTANTS}, float[8, 8] square = {{{numbers}}}> {{
            {NO_ATTENTION[name]} o = Mul(w, q) u = ReduceMax<keepdims = 0>(o) y = Identity(u) }}""")
    assert not lift(graph).log.sites
