"""Attention however batch, heads, queries and keys lie: any rank, merged, split, transposed, swapped, windowed."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import onnx_ir as ir
import pytest

from graphwright.passes import lift

Arrays = dict[str, np.ndarray]
Compare = Callable[[ir.Model, ir.Model, Iterable[Arrays], float, float], None]

# float32, rows of at most 16 keys of 8 numbers each of size 1: the products are summed in another order
RTOL, ATOL = 1e-5, 4e-6
CONSTANTS = """float half = {0.5}, float zero = {0.0}, float lowest = {-3.4e38}, int64[1] m1 = {-1}, int64[1] one = {1},
    int64[1] two = {2}, int64[1] three = {3}, int64[1] four = {4}, int64[1] eight = {8}, int64[1] sixteen = {16},
    int64[1] zeroth = {0}, int64 i0 = {0}, int64 i1 = {1}, int64 i3 = {3}"""


def model(inputs: str, body: str, output: str) -> ir.Model:
    return ir.from_onnx_text(f"""
        <ir_version: 10, opset_import: ["": 23]>
        layouts ({inputs}) => (float[{output}] y) <{CONSTANTS}> {{ {body} }}""")


def cases(graph: ir.Model) -> Iterable[Arrays]:
    random = np.random.default_rng(0)
    for batch, queries, keys in ((1, 1, 1), (2, 5, 3), (3, 7, 4)):
        size = {"B": batch, "S": queries, "T": keys, "P": 2 * batch, "W": 4 * batch}
        feeds: Arrays = {}
        for value in graph.graph.inputs:
            dims = [d if isinstance(d, int) else size[str(d.value)] for d in value.shape or ()]
            array: np.ndarray = random.standard_normal(dims).astype(np.float32)
            if value.dtype == ir.DataType.BOOL:
                array = (array > 0) ^ str(value.name).startswith("forbidden")
                array[..., 0] = not str(value.name).startswith("forbidden")
            feeds[str(value.name)] = array
        yield feeds


QKV4 = "float[B, 2, S, 8] q, float[B, 2, T, 8] k, float[B, 2, T, 8] v"
QKV3 = "float[P, S, 8] q, float[P, T, 8] k, float[P, T, 8] v"
T3, T4 = "Transpose<perm = [0, 2, 1]>", "Transpose<perm = [0, 1, 3, 2]>"

# name -> inputs, body, shape of y; and what the Attention's inputs are in rank
LAYOUTS: dict[str, tuple[str, str, str]] = {
    "rank 3": (QKV3, f"kt = {T3}(k) s = MatMul(q, kt) w = Softmax(s) y = MatMul(w, v)", "P, S, 8"),
    "rank 3 with a mask of its own": (
        f"{QKV3}, float[P, 1, T] bias",
        f"kt = {T3}(k) p = MatMul(q, kt) s = Add(p, bias) w = Softmax(s) y = MatMul(w, v)",
        "P, S, 8",
    ),
    "rank 2": (
        "float[S, 8] q, float[T, 8] k, float[T, 8] v, bool[S, T] allowed",
        "kt = Transpose<perm = [1, 0]>(k) p = MatMul(q, kt) s = Where(allowed, p, lowest) w = Softmax(s)"
        " y = MatMul(w, v)",
        "S, 8",
    ),
    "rank 5, heads last of the lead": (
        "float[B, 3, 2, S, 8] q, float[B, 3, 2, T, 8] k, float[B, 3, 2, T, 8] v, float[2, S, T] bias",
        "kt = Transpose<perm = [0, 1, 2, 4, 3]>(k) p = MatMul(q, kt) s = Add(p, bias) w = Softmax(s) y = MatMul(w, v)",
        "B, 3, 2, S, 8",
    ),
    "batch and heads merged for the products alone": (
        f"{QKV4}, bool[B, 1, 1, T] allowed",
        f"""n = Shape<start = 0, end = 1>(q) l = Shape<start = 2, end = 3>(q) t = Shape<start = 2, end = 3>(k)
            qs = Concat<axis = 0>(m1, l, eight) ks = Concat<axis = 0>(m1, t, eight)
            q3 = Reshape(q, qs) k3 = Reshape(k, ks) v3 = Reshape(v, ks) kt = {T3}(k3) p = MatMul(q3, kt)
            full = Concat<axis = 0>(n, two, l, t) p4 = Reshape(p, full) s = Where(allowed, p4, lowest)
            w = Softmax(s) flat = Concat<axis = 0>(m1, l, t) w3 = Reshape(w, flat) y = MatMul(w3, v3)""",
        "P, S, 8",
    ),
    "alibi in a mask of rank 3": (
        f"{QKV4}, float[B, 2, 1, T] slopes",
        f"""n = Shape<start = 0, end = 1>(q) l = Shape<start = 2, end = 3>(q) t = Shape<start = 2, end = 3>(k)
            qs = Concat<axis = 0>(m1, l, eight) ks = Concat<axis = 0>(m1, t, eight)
            q3 = Reshape(q, qs) k3 = Reshape(k, ks) kt = {T3}(k3) p = MatMul(q3, kt)
            flat = Concat<axis = 0>(m1, one, t) alibi = Reshape(slopes, flat) a = Add(alibi, p)
            full = Concat<axis = 0>(n, two, l, t) s = Reshape(a, full) w = Softmax(s) y = MatMul(w, v)""",
        "B, 2, S, 8",
    ),
    "Kt Q and V Wt": (  # channels first, as in convolutional attention
        "float[B, 8, S] q, float[B, 8, T] k, float[B, 8, T] v",
        f"qt = {T3}(q) s = MatMul(qt, k) w = Softmax(s) wt = {T3}(w) y = MatMul(v, wt)",
        "B, 8, S",
    ),
    "K Qt, softmax over the rows": (
        "float[B, S, 8] q, float[B, T, 8] k, float[B, 8, T] v",
        f"qt = {T3}(q) s = MatMul(k, qt) w = Softmax<axis = 1>(s) y = MatMul(v, w)",
        "B, 8, S",
    ),
    "lengths in front (i j b n)": (
        "float[S, B, 2, 8] q, float[T, B, 2, 8] k, float[T, B, 2, 8] v, float[S, T, 1, 1] bias",
        """p = Einsum<equation = "ibnd,jbnd->ijbn">(q, k) a = Add(p, bias) s = Mul(a, half) w = Softmax<axis = 1>(s)
           y = Einsum<equation = "ijbn,jbnd->ibnd">(w, v)""",
        "S, B, 2, 8",
    ),
    "Einsum, heads behind the length": (
        "float[B, S, 2, 8] q, float[B, T, 2, 8] k, float[B, T, 2, 8] v, bool[B, 1, 1, T] allowed",
        """p = Einsum<equation = "bihd,bjhd->bhij">(q, k) s = Where(allowed, p, lowest) w = Softmax(s)
           y = Einsum<equation = "bhij,bjhd->bihd">(w, v)""",
        "B, S, 2, 8",
    ),
    "heads of Q in groups": (
        "float[B, S, 2, 3, 8] q, float[B, T, 2, 8] k, float[B, T, 2, 8] v, bool[B, 1, 1, S, T] allowed",
        """p = Einsum<equation = "bighd,bjgd->bghij">(q, k) s = Where(allowed, p, lowest) w = Softmax(s)
           y = Einsum<equation = "bghij,bjgd->bighd">(w, v)""",
        "B, S, 2, 3, 8",
    ),
    "one head for all by Einsum": (
        "float[B, S, 2, 8] q, float[B, T, 8] k, float[B, T, 8] v, bool[S, T] allowed",
        """p = Einsum<equation = "bihd,bjd->bhij">(q, k) s = Where(allowed, p, lowest) w = Softmax(s)
           y = Einsum<equation = "bhij,bjd->bihd">(w, v)""",
        "B, S, 2, 8",
    ),
    "shifted windows": (  # [B*4, 2, 4, 4] seen as [B, 4, 2, 4, 4] for a mask of each window
        "float[W, 2, 4, 8] q, float[W, 2, 4, 8] k, float[W, 2, 4, 8] v, float[2, 4, 4] bias, float[4, 4, 4] shift",
        f"""kt = {T4}(k) p = MatMul(q, kt) a = Add(p, bias) five = Concat<axis = 0>(m1, four, two, four, four)
            a5 = Reshape(a, five) m1_ = Unsqueeze(shift, one) m2_ = Unsqueeze(m1_, zeroth) b5 = Add(a5, m2_)
            back = Concat<axis = 0>(m1, two, four, four) s = Reshape(b5, back) w = Softmax(s) y = MatMul(w, v)""",
        "W, 2, 4, 8",
    ),
    "windows of a batch that no operand tells": (
        "float[B, 16, 2, 8] x, float[4, 1, 4, 4] shift",
        """cut = Concat<axis = 0>(m1, four, two, eight) w4 = Reshape(x, cut) q = Transpose<perm = [0, 2, 1, 3]>(w4)
            kt = Transpose<perm = [0, 2, 3, 1]>(w4) p = MatMul(q, kt)
            five = Concat<axis = 0>(m1, four, two, four, four) a5 = Reshape(p, five) b5 = Add(a5, shift)
            back = Concat<axis = 0>(m1, two, four, four) s = Reshape(b5, back) w = Softmax(s) y = MatMul(w, q)""",
        "W, 2, 4, 8",
    ),
    "two boolean masks, one of merged batch and heads": (
        f"{QKV4}, bool[B, 1, 1, T] allowed, bool[1, S, T] forbidden",
        f"""n = Shape<start = 0, end = 1>(q) l = Shape<start = 2, end = 3>(q) t = Shape<start = 2, end = 3>(k)
            qs = Concat<axis = 0>(m1, l, eight) ks = Concat<axis = 0>(m1, t, eight)
            q3 = Reshape(q, qs) k3 = Reshape(k, ks) v3 = Reshape(v, ks) kt = {T3}(k3) p = MatMul(q3, kt)
            flat = Concat<axis = 0>(m1, one, t) a = Where(allowed, zero, lowest)
            each = Concat<axis = 0>(n, two, one, t) a4 = Expand(a, each)
            a3 = Reshape(a4, flat) f = Where(forbidden, lowest, zero) m = Add(f, a3) s = Add(p, m) w = Softmax(s)
            y = MatMul(w, v3)""",
        "P, S, 8",
    ),
    "a mask for rows and columns of an image": (  # queries and keys seen as 4 x 4 grids
        "float[B, 2, 16, 8] q, float[B, 2, 16, 8] k, float[B, 2, 16, 8] v, float[B, 2, 4, 4, 4, 1] rows,"
        " float[B, 2, 4, 4, 1, 4] columns",
        f"""kt = {T4}(k) p = MatMul(q, kt) n = Shape<start = 0, end = 1>(q)
            grid = Concat<axis = 0>(n, two, four, four, four, four) p6 = Reshape(p, grid)
            a = Add(p6, rows) b = Add(a, columns) back = Concat<axis = 0>(n, two, sixteen, sixteen)
            s = Reshape(b, back) w = Softmax(s) y = MatMul(w, v)""",
        "B, 2, 16, 8",
    ),
    "softmax written out": (
        QKV4,
        f"""kt = {T4}(k) p = MatMul(q, kt) top = ReduceMax(p, m1) d = Sub(p, top) e = Exp(d) sum = ReduceSum(e, m1)
            w = Div(e, sum) y = MatMul(w, v)""",
        "B, 2, S, 8",
    ),
    "softmax of a flattened tensor": (
        QKV4,
        f"""kt = {T4}(k) p = MatMul(q, kt) shape = Shape(p) flat = Flatten<axis = 3>(p) r = Softmax<axis = -1>(flat)
            w = Reshape(r, shape) y = MatMul(w, v)""",
        "B, 2, S, 8",
    ),
    "V of another size": (
        "float[B, 2, S, 8] q, float[B, 2, T, 8] k, float[B, 2, T, 3] v",
        f"kt = {T4}(k) s = MatMul(q, kt) w = Softmax(s) y = MatMul(w, v)",
        "B, 2, S, 3",
    ),
    "a cache in front of K and V": (
        f"{QKV4}, float[B, 2, P, 8] pk, float[B, 2, P, 8] pv",
        f"""ks = Concat<axis = 2>(pk, k) vs = Concat<axis = 2>(pv, v) kt = {T4}(ks) s = MatMul(q, kt) w = Softmax(s)
            y = MatMul(w, vs)""",
        "B, 2, S, 8",
    ),
    "one Q for the batch": (
        "float[1, 2, S, 8] q, float[B, 2, T, 8] k, float[B, 2, T, 8] v",
        f"kt = {T4}(k) s = MatMul(q, kt) w = Softmax(s) y = MatMul(w, v)",
        "B, 2, S, 8",
    ),
    "one K for all queries' batch, of rank 2": (
        "float[B, S, 8] q, float[T, 8] k, float[T, 8] v",
        "kt = Transpose<perm = [1, 0]>(k) s = MatMul(q, kt) w = Softmax(s) y = MatMul(w, v)",
        "B, S, 8",
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_becomes_one_attention(name: str, compare: Compare) -> None:
    graph = model(*LAYOUTS[name])
    lifted = lift(graph)
    assert [(site.kind, site.status) for site in lifted.log.sites] == [("attention", "lifted")], lifted.log.sites
    ops = [node.op_type for node in lifted.model.graph]
    assert ops.count("Attention") == 1
    assert not {"Softmax", "MatMul", "Einsum", "Exp", "CustomAttention"} & set(ops)
    compare(graph, lifted.model, cases(graph), RTOL, ATOL)


REPEATED = """
    u = Unsqueeze(k, {axis}) e = Expand(u, times) K = Reshape(e, heads)
    uv = Unsqueeze(v, {axis}) ev = Expand(uv, times) V = Reshape(ev, heads)
    kt = Transpose<perm = [0, 1, 3, 2]>(K) s = MatMul(q, kt) w = Softmax(s) y = MatMul(w, V)"""
GROUPED = "float[2, 4, S, 8] q, float[2, 2, 5, 8] k, float[2, 2, 5, 8] v"


def repeated(axis: str, times: str) -> ir.Model:
    constants = f"int64[5] times = {{{times}}}, int64[4] heads = {{2, 4, 5, 8}}, {CONSTANTS}"
    return ir.from_onnx_text(f"""
        <ir_version: 10, opset_import: ["": 23]>
        grouped ({GROUPED}) => (float[2, 4, S, 8] y) <{constants}> {{ {REPEATED.format(axis=axis)} }}""")


def test_repeated_heads_of_k_and_v_are_not_repeated(compare: Compare) -> None:
    graph = repeated("two", "2, 2, 2, 5, 8")
    lifted = lift(graph)
    (node,) = [node for node in lifted.model.graph if node.op_type == "Attention"]
    assert list(node.inputs[:3]) == list(lifted.model.graph.inputs)
    compare(graph, lifted.model, cases(graph), RTOL, ATOL)


def test_heads_that_are_tiled_in_another_order_stay_repeated(compare: Compare) -> None:
    graph = repeated("one", "2, 2, 2, 5, 8")  # heads 0 1 0 1: Attention would read them as 0 0 1 1
    lifted = lift(graph)
    (node,) = [node for node in lifted.model.graph if node.op_type == "Attention"]
    assert node.inputs[1] is not None
    assert node.inputs[1].producer() is not None
    compare(graph, lifted.model, cases(graph), RTOL, ATOL)


FEW = {"heads of Q in groups": (6, 2), "one head for all by Einsum": (2, 1)}


@pytest.mark.parametrize("name", FEW)
def test_heads_of_k_and_v_are_not_repeated(name: str) -> None:
    """Numbers of the heads of Q and of K and V."""
    (node,) = [node for node in lift(model(*LAYOUTS[name])).model.graph if node.op_type == "Attention"]
    assert tuple(value.shape[1] for value in node.inputs[:2] if value is not None and value.shape) == FEW[name]


RANGE = """l = Shape<start = 2, end = 3>(q) n = Squeeze(l) r = Range(i0, n, i1)
    c = Unsqueeze(r, one) x = Unsqueeze(r, zeroth)"""
SELF = "float[B, 2, S, 8] q, float[B, 2, S, 8] k, float[B, 2, S, 8] v"
ATTEND = f"kt = {T4}(k) p = MatMul(q, kt) s = Where(allowed, p, lowest) w = Softmax(s) y = MatMul(w, v)"

# name -> how the mask is made of sizes, and what becomes of it: is_causal, and whether there is a mask
SIZED: dict[str, tuple[str, int, bool]] = {
    "causal": (f"{RANGE} allowed = LessOrEqual(x, c)", 1, False),
    "causal by Trilu": (
        "l = Shape<start = 2, end = 3>(q) sq = Concat<axis = 0>(l, l) o = ConstantOfShape<value = int64[1] {1}>(sq)"
        " t = Trilu<upper = 0>(o) allowed = Cast<to = 9>(t)",
        1,
        False,
    ),
    "every key": (f"{RANGE} low = LessOrEqual(x, c) high = Greater(x, c) allowed = Or(low, high)", 0, False),
    "a window of three": (
        f"{RANGE} low = LessOrEqual(x, c) d = Sub(c, x) near = Less(d, i3) allowed = And(low, near)",
        0,
        True,
    ),
    "a wide window": (
        f"wide = Constant<value_int = 100>() {RANGE} low = LessOrEqual(x, c) d = Sub(c, x) near = Less(d, wide)"
        " allowed = And(low, near)",
        0,
        True,
    ),
    "anticausal": (f"{RANGE} allowed = GreaterOrEqual(x, c)", 0, True),
    "one key too many": (f"{RANGE} c1 = Add(c, i1) allowed = LessOrEqual(x, c1)", 0, True),
}


@pytest.mark.parametrize("name", SIZED)
def test_a_mask_of_sizes_alone_is_told_for_what_it_is(name: str, compare: Compare) -> None:
    mask, causal, kept = SIZED[name]
    graph = model(SELF, f"{mask} {ATTEND}", "B, 2, S, 8")
    lifted = lift(graph)
    (node,) = [node for node in lifted.model.graph if node.op_type == "Attention"]
    assert node.attributes.get_int("is_causal", 0) == causal
    assert (len(node.inputs) > 3 and node.inputs[3] is not None) == kept
    compare(graph, lifted.model, cases(graph), RTOL, ATOL)


@pytest.mark.parametrize("name", ["causal", "every key", "a window of three"])
def test_a_ready_attention_needs_no_mask_for_what_sizes_say(name: str, compare: Compare) -> None:
    mask, causal, kept = SIZED[name]
    graph = model(SELF, f"{mask} y = Attention<scale = 0.5>(q, k, v, allowed)", "B, 2, S, 8")
    lifted = lift(graph)
    (node,) = [node for node in lifted.model.graph if node.op_type == "Attention"]
    assert node.attributes.get_int("is_causal", 0) == causal
    assert (len(node.inputs) > 3 and node.inputs[3] is not None) == kept
    compare(graph, lifted.model, cases(graph), RTOL, ATOL)


def test_weights_for_two_v_become_two_attentions(compare: Compare) -> None:
    graph = model(
        f"{QKV4}, float[B, 2, T, 8] u",
        f"kt = {T4}(k) s = MatMul(q, kt) w = Softmax(s) a = MatMul(w, v) b = MatMul(w, u) y = Sub(a, b)",
        "B, 2, S, 8",
    )
    lifted = lift(graph)
    assert [node.op_type for node in lifted.model.graph].count("Attention") == 2
    assert "Softmax" not in {node.op_type for node in lifted.model.graph}
    compare(graph, lifted.model, cases(graph), RTOL, 2 * ATOL)  # a difference of two


LINEAR = {
    "softmax as feature maps": f"""qs = Softmax<axis = -1>(q) kt = {T4}(k) ks = Softmax<axis = -1>(kt)
        c = MatMul(ks, v) y = MatMul(qs, c)""",
    "elu, and a scale between": f"""qe = Elu(q) ke = Elu(k) kt = {T4}(ke) c = MatMul(kt, v) d = Mul(c, half)
        y = MatMul(qe, d)""",
}


@pytest.mark.parametrize("name", LINEAR)
def test_linear_attention_becomes_a_function(name: str, compare: Compare) -> None:
    graph = model(QKV4, LINEAR[name], "B, 2, S, 8")
    lifted = lift(graph)
    assert [(s.kind, s.status, s.spelling) for s in lifted.log.sites] == [("attention", "lifted", "Q (Kt V)")]
    assert [node.op_type for node in lifted.model.graph][-1] == "LinearAttention"
    assert "Attention" not in {node.op_type for node in lifted.model.graph}
    compare(graph, lifted.model, cases(graph), RTOL, ATOL)


def test_softmax_without_products_is_no_site() -> None:
    router = model(
        "float[B, S, 8] x",
        "g = Softmax<axis = -1>(x) y = Mul(g, x)",
        "B, S, 8",
    )
    assert not lift(router).log.sites


HALVES = f"""
    q16 = Cast<to = 10>(q) k16 = Cast<to = 10>(k) v16 = Cast<to = 10>(v) kt = {T4}(k16) p = MatMul(q16, kt)
    wide = Cast<to = 1>(p) r = Softmax(wide) w = Cast<to = 10>(r) o = MatMul(w, v16) y = Cast<to = 1>(o)"""


def test_softmax_in_float32_of_half_products_is_kept_so() -> None:
    lifted = lift(model(QKV4, HALVES, "B, 2, S, 8"))
    (node,) = [node for node in lifted.model.graph if node.op_type == "Attention"]
    assert node.attributes.get_int("softmax_precision", 0) == ir.DataType.FLOAT
    assert node.outputs[0].dtype == ir.DataType.FLOAT16
