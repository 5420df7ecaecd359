"""RMSNorm in primitives becomes one `RMSNormalization`; what normalises otherwise stays, and the log says why."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable

import numpy as np
import onnx_ir as ir
import pytest

from graphwright.passes import Site, lift
from graphwright.passes.lift.norms import Root

Arrays = dict[str, np.ndarray]
Compare = Callable[[ir.Model, ir.Model, Iterable[Arrays], float, float], None]
Spell = Callable[[ir.Model], str]

# float32, rows of 8 numbers around 2, scales of 3: sums in another order, one root and one quotient
RTOL, ATOL = 1e-5, 5e-6
SIZES = ((1, 1), (1, 7), (3, 5))
CONSTANTS = """
    float[8] w = {1.5, -2, 0.5, 3, 1, -1, 2, 0.25}, float[1, 1, 8] wide = {2, 1, -0.5, 3, 1, 1.5, -2, 0.75},
    float[8] fine = {1.0001, 2, 3, 4, 5, 6, 7, 8}, float[8] positive = {1, 2, 3, 4, 5, 6, 7, 8},
    float eps = {1e-3}, float one = {1.0}, float two = {2.0}, float half = {0.5}, float less = {-0.5},
    float three = {3}, float eight = {8}, float eighth = {0.125},
    float root8 = {2.8284271}, float inverse8 = {0.35355339},
    double eps64 = {1e-3}, float tiny = {1e-12},
    int64[1] last = {-1}, int64[1] mid = {1}, int64[2] both = {-2, -1}
