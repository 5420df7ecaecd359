"""LayerNorm in primitives becomes one `LayerNormalization`; what normalises otherwise stays, and the log says why."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable

import numpy as np
import onnx_ir as ir
import pytest

from graphwright.passes import Site, lift

Arrays = dict[str, np.ndarray]
Compare = Callable[[ir.Model, ir.Model, Iterable[Arrays], float, float], None]
Spell = Callable[[ir.Model], str]

# float32, rows of 8 numbers of deviation 1 around 2, scales of 3: sums in another order, one root and one quotient
RTOL, ATOL = 1e-5, 5e-6
SIZES = ((1, 1), (1, 7), (3, 5))
CONSTANTS = """
    float[8] w = {1.5, -2, 0.5, 3, 1, -1, 2, 0.25}, float[8] b = {0.5, -1, 2, 1, 0.25, -3, 4, 1},
    float[1, 1, 8] wide = {2, 1, -0.5, 3, 1, 1.5, -2, 0.75}, float[8] positive = {1, 2, 3, 4, 5, 6, 7, 8},
    float eps = {1e-3}, float[1] eps1 = {1e-3}, float[1, 1, 1, 1] eps4 = {1e-3},
    double eps64 = {1e-3}, float eight = {8}, float eighth = {0.125}, float zero = {0},
    float one = {1.0}, float two = {2.0},
    float half = {0.5}, float less = {-0.5}, float third_less = {-0.333}, float[1, 1] gain = {2.0},
    int64[1] last = {-1}, int64[1] third = {2}, int64[1] mid = {1}, int64[2] both = {1, 2}
