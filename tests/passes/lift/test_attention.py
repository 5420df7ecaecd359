"""Attention in any spelling becomes one `Attention`; what only looks like one stays, and the log says why."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
import pytest

from graphwright.passes import Site, lift

Arrays = dict[str, np.ndarray]
Compare = Callable[[ir.Model, ir.Model, Iterable[Arrays], float, float], None]
Spell = Callable[[ir.Model], str]

# float32, rows of at most 7 keys of 8 numbers each of size 1: the products are summed in another order
RTOL, ATOL = 1e-5, 2e-6

SIZES = ({"B": 1, "S": 1, "T": 1}, {"B": 1, "S": 1, "T": 6}, {"B": 2, "S": 5, "T": 5}, {"B": 3, "S": 7, "T": 4})
FLOATS = "float half = {0.5}, float root = {2.0}, float zero = {0.0}, float inf = {-inf}, float lowest = {-3.4e38}"
LISTS = "int64[3] flat = {-1, 2, 8}, int64[1] minus = {-1}, int64[2] tail = {8, 2}, int64[1] two = {2}, bool off = {0}"
SHAPES = "int64[1] eight = {8}, int64[1] one = {1}"


class Graph(NamedTuple):
    """A graph of one attention: [batch, length, heads, size] -> [batch, heads, length, size]."""

    scores: str  # from Q and Kt to s
    inputs: str = ""
    keys: str = "Kt = Transpose<perm = [0, 2, 3, 1]>(k)"
    weights: str = "w = Softmax<axis = -1>(s)"
    constants: str = ""
    outputs: str = ""
    q: str = "float[B, S, 2, 8] q"
    k: str = "float[B, T, 2, 8] k"
    v: str = "float[B, T, 2, 8] v"

    def model(self) -> ir.Model:
        inputs = ", ".join(part for part in (self.q, self.k, self.v, self.inputs) if part)
        constants = ", ".join(part for part in (FLOATS, LISTS, SHAPES, self.constants) if part)
        return ir.from_onnx_text(f"""
            <ir_version: 10, opset_import: ["": 23]>
            attention ({inputs}) => (float[B, H, S, 8] y{self.outputs}) <{constants}> {{
                Q = Transpose<perm = [0, 2, 1, 3]>(q)
                V = Transpose<perm = [0, 2, 1, 3]>(v)
                {self.keys}
                {self.scores}
                {self.weights}
                y = MatMul(w, V)
            }}""")


def cases(model: ir.Model, sizes: Iterable[dict[str, int]] = SIZES) -> Iterator[Arrays]:
    """Random inputs; of a mask each row allows its first key, and others by chance."""
    random = np.random.default_rng(0)
    for size in sizes:
        feeds = {}
        for value in model.graph.inputs:
            assert value.name is not None
            assert value.shape is not None
            shape = [dim if isinstance(dim, int) else size[str(dim.value)] for dim in value.shape]
            if value.dtype == ir.DataType.BOOL:
                allowed = random.random(shape) < 0.5
                allowed[..., 0] = True
                feeds[value.name] = ~allowed if value.name.startswith("forbidden") else allowed
            else:
                feeds[value.name] = random.standard_normal(shape).astype(np.float32)
        yield feeds


def attentions(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == "Attention"]


PLAIN = "p = MatMul(Q, Kt) s = Mul(p, half)"
RESHAPES = """
    K = Transpose<perm = [0, 2, 1, 3]>(k)  n = Shape<start = 0, end = 1>(k)  t = Shape<start = 1, end = 2>(k)
    bh = Concat<axis = 0>(minus, t, eight)  K3 = Reshape(K, bh)  Kt3 = Transpose<perm = [0, 2, 1]>(K3)
    back = Concat<axis = 0>(n, two, eight, t)  Kt = Reshape(Kt3, back)"""
QKV = "Attention(Transpose(q), Transpose(k), Transpose(v)"
BIAS = "float[B, 1, S, T] bias"
ADDED = "p = MatMul(Q, Kt) d = Mul(p, half) s = Add(d, bias)"

# name -> the graph, what it becomes, its scale, the spelling that the log tells
SPELLINGS: dict[str, tuple[Graph, str, float, str]] = {
    "perm 0231": (Graph(PLAIN), f"{QKV})", 0.5, "scaled scores"),
    "perm 0132": (
        Graph(PLAIN, keys="K = Transpose<perm = [0, 2, 1, 3]>(k) Kt = Transpose<perm = [0, 1, 3, 2]>(K)"),
        f"{QKV})",
        0.5,
        "scaled scores",
    ),
    "reshape, transpose, reshape": (Graph(PLAIN, keys=RESHAPES), f"{QKV})", 0.5, "scaled scores"),
    "reshape to other heads": (
        Graph(
            PLAIN,
            keys=RESHAPES.replace("(n, two, eight, t)", "(n, one, wide, t)"),
            constants="int64[1] wide = {16}",
            q="float[B, S, 1, 16] q",
            v="float[B, T, 1, 8] v",
        ),
        "Attention(Transpose(q), Transpose(Reshape(Transpose(Reshape(Transpose(k))))), Transpose(v))",
        0.5,
        "scaled scores",
    ),
    "reshape that mixes": (
        Graph(PLAIN, keys=RESHAPES.replace("(minus, t, eight)", "(minus, eight, t)")),
        "Attention(Transpose(q), Transpose(Reshape(Transpose(Reshape(Transpose(k))))), Transpose(v))",
        0.5,
        "scaled scores",
    ),
    "scale that adds a dim": (
        Graph(
            PLAIN,
            keys="K4 = Mul(k, once) Kt = Transpose<perm = [0, 1, 3, 2]>(K4)",
            constants="float[1, 1, 1, 1] once = {0.25}",
            q="float[1, S, 2, 8] q",
            k="float[2, T, 8] k",
            v="float[1, T, 2, 8] v",
        ),
        "Attention(Transpose(q), Mul(k, 0.25), Transpose(v))",
        0.5,
        "scaled scores",
    ),
    "no transpose": (
        Graph(PLAIN, k="float[B, 2, 8, T] k", keys="Kt = Identity(k)"),
        f"{QKV})",
        0.5,
        "scaled scores",
    ),
    "scores by Div": (Graph("p = MatMul(Q, Kt) s = Div(p, root)"), f"{QKV})", 0.5, "scaled scores"),
    "scale on the left": (Graph("p = MatMul(Q, Kt) s = Mul(half, p)"), f"{QKV})", 0.5, "scaled scores"),
    "no scale": (Graph("s = MatMul(Q, Kt)"), f"{QKV})", 1.0, ""),
    "scaled Q": (Graph("Qs = Mul(Q, half) s = MatMul(Qs, Kt)"), f"{QKV})", 0.5, "scaled Q, K"),
    "scaled Kt": (Graph("Ks = Div(Kt, root) s = MatMul(Q, Ks)"), f"{QKV})", 0.5, "scaled Q, K"),
    "scaled K": (
        Graph("s = MatMul(Q, Kt)", keys="Ks = Mul(k, half) Kt = Transpose<perm = [0, 2, 3, 1]>(Ks)"),
        f"{QKV})",
        0.5,
        "",
    ),
    "scaled Q, K and scores": (
        Graph("Qs = Mul(Q, half) Ks = Mul(Kt, half) p = MatMul(Qs, Ks) s = Div(p, half)"),
        f"{QKV})",
        0.5,
        "scaled scores, scaled Q, K",
    ),
    "added mask": (Graph(ADDED, "float[B, 1, S, T] bias"), f"{QKV}, bias)", 0.5, "scaled scores, added mask"),
    "mask on the left": (
        Graph("p = MatMul(Q, Kt) s = Add(bias, p)", "float[B, 2, S, T] bias"),
        f"{QKV}, bias)",
        1.0,
        "added mask",
    ),
    "mask of query length 1": (
        Graph(ADDED, "float[B, 1, 1, T] bias"),
        f"{QKV}, Expand(bias))",
        0.5,
        "scaled scores, added mask",
    ),
    "mask of rank 3": (
        Graph(ADDED, "float[2, S, T] bias"),
        f"{QKV}, Expand(bias))",
        0.5,
        "scaled scores, added mask",
    ),
    "mask of rank 2": (Graph(ADDED, "float[S, T] bias"), f"{QKV}, Expand(bias))", 0.5, "scaled scores, added mask"),
    "mask of rank 1": (Graph(ADDED, "float[T] bias"), f"{QKV}, Expand(bias))", 0.5, "scaled scores, added mask"),
    "boolean made additive": (
        Graph("m = Where(allowed, zero, lowest) p = MatMul(Q, Kt) s = Add(p, m)", "bool[B, 1, S, T] allowed"),
        f"{QKV}, allowed)",
        1.0,
        "added mask",
    ),
    "forbidden made additive": (
        Graph("m = Where(forbidden, inf, zero) p = MatMul(Q, Kt) s = Add(m, p)", "bool[B, 1, 1, T] forbidden"),
        f"{QKV}, Expand(Not(forbidden)))",
        1.0,
        "added mask",
    ),
    "Where": (
        Graph("p = MatMul(Q, Kt) d = Mul(p, half) s = Where(allowed, d, inf)", "bool[1, 1, S, T] allowed"),
        f"{QKV}, allowed)",
        0.5,
        "scaled scores, Where mask",
    ),
    "masked_fill": (
        Graph("p = MatMul(Q, Kt) s = Where(forbidden, lowest, p)", "bool[B, 1, 1, T] forbidden"),
        f"{QKV}, Expand(Not(forbidden)))",
        1.0,
        "Where mask",
    ),
    "masked_fill of Not": (
        Graph("n = Not(allowed) p = MatMul(Q, Kt) s = Where(n, inf, p)", "bool[B, 1, S, T] allowed"),
        f"{QKV}, allowed)",
        1.0,
        "Where mask",
    ),
    "two added masks": (
        Graph("p = MatMul(Q, Kt) a = Add(p, bias) s = Add(a, bias_2)", "float[B, 1, 1, T] bias, float[2, S, T] bias_2"),
        f"{QKV}, Add(bias, bias_2))",
        1.0,
        "added mask, added mask",
    ),
    "two boolean masks": (
        Graph(
            "p = MatMul(Q, Kt) a = Where(allowed, p, inf) m = Where(allowed_2, zero, inf) s = Add(m, a)",
            "bool[B, 1, S, T] allowed, bool[1, 1, 1, T] allowed_2",
        ),
        f"{QKV}, And(allowed, allowed_2))",
        1.0,
        "Where mask, added mask",
    ),
    "bias and boolean mask": (
        Graph(
            "p = MatMul(Q, Kt) a = Add(p, bias) s = Where(allowed, a, inf)",
            "float[1, 2, S, T] bias, bool[B, 1, 1, T] allowed",
        ),
        f"{QKV}, Where(allowed, bias, -3.40282e+38))",
        1.0,
        "added mask, Where mask",
    ),
    "NaN guard": (
        Graph(PLAIN, weights="r = Softmax<axis = -1>(s) n = IsNaN(r) w = Where(n, zero, r)"),
        f"{QKV})",
        0.5,
        "scaled scores, NaN guard",
    ),
    "default axis, Identity, Dropout, Cast": (
        Graph(PLAIN, weights="r = Softmax(s) c = Cast<to = 1>(r) d = Dropout(c, zero, off) w = Identity(d)"),
        f"{QKV})",
        0.5,
        "scaled scores",
    ),
    "axis 3": (Graph(PLAIN, weights="w = Softmax<axis = 3>(s)"), f"{QKV})", 0.5, "scaled scores"),
    "soft-cap": (Graph("p = MatMul(Q, Kt) s = Tanh(p)"), f"{QKV})", 1.0, "soft-cap"),
    "soft-cap of scaled scores": (
        Graph(
            "p = MatMul(Q, Kt) d = Mul(p, half) c = Div(d, root) h = Tanh(c) t = Mul(root, h) s = Add(t, bias)", BIAS
        ),
        f"{QKV}, bias)",
        0.5,
        "scaled scores, scaled scores, soft-cap, scaled scores, added mask",
    ),
    "mask before the scale": (
        Graph("p = MatMul(Q, Kt) m = Add(p, bias) s = Mul(m, half)", BIAS),
        f"{QKV}, Mul(bias, 0.5))",
        0.5,
        "added mask, scaled scores",
    ),
    "scale of many elements": (
        Graph("p = MatMul(Q, Kt) s = Mul(p, heads)", constants="float[2, 1, 1] heads = {0.5, 0.25}"),
        "Attention(Mul(Transpose(q), heads), Transpose(k), Transpose(v))",
        1.0,
        "scaled by a tensor",
    ),
    "computed temperature": (
        Graph("p = MatMul(Q, Kt) s = Div(p, temperature)", "float[1] temperature"),
        "Attention(Div(Transpose(q), temperature), Transpose(k), Transpose(v))",
        1.0,
        "scaled by a tensor",
    ),
    "shift by the row's maximum": (
        Graph("p = MatMul(Q, Kt) top = ReduceMax(p, minus) s = Sub(p, top)"),
        f"{QKV})",
        1.0,
        "shifted",
    ),
    "lower bound": (
        Graph("p = MatMul(Q, Kt) a = Add(p, bias) s = Max(a, lowest)", BIAS),
        f"{QKV}, bias)",
        1.0,
        "added mask, lower bound",
    ),
    "head mask": (
        Graph(PLAIN, "float[2, 1, 1] gate", weights="r = Softmax<axis = -1>(s) w = Mul(r, gate)"),
        f"Mul({QKV}), gate)",
        0.5,
        "scaled scores, gate",
    ),
    "scaled weights": (
        Graph(PLAIN, weights="r = Softmax<axis = -1>(s) w = Mul(r, half)"),
        f"Mul({QKV}), 0.5)",
        0.5,
        "scaled scores, scaled weights",
    ),
    "weights zeroed where the mask forbids": (
        Graph(
            "p = MatMul(Q, Kt) s = Where(forbidden, lowest, p)",
            "bool[B, 1, 1, T] forbidden",
            weights="r = Softmax<axis = -1>(s) w = Where(forbidden, zero, r)",
        ),
        f"{QKV}, Expand(Not(forbidden)))",
        1.0,
        "Where mask, zeroed weights",
    ),
    "weights zeroed by a mask that is part of the bias": (
        Graph(
            "f = Cast<to = 1>(allowed) m = Where(allowed, zero, lowest) b = Add(m, bias)"
            " p = MatMul(Q, Kt) s = Add(p, b)",
            "bool[B, 1, 1, T] allowed, float[2, S, T] bias",
            weights="r = Softmax<axis = -1>(s) w = Mul(r, f)",
        ),
        f"{QKV}, Add(Where(allowed, 0, -3.4e+38), bias))",
        1.0,
        "added mask, zeroed weights",
    ),
    "weights zeroed where all scores are -inf": (
        Graph(
            "p = MatMul(Q, Kt) s = Where(allowed, p, inf)",
            "bool[B, 1, S, T] allowed",
            weights="""r = Softmax<axis = -1>(s) e = Equal(s, inf) i = Cast<to = 7>(e) a = ReduceMin(i, minus)
                b = Cast<to = 9>(a) w = Where(b, zero, r)""",
        ),
        f"{QKV}, allowed)",
        1.0,
        "Where mask, zeroed weights",
    ),
    "one minus the mask, times low": (
        Graph(
            "f = Cast<to = 1>(allowed) n = Sub(unit, f) m = Mul(n, low) p = MatMul(Q, Kt) s = Add(p, m)",
            "bool[B, 1, 1, T] allowed",
            constants="float unit = {1.0}, float low = {-10000.0}",
        ),
        f"{QKV}, Expand(allowed))",
        1.0,
        "added mask",
    ),
    "one head of Q": (
        Graph(PLAIN, q="float[B, S, 1, 8] q"),
        "Attention(Expand(Transpose(q)), Transpose(k), Transpose(v))",
        0.5,
        "scaled scores",
    ),
    "one head of K alone": (
        Graph(PLAIN, k="float[B, T, 1, 8] k"),
        "Attention(Transpose(q), Expand(Transpose(k)), Transpose(v))",
        0.5,
        "scaled scores",
    ),
    "one K for the batch": (
        Graph(PLAIN, k="float[1, T, 2, 8] k"),
        "Attention(Transpose(q), Expand(Transpose(k)), Transpose(v))",
        0.5,
        "scaled scores",
    ),
    "one K and V head": (
        Graph(PLAIN, k="float[B, T, 1, 8] k", v="float[B, T, 1, 8] v"),
        f"{QKV})",
        0.5,
        "scaled scores",
    ),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_spelling_becomes_attention(name: str, compare: Compare, spell: Spell) -> None:
    graph, expected, scale, spelling = SPELLINGS[name]
    model = graph.model()
    lifted = lift(model)
    assert [site.status for site in lifted.log.sites] == ["lifted"]
    assert lifted.log.sites[0].spelling == ", ".join(filter(None, ["softmax(QK)V", spelling]))
    assert spell(lifted.model) == expected
    (node,) = attentions(lifted.model)
    assert node.attributes.get_float("scale", 0.0) == scale
    assert not {"Softmax", "MatMul", "IsNaN", "Dropout"} & {other.op_type for other in lifted.model.graph}
    compare(model, lifted.model, cases(model), RTOL, ATOL)


# name -> a graph that is an attention for the eye, and the reason why it must stay
MISSES: dict[str, tuple[Graph, str]] = {
    "mask of more queries": (
        Graph("p = MatMul(Q, Kt) s = Add(p, bias)", BIAS, q="float[B, 1, 2, 8] q"),
        "a mask of shape [B,1,S,T] broadcasts the scores ['B', 2, 1, 'T']",
    ),
    "a Reshape of queries into heads": (
        Graph(
            "p = MatMul(Q, Kt) s = Reshape(p, rows)",
            weights="r = Softmax<axis = -1>(s) t = Shape(p) w = Reshape(r, t)",
            constants="int64[3] rows = {0, 2, -1}",
            q="float[B, 1, 2, 8] q",
        ),
        "a Reshape from ['B', 2, 1, 'T'] to ['B', 2, 'T'] mixes queries, keys, heads or batch",
    ),
}


@pytest.mark.parametrize("name", MISSES)
def test_what_only_looks_like_attention_stays(name: str, compare: Compare) -> None:
    graph, reason = MISSES[name]
    model = graph.model()
    lifted = lift(model)
    assert lifted.log.sites == [Site("attention", lifted.log.sites[0].path, "missed", "softmax", reason)]
    assert not attentions(lifted.model)
    (softmax,) = [node for node in lifted.model.graph if node.op_type == "Softmax"]
    assert "graphwright.site" not in softmax.metadata_props
    compare(model, lifted.model, cases(model), RTOL, ATOL)