"""
MEAN = "xx = Mul(x, x) var = ReduceMean(xx, last)"
ROOT = "e = Add(var, eps) root = Sqrt(e)"
HEAD = f"{MEAN} {ROOT}"
NORM = f"{HEAD} r = Reciprocal(root) n = Mul(x, r)"
PLAIN = "RMSNormalization(x, w)"


def make(body: str, inputs: str = "", outputs: str = "", x: str = "float[B, S, 8]") -> ir.Model:
    return ir.from_onnx_text(f"""
        <ir_version: 10, opset_import: ["": 23]>
        norm ({x} x{inputs}) => ({x} y{outputs}) <{CONSTANTS}> {{ {body} }}""")


def cases(model: ir.Model) -> list[Arrays]:
    random, found = np.random.default_rng(0), []
    for batch, length in SIZES:
        named = {"B": batch, "S": length, "D": 8}
        drawn = {}
        for value in model.graph.inputs:
            shape = [dim if isinstance(dim, int) else named[str(dim.value)] for dim in value.shape or ()]
            assert value.dtype is not None
            drawn[str(value.name)] = random.normal(2, 1, shape).astype(value.dtype.numpy())
        found.append(drawn)
    return found


SPELLINGS = {
    "Sqrt, Reciprocal": (f"{NORM} y = Mul(n, w)", PLAIN),
    "Sqrt, Div": (f"{HEAD} n = Div(x, root) y = Mul(n, w)", PLAIN),
    "one by the root": (f"{HEAD} r = Div(one, root) n = Mul(r, x) y = Mul(w, n)", PLAIN),
    "Pow for the root": (f"{MEAN} e = Add(eps, var) r = Pow(e, less) n = Mul(x, r) y = Mul(w, n)", PLAIN),
    "Pow for the root, Div": (f"{MEAN} e = Add(eps, var) r = Pow(e, half) n = Div(x, r) y = Mul(w, n)", PLAIN),
    "Pow for the square": (f"xx = Pow(x, two) var = ReduceMean(xx, last) {ROOT} n = Div(x, root) y = Mul(n, w)", PLAIN),
    "sum by the size": (
        f"xx = Mul(x, x) t = ReduceSum(xx, last) var = Div(t, eight) {ROOT} n = Div(x, root) y = Mul(n, w)",
        PLAIN,
    ),
    "sum of squares by the size": (
        f"t = ReduceSumSquare(x, last) var = Mul(t, eighth) {ROOT} n = Div(x, root) y = Mul(n, w)",
        PLAIN,
    ),
    "length by the root of the size": ("l = ReduceL2(x, last) r = Div(l, root8) n = Div(x, r) y = Mul(n, w)", PLAIN),
    "the same, inverse": (
        "l = ReduceL2(x, last) r = Mul(inverse8, l) q = Reciprocal(r) n = Mul(x, q) y = Mul(n, w)",
        PLAIN,
    ),
    "no epsilon": (f"{MEAN} root = Sqrt(var) n = Div(x, root) y = Mul(n, w)", PLAIN),
    "mean without its axis": (
        f"xx = Mul(x, x) m = ReduceMean <keepdims = 0> (xx, last) var = Unsqueeze(m, last) {ROOT} n = Div(x, root) "
        "y = Mul(n, w)",
        PLAIN,
    ),
    "scale first": (f"{HEAD} s = Mul(w, x) y = Div(s, root)", PLAIN),
    "scale on the root": (f"{HEAD} r = Reciprocal(root) s = Mul(r, w) y = Mul(x, s)", PLAIN),
    "one more than the weight, folded": (f"{NORM} v = Add(one, w) y = Mul(n, v)", "RMSNormalization(x, v)"),
    "one more than a weight that is an input": (
        f"{NORM} v = Add(one, weight) y = Mul(n, v)",
        "RMSNormalization(x, Add(1, weight))",
    ),
    "scale that is an input": (f"{NORM} y = Mul(weight, n)", "RMSNormalization(x, weight)"),
    "scale with leading dims": (f"{NORM} y = Mul(n, wide)", "RMSNormalization(x, wide.vector)"),
    "no scale": (f"{HEAD} y = Div(x, root)", "RMSNormalization(x, ones.8.float)"),
    "scale of a sample": (f"{NORM} y = Mul(n, modulation)", "Mul(RMSNormalization(x, ones.8.float), modulation)"),
    "bias behind it": (f"{NORM} s = Mul(n, w) y = Add(s, w)", "Add(RMSNormalization(x, w), w)"),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_spelling_becomes_rms_normalization(name: str, compare: Compare, spell: Spell) -> None:
    body, expected = SPELLINGS[name]
    inputs = {"weight": ", float[8] weight", "modulation": ", float[B, 1, 8] modulation"}
    model = make(body, "".join(text for word, text in inputs.items() if word in expected))
    lifted = lift(model)
    assert [(site.kind, site.status, site.spelling) for site in lifted.log.sites] == [
        ("rms_norm", "lifted", "primitives")
    ]
    assert spell(lifted.model) == expected
    (norm,) = [node for node in lifted.model.graph if node.op_type == "RMSNormalization"]
    assert norm.attributes.get_float("epsilon", 1.0) == pytest.approx(1e-3 if "eps" in body else 0.0, rel=1e-7)
    compare(model, lifted.model, cases(model), RTOL, ATOL)


def test_heads_are_normalised_one_by_one(compare: Compare, spell: Spell) -> None:
    model = make(f"{NORM} y = Mul(w, n)", x="float[B, S, 3, 8]")
    lifted = lift(model)
    assert spell(lifted.model) == PLAIN
    compare(model, lifted.model, cases(model), RTOL, ATOL)


def test_several_axes_are_normalised_together(compare: Compare, spell: Spell) -> None:
    model = make(f"{NORM.replace('last', 'both')} y = Mul(n, grid)", ", float[3, 8] grid", x="float[B, S, 3, 8]")
    lifted = lift(model)
    assert spell(lifted.model) == "RMSNormalization(x, grid)"
    assert lifted.model.graph.node(0).attributes.get_int("axis", 0) == -2
    compare(model, lifted.model, cases(model), RTOL, ATOL)


def test_layers_share_one_proof_whatever_their_weights(compare: Compare) -> None:
    layer = "q{0} = Mul(y{0}, y{0}) v{0} = ReduceMean(q{0}, last) e{0} = Add(v{0}, eps) r{0} = Sqrt(e{0}) "
    layer += "n{0} = Div(y{0}, r{0}) y{1} = Mul(n{0}, {2})"
    body = " ".join(layer.format(*names) for names in ((0, 1, "w"), (1, 2, "fine"), (2, "", "positive")))
    model = make(f"y0 = Identity(x) {body}")
    lifted = lift(model)
    assert [site.status for site in lifted.log.sites] == ["lifted"] * 3
    assert (lifted.prover.asked, len(lifted.prover.proofs)) == (3, 1)
    compare(model, lifted.model, cases(model), 3 * RTOL, 3 * ATOL)


def test_a_ready_norm_is_logged(compare: Compare, spell: Spell) -> None:
    model = make("y = RMSNormalization(x, w)")
    lifted = lift(model)
    assert [(site.kind, site.spelling) for site in lifted.log.sites] == [("rms_norm", "RMSNormalization")]
    assert spell(lifted.model) == PLAIN
    compare(model, lifted.model, cases(model), 0, 0)


# float16: ONNX Runtime rounds the result once, the spellings up to three times, each by 2**-11
HALF = f"""xf = Cast <to = 1> (x) xx = Mul(xf, xf) var = ReduceMean(xx, last) {ROOT} r = Reciprocal(root)
    n = Mul(xf, r)"""
HALVES = {
    "cast back before the scale": (f"{HALF} h = Cast <to = 10> (n) y = Mul(hw, h)", "RMSNormalization(x, hw)"),
    "x cast once more": (
        f"{HALF.replace('Mul(xf, r)', 'Mul(again, r)')} h = Cast <to = 10> (n) y = Mul(hw, h)".replace(
            "r = Rec", "again = Cast <to = 1> (x) r = Rec"
        ),
        "RMSNormalization(x, hw)",
    ),
    "the inverse root is cast back": (
        f"{HALF.replace('n = Mul(xf, r)', 'h = Cast <to = 10> (r) n = Mul(x, h)')} y = Mul(hw, n)",
        "RMSNormalization(x, hw)",
    ),
    "weight cast to float32": (
        f"{HALF} wf = Cast <to = 1> (weight) s = Mul(wf, n) y = Cast <to = 10> (s)",
        "RMSNormalization(x, weight)",
    ),
    "cast back behind a weight that float16 holds": (
        f"{HALF} s = Mul(w, n) y = Cast <to = 10> (s)",
        "RMSNormalization(x, w.float16)",
    ),
    "cast back behind one that it does not hold": (
        f"{HALF} s = Mul(fine, n) y = Cast <to = 10> (s)",
        "Cast(RMSNormalization(Cast(x), fine))",
    ),
    "no scale": (f"{HALF} y = Cast <to = 10> (n)", "RMSNormalization(x, ones.8.float16)"),
    "no cast": (f"{NORM.replace('eps', 'heps')} y = Mul(n, hw)", "RMSNormalization(x, hw)"),
}


def make_half(body: str, inputs: str, dtype: str) -> ir.Model:
    # the text form knows no numbers of a half type
    to = {"float16": 10, "bfloat16": 16}[dtype]
    text = f"hw = Cast <to = {to}> (w) heps = Cast <to = {to}> (eps) {body}".replace("to = 10", f"to = {to}")
    return make(text, inputs, x=f"{dtype}[B, S, 8]")


@pytest.mark.parametrize("name", HALVES)
def test_casts_around_half_precision(name: str, compare: Compare, spell: Spell) -> None:
    body, expected = HALVES[name]
    model = make_half(body, ", float16[8] weight" if "(weight)" in body else "", "float16")
    lifted = lift(model)
    assert [(site.kind, site.status) for site in lifted.log.sites] == [("rms_norm", "lifted")]
    assert spell(lifted.model) == expected
    compare(model, lifted.model, cases(model), 2e-3, 2e-3)


@pytest.mark.parametrize("name", HALVES)
def test_bfloat16_is_lifted_alike(name: str, spell: Spell) -> None:
    # ONNX Runtime's CPU multiplies no bfloat16, so that the proof, in float32, is all that runs
    body, expected = HALVES[name]
    model = make_half(body, ", bfloat16[8] weight" if "(weight)" in body else "", "bfloat16")
    lifted = lift(model)
    assert [(site.kind, site.status) for site in lifted.log.sites] == [("rms_norm", "lifted")]
    assert spell(lifted.model) == expected.replace("float16", "bfloat16")


MISSES = {
    "epsilon behind the root": (
        f"{MEAN} r = Sqrt(var) root = Add(r, eps) y = Div(x, root)",
        "epsilon is outside the root, by Add: the standard norms have it inside",
    ),
    "epsilon as a bound of the root": (
        "l = ReduceL2(x, last) r = Mul(l, inverse8) root = Clip(r, tiny) y = Div(x, root)",
        "epsilon is outside the root, by Clip: the standard norms have it inside",
    ),
    "epsilon as a bound of the mean": (
        f"{MEAN} e = Max(var, eps) root = Sqrt(e) y = Div(x, root)",
        "Max stands where epsilon should be",
    ),
    "epsilon that is computed": (
        f"{MEAN} e = Add(var, offset) root = Sqrt(e) y = Div(x, root)",
        "what is added to the variance is no constant of one element",
    ),
    "epsilon of many elements": (
        f"{MEAN} e = Add(var, positive) root = Sqrt(e) y = Div(x, root)",
        "what is added to the variance is no constant of one element",
    ),
    "mean over another axis": (
        "xx = Mul(x, x) var = ReduceMean(xx, mid) e = Add(var, eps) root = Sqrt(e) y = Div(x, root)",
        "a mean is over axes [1], not over the last ones",
    ),
    "twice the mean": (
        f"{MEAN} v = Mul(var, two) e = Add(v, eps) root = Sqrt(e) y = Div(x, root)",
        "Mul stands where epsilon should be",
    ),
    "no root": (f"{MEAN} e = Add(var, eps) y = Div(x, e)", "Div stands where the root should be"),
    "cube": (
        f"{MEAN} e = Add(var, eps) root = Pow(e, three) y = Div(x, root)",
        "the variance is raised to the power of 3.0",
    ),
    "root by x": (f"{HEAD} y = Div(root, x)", "Div does not divide x by its root"),
    "the root is read twice": (
        f"{HEAD} n = Div(x, root) y = Add(n, root)",
        "Sqrt before the quotient is read more than once, or is an output of the graph",
    ),
    "the root is an output": (
        f"{HEAD} y = Div(x, root)",
        "Sqrt before the quotient is read more than once, or is an output of the graph",
    ),
    "axis lost": (
        f"xx = Mul(x, x) var = ReduceMean <keepdims = 0> (xx, last) {ROOT} u = Unsqueeze(root, mid) y = Div(x, u)",
        "the variance drops its axis and does not get it back",
    ),
}


@pytest.mark.parametrize("name", MISSES)
def test_what_normalises_otherwise_stays(name: str, compare: Compare) -> None:
    body, reason = MISSES[name]
    inputs = ", float offset" if "offset" in body else ""
    outputs = ", float[B, S, 1] root" if "output" in name else ""
    model = make(body, inputs, outputs, x="float[B, 8, 8]" if "mid" in body else "float[B, S, 8]")
    lifted = lift(model)
    assert lifted.log.sites == [Site("rms_norm", lifted.log.sites[0].path, "missed", "primitives", reason)]
    assert not [node for node in lifted.model.graph if node.op_type == "RMSNormalization"]
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
    assert [site.reason for site in lift(make(f"{body} y = Div(x, root)", x=x)).log.sites] == [reason]


@pytest.mark.parametrize(
    "body",
    [
        "xx = Mul(x, x) y = ReduceMean(xx, last)",
        f"{HEAD} y = Mul(root, w)",  # of a loss, say
        f"{HEAD} y = Div(w, root)",
        "l = ReduceL2(x, last) r = Max(l, tiny) y = Div(x, r)",  # length 1, not root mean square 1
        "t = ReduceSumSquare(x, last) r = Sqrt(t) y = Div(x, r)",
    ],
)
def test_other_means_of_squares_are_no_sites(body: str, compare: Compare) -> None:
    model = make(body)
    model.graph.outputs[0].shape = None
    lifted = lift(model)
    assert lifted.log.sites == []
    compare(model, lifted.model, cases(model), 0, 0)


def test_a_wrong_reading_is_declined_by_the_proof(monkeypatch: pytest.MonkeyPatch, compare: Compare) -> None:
    module = importlib.import_module("graphwright.passes.lift.norms")

    def careless(root: Root) -> Root:
        """As if the Add behind the root did not matter."""
        (behind,) = root.value.consumers()
        return Root(behind.outputs[0], 0.0, inverse=False)

    monkeypatch.setattr(module, "invert", careless)
    model = make(f"{MEAN} r = Sqrt(var) root = Add(r, eps) y = Div(x, root)")
    lifted = lift(model)
    assert [(site.kind, site.status) for site in lifted.log.sites] == [("rms_norm", "declined")]
    assert lifted.log.sites[0].reason.startswith("not equal: differs by")
    compare(model, lifted.model, cases(model), 0, 0)