"""
MEAN = "mean = ReduceMean(x, last) d = Sub(x, mean)"
VARIANCE = "dd = Mul(d, d) var = ReduceMean(dd, last)"
ROOT = "shifted = Add(var, eps) root = Sqrt(shifted)"
HEAD = f"{MEAN} {VARIANCE} {ROOT}"
NORM = f"{HEAD} n = Div(d, root)"
AFFINE = "s = Mul(n, w) y = Add(s, b)"


def make(body: str, inputs: str = "", outputs: str = "", x: str = "float[B, S, 8]") -> ir.Model:
    return ir.from_onnx_text(f"""
        <ir_version: 10, opset_import: ["": 23]>
        norm ({x} x{inputs}) => ({x} y{outputs}) <{CONSTANTS}> {{ {body} }}""")


def cases(model: ir.Model) -> list[Arrays]:
    random, found = np.random.default_rng(0), []
    for batch, length in SIZES:
        sizes = {"B": batch, "S": length, "D": 8}
        shapes = {
            str(value.name): [dim if isinstance(dim, int) else sizes[str(dim.value)] for dim in value.shape or ()]
            for value in model.graph.inputs
        }
        found.append({name: random.normal(2, 1, shape).astype(np.float32) for name, shape in shapes.items()})
    return found


SPELLINGS = {
    "Mul, Sqrt, Div": (f"{NORM} {AFFINE}", "LayerNormalization(x, w, b)"),
    "Pow for the square": (
        f"{MEAN} dd = Pow(d, two) var = ReduceMean(dd, last) {ROOT} n = Div(d, root) {AFFINE}",
        "LayerNormalization(x, w, b)",
    ),
    "Reciprocal": (f"{HEAD} r = Reciprocal(root) n = Mul(r, d) {AFFINE}", "LayerNormalization(x, w, b)"),
    "one by the root": (f"{HEAD} r = Div(one, root) n = Mul(d, r) {AFFINE}", "LayerNormalization(x, w, b)"),
    "Pow for the root": (
        f"{MEAN} {VARIANCE} e = Add(eps1, var) root = Pow(e, half) n = Div(d, root) {AFFINE}",
        "LayerNormalization(x, w, b)",
    ),
    "Pow for the reciprocal": (
        f"{MEAN} {VARIANCE} e = Add(var, eps) r = Pow(e, less) n = Mul(d, r) {AFFINE}",
        "LayerNormalization(x, w, b)",
    ),
    "operands swapped": (f"{NORM} s = Mul(w, n) y = Add(b, s)", "LayerNormalization(x, w, b)"),
    "scale first": (f"{HEAD} s = Mul(w, d) n = Div(s, root) y = Add(n, b)", "LayerNormalization(x, w, b)"),
    "scale before the reciprocal": (
        f"{HEAD} s = Mul(d, w) r = Reciprocal(root) n = Mul(s, r) y = Add(n, b)",
        "LayerNormalization(x, w, b)",
    ),
    "deviation twice, axis 2": (
        f"{HEAD} mean2 = ReduceMean(x, third) d2 = Sub(x, mean2) n = Div(d2, root) {AFFINE}",
        "LayerNormalization(x, w, b)",
    ),
    "variance without its axis, Unsqueeze": (
        f"""{MEAN} dd = Mul(d, d) v = ReduceMean <keepdims = 0> (dd, last) var = Unsqueeze(v, last) {ROOT}
            n = Div(d, root) {AFFINE}""",
        "LayerNormalization(x, w, b)",
    ),
    "variance without its axis, Reshape": (
        f"""{MEAN} dd = Mul(d, d) v = ReduceMean <keepdims = 0> (dd, last) vs = Shape(v)
            back = Concat <axis = 0> (vs, mid) var = Reshape(v, back) {ROOT} n = Div(d, root) {AFFINE}""",
        "LayerNormalization(x, w, b)",
    ),
    "constants with leading dims": (f"{NORM} s = Mul(n, wide) y = Add(s, b)", "LayerNormalization(x, wide.vector, b)"),
    "scale that is an input": (f"{NORM} s = Mul(n, scale) y = Add(s, b)", "LayerNormalization(x, scale, b)"),
    "no scale": (f"{NORM} y = Add(n, b)", "LayerNormalization(x, ones.8.float, b)"),
    "no bias": (f"{NORM} y = Mul(n, w)", "LayerNormalization(x, w)"),
    "neither": (f"{HEAD} y = Div(d, root)", "LayerNormalization(x, ones.8.float)"),
    "sums by the number of elements": (
        f"""sum = ReduceSum(x, last) mean = Div(sum, eight) d = Sub(x, mean) dd = Mul(d, d) total = ReduceSum(dd, last)
            var = Mul(eighth, total) {ROOT} n = Div(d, root) {AFFINE}""",
        "LayerNormalization(x, w, b)",
    ),
    "sum of squares in one op": (
        f"{MEAN} total = ReduceSumSquare(d, last) var = Div(total, eight) {ROOT} n = Div(d, root) {AFFINE}",
        "LayerNormalization(x, w, b)",
    ),
    "mean without its axis": (
        f"m = ReduceMean <keepdims = 0> (x, last) mean = Unsqueeze(m, last) d = Sub(x, mean) {VARIANCE} {ROOT} "
        f"n = Div(d, root) {AFFINE}",
        "LayerNormalization(x, w, b)",
    ),
    "mean of squares less square of mean": (
        f"{MEAN} xx = Mul(x, x) m2 = ReduceMean(xx, last) mm = Mul(mean, mean) var = Sub(m2, mm) {ROOT} "
        f"n = Div(d, root) {AFFINE}",
        "LayerNormalization(x, w, b)",
    ),
    "the same, clamped": (
        f"{MEAN} xx = Pow(x, two) m2 = ReduceMean(xx, last) mm = Pow(mean, two) v = Sub(m2, mm) var = Max(zero, v) "
        f"{ROOT} n = Div(d, root) {AFFINE}",
        "LayerNormalization(x, w, b)",
    ),
    "scale on the root": (
        f"{HEAD} r = Reciprocal(root) rw = Mul(r, w) n = Mul(d, rw) y = Add(n, b)",
        "LayerNormalization(x, w, b)",
    ),
    "scale and bias before the mean is taken off": (
        f"{HEAD} r = Reciprocal(root) rw = Mul(r, w) xs = Mul(x, rw) ms = Mul(mean, rw) off = Sub(b, ms) "
        "y = Add(xs, off)",
        "LayerNormalization(x, w, b)",
    ),
    "the same without a scale": (
        f"{HEAD} r = Reciprocal(root) xs = Mul(r, x) ms = Mul(r, mean) off = Sub(b, ms) y = Add(off, xs)",
        "LayerNormalization(x, ones.8.float, b)",
    ),
    "scale and shift of a sample": (
        f"{NORM} s = Mul(n, modulation) y = Add(s, modulation)",
        "Add(Mul(LayerNormalization(x, ones.8.float), modulation), modulation)",
    ),
    "residual behind the norm": (f"{NORM} s = Mul(n, w) y = Add(s, x)", "Add(LayerNormalization(x, w), x)"),
    "scale of one element": (
        f"{NORM} s = Mul(n, gain) y = Add(s, b)",
        "Add(Mul(LayerNormalization(x, ones.8.float), 2), b)",
    ),
    "norm read twice": (
        f"{NORM} s = Mul(n, w) y = Add(s, n)",
        "Add(Mul(LayerNormalization(x, ones.8.float), w), LayerNormalization(x, ones.8.float))",
    ),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_spelling_becomes_layer_normalization(name: str, compare: Compare, spell: Spell) -> None:
    body, expected = SPELLINGS[name]
    inputs = {"scale": ", float[8] scale", "modulation": ", float[B, 1, 8] modulation"}
    model = make(body, "".join(text for word, text in inputs.items() if word in expected))
    lifted = lift(model)
    assert [(site.kind, site.status, site.spelling) for site in lifted.log.sites] == [
        ("layer_norm", "lifted", "primitives")
    ]
    assert spell(lifted.model) == expected
    (norm,) = [node for node in lifted.model.graph if node.op_type == "LayerNormalization"]
    assert norm.attributes.get_float("epsilon", 0.0) == pytest.approx(1e-3, rel=1e-7)
    assert norm.attributes.get_int("axis", 0) == -1
    compare(model, lifted.model, cases(model), RTOL, ATOL)


def test_a_ready_norm_is_logged_and_its_residual_stays_behind_it(compare: Compare, spell: Spell) -> None:
    model = make("n = LayerNormalization <axis = -1> (x, w) y = Add(n, x)")
    lifted = lift(model)
    assert [site.spelling for site in lifted.log.sites] == ["LayerNormalization"]
    assert spell(lifted.model) == "Add(LayerNormalization(x, w), x)"
    compare(model, lifted.model, cases(model), 0, 0)  # the same ops in the same order


MISSES = {
    "mean over another axis": (
        f"mean = ReduceMean(x, mid) d = Sub(x, mean) {VARIANCE} {ROOT} y = Div(d, root)",
        "a mean is over axes [1], not over the last ones",
    ),
    "variance over another axis": (
        f"{MEAN} dd = Mul(d, d) var = ReduceMean(dd, mid) {ROOT} y = Div(d, root)",
        "a mean is over axes [1], not over the last ones",
    ),
    "over all axes": (
        f"mean = ReduceMean(x) d = Sub(x, mean) dd = Mul(d, d) var = ReduceMean(dd) {ROOT} y = Div(d, root)",
        "the normalised axes have the sizes ['B', 'S', 8]: no numbers",
    ),
    "unbiased": (
        f"{MEAN} dd = Mul(d, d) v = ReduceMean(dd, last) var = Mul(v, two) {ROOT} y = Div(d, root)",
        "Mul stands where epsilon should be",
    ),
    "epsilon behind the root": (
        f"{MEAN} {VARIANCE} r = Sqrt(var) root = Add(r, eps) y = Div(d, root)",
        "epsilon is outside the root, by Add: the standard norms have it inside",
    ),
    "no root": (f"{MEAN} {VARIANCE} e = Add(var, eps) y = Div(d, e)", "Div stands where the root should be"),
    "cube root": (
        f"{MEAN} {VARIANCE} e = Add(var, eps) root = Pow(e, third_less) y = Mul(d, root)",
        "the variance is raised to the power of -0.3330000042915344",
    ),
    "x by the root": (f"{HEAD} y = Div(x, root)", "Div does not divide the deviation by its root"),
    "root by the deviation": (f"{HEAD} y = Div(root, d)", "Div does not divide the deviation by its root"),
    "epsilon of many elements": (
        f"{MEAN} {VARIANCE} shifted = Add(var, positive) root = Sqrt(shifted) y = Div(d, root)",
        "what is added to the variance is no constant of one element",
    ),
    "variance is read twice": (
        f"{HEAD} n = Div(d, root) y = Mul(n, var)",
        "ReduceMean before epsilon is read more than once, or is an output of the graph",
    ),
    "deviation gated": (
        f"{HEAD} s = Mul(d, x) y = Div(s, root)",
        "what the deviation is multiplied by is no vector of the normalised size",
    ),
    "epsilon as a bound of the root": (
        f"{MEAN} {VARIANCE} r = Sqrt(var) root = Max(r, eps) y = Div(d, root)",
        "epsilon is outside the root, by Max: the standard norms have it inside",
    ),
    "mean scaled by something else": (
        f"{HEAD} r = Reciprocal(root) xs = Mul(x, r) ms = Mul(mean, r) off = Sub(ms, b) y = Add(xs, off)",
        "the scaled mean is not taken from a bias of the normalised size",
    ),
    "axis lost": (
        f"""{MEAN} dd = Mul(d, d) var = ReduceMean <keepdims = 0> (dd, last)
            {ROOT} u = Unsqueeze(root, mid) y = Div(d, u)""",
        "the variance drops its axis and does not get it back",
    ),
    "axis given back elsewhere": (
        f"""{MEAN} dd = Mul(d, d) v = ReduceMean <keepdims = 0> (dd, last) var = Unsqueeze(v, mid) {ROOT}
            n = Div(d, root) y = Identity(n)""",
        "the variance of shape [B,8] becomes [B,1,8]",
    ),
}


@pytest.mark.parametrize("name", MISSES)
def test_what_normalises_otherwise_stays(name: str, compare: Compare) -> None:
    body, reason = MISSES[name]
    model = make(body, x="float[B, 8, 8]" if "mid" in body else "float[B, S, 8]")
    lifted = lift(model)
    assert lifted.log.sites == [Site("layer_norm", lifted.log.sites[0].path, "missed", "primitives", reason)]
    assert not [node for node in lifted.model.graph if node.op_type == "LayerNormalization"]
    compare(model, lifted.model, cases(model), 0, 0)  # nothing was rewritten


@pytest.mark.parametrize(
    ("x", "reason"),
    [
        ("float[B, S, D]", "the normalised axes have the sizes ['D']: no numbers"),
        ("double[B, S, 8]", "it computes in DOUBLE"),
    ],
)
def test_a_norm_of_another_size_or_type_stays(x: str, reason: str) -> None:
    body = HEAD.replace("eps", "eps64") if "double" in x else HEAD
    model = make(f"{body} y = Div(d, root)", x=x)
    assert [site.reason for site in lift(model).log.sites] == [reason]


def test_a_norm_that_adds_a_dim_stays() -> None:
    body = f"{MEAN} {VARIANCE} shifted = Add(var, eps4) root = Sqrt(shifted) y = Div(d, root)"
    model = make(body, x="float[B, S, 8]")
    model.graph.outputs[0].shape = None
    assert [site.reason for site in lift(model).log.sites] == ["it makes rank 4 of rank 3"]


def test_a_row_on_its_own_is_no_bias_of_itself(compare: Compare, spell: Spell) -> None:
    model = make(f"{NORM} y = Add(n, n)", x="float[8]")
    lifted = lift(model)
    norm = "LayerNormalization(x, ones.8.float)"
    assert spell(lifted.model) == f"Add({norm}, {norm})"
    compare(model, lifted.model, cases(model), RTOL, 2 * ATOL)


def test_a_mean_that_drops_its_axis_is_taken_from_other_rows(compare: Compare, spell: Spell) -> None:
    model = make(
        f"{HEAD} y = Div(d, root)".replace("mean = ReduceMean(", "mean = ReduceMean <keepdims = 0> ("), x="float[8, 8]"
    )
    lifted = lift(model)
    # what is left is the RMSNorm of the difference
    assert spell(lifted.model) == "RMSNormalization(Sub(x, ReduceMean(x, -1)), ones.8.float)"
    compare(model, lifted.model, cases(model), RTOL, ATOL)


@pytest.mark.parametrize(
    "body",
    [
        "dd = Mul(x, x) var = ReduceMean(dd, last) shifted = Add(var, eps) root = Sqrt(shifted) y = Sub(x, root)",
        "mean = ReduceMean <keepdims = 0> (x, last) m = Unsqueeze(mean, last) y = Sub(x, m)",
        "mean = ReduceMean(x, last) y = Sub(x, mean)",
    ],
)
def test_other_means_are_no_sites(body: str, compare: Compare) -> None:
    model = make(body)
    lifted = lift(model)
    assert lifted.log.sites == []
    compare(model, lifted.model, cases(model), 0, 0)


def test_several_axes_are_normalised_together(compare: Compare, spell: Spell) -> None:
    body = NORM.replace("last)", "both)") + " s = Mul(n, wide) y = Add(s, square)"
    wide = "float[1, 2, 8] wide = {1, 2, 3, 4, 5, 6, 7, 8, 8, 7, 6, 5, 4, 3, 2, 1}, float[2, 8] square"
    numbers = ", ".join(str(number) for number in range(16))
    text = f"""<ir_version: 10, opset_import: ["": 23]> norm (float[B, 2, 8] x) => (float[B, 2, 8] y)
        <{wide} = {{{numbers}}}, float eps = {{1e-3}}, int64[2] both = {{1, 2}}> {{ {body} }}"""
    model = ir.from_onnx_text(text)
    lifted = lift(model)
    assert spell(lifted.model) == "LayerNormalization(x, wide.vector, square)"
    assert lifted.model.graph.node(0).attributes.get_int("axis", 0) == -2
    compare(model, lifted.model, cases(model), RTOL, 3 * ATOL)  # scales of 8


# x in float16, statistics in float32; ONNX Runtime rounds the result once, the spelling up to three times: 2**-11 each
HALF_RTOL, HALF_ATOL = 2e-3, 4e-3
HALF = f"xf = Cast <to = 1> (x) {NORM.replace('(x,', '(xf,')}"
HALVES = {
    "cast back before the scale": (
        f"{HALF} h = Cast <to = 10> (n) s = Mul(h, hw) y = Add(s, hb)",
        "LayerNormalization(x, hw, hb)",
    ),
    "cast back behind an affine that float16 holds": (
        f"{HALF} s = Mul(n, w) o = Add(s, b) y = Cast <to = 10> (o)",
        "LayerNormalization(x, w.float16, b.float16)",
    ),
    "cast back behind one that it does not hold": (
        f"{HALF} s = Mul(n, fine) o = Add(s, b) y = Cast <to = 10> (o)",
        "Cast(LayerNormalization(Cast(x), fine, b))",
    ),
    "no cast of x": (f"{NORM.replace('eps', 'heps')} s = Mul(n, hw) y = Add(s, hb)", "LayerNormalization(x, hw, hb)"),
}


@pytest.mark.parametrize("name", HALVES)
def test_casts_around_half_precision(name: str, compare: Compare, spell: Spell) -> None:
    body, expected = HALVES[name]
    # the text form knows no numbers of float16
    halves = "hw = Cast <to = 10> (w) hb = Cast <to = 10> (b) heps = Cast <to = 10> (eps)"
    fine = "float[8] fine = {1.0001, 2, 3, 4, 5, 6, 7, 8}"
    model = ir.from_onnx_text(f"""<ir_version: 10, opset_import: ["": 23]>
        norm (float16[B, S, 8] x) => (float16[B, S, 8] y) <{CONSTANTS}, {fine}> {{ {halves} {body} }}""")
    lifted = lift(model)
    assert spell(lifted.model) == expected
    halved = [{"x": case["x"].astype(np.float16)} for case in cases(model)]
    compare(model, lifted.model, halved, HALF_RTOL, HALF_ATOL)


def test_two_norms_may_share_their_weights(compare: Compare, spell: Spell) -> None:
    layer = """mean{0} = ReduceMean(y{0}, last) d{0} = Sub(y{0}, mean{0}) dd{0} = Mul(d{0}, d{0})
        var{0} = ReduceMean(dd{0}, last) e{0} = Add(var{0}, eps) root{0} = Sqrt(e{0}) n{0} = Div(d{0}, root{0})
        s{0} = Mul(n{0}, w) y{1} = Add(s{0}, b)"""
    model = make("y0 = Identity(x) " + layer.format(0, 1) + layer.format(1, ""))
    lifted = lift(model)
    assert spell(lifted.model) == "LayerNormalization(LayerNormalization(x, w, b), w, b)"
    assert (lifted.prover.asked, len(lifted.prover.proofs)) == (2, 1)
    compare(model, lifted.model, cases(model), RTOL, 2 * ATOL)


def test_a_wrong_reading_is_declined_by_the_proof(monkeypatch: pytest.MonkeyPatch, compare: Compare) -> None:
    module = importlib.import_module("graphwright.passes.lift.layer_norm")
    monkeypatch.setattr(module, "deviates", lambda value, variance: value is not None)
    model = make(f"{HEAD} y = Div(x, root)")
    lifted = lift(model)
    assert [(site.kind, site.status) for site in lifted.log.sites] == [("layer_norm", "declined")]
    assert lifted.log.sites[0].reason.startswith("not equal: differs by")
    compare(model, lifted.model, cases(model), 0, 0)
