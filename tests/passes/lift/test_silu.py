"""SiLU, quick gelu and HardSwish by their functions, however spelled; a sigmoid that gates something else stays."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable

import numpy as np
import onnx_ir as ir
import pytest

from graphwright.passes import Site, lift, lowered_to
from graphwright.passes.lift.functions import inline

Arrays = dict[str, np.ndarray]
Compare = Callable[[ir.Model, ir.Model, Iterable[Arrays], float, float], None]
Spell = Callable[[ir.Model], str]

# float32 between -9 and 9: ONNX Runtime's sigmoid is a rational function, good to some units in the last place
RTOL, ATOL = 2e-6, 2e-6
CONSTANTS = """
    float one = {1}, float two = {2}, float six = {6}, float three = {3}, float zero = {0}, float sixth = {0.16666667},
    float quick = {1.702}, float less = {-1.702}, float minus = {-1},
    float[8] b = {1, 2, 3, 4, 5, 6, 7, 8}
"""
SILU = "graphwright.Silu(x)"
QUICK = "graphwright.QuickGelu(x)"


def make(body: str, inputs: str = "", outputs: str = "", dtype: str = "float") -> ir.Model:
    shape = f"{dtype}[B, S, 8]"
    return ir.from_onnx_text(f"""
        <ir_version: 10, opset_import: ["": 23]>
        act ({shape} x{inputs}) => ({shape} y{outputs}) <{CONSTANTS}> {{ {body} }}""")


def cases(model: ir.Model) -> list[Arrays]:
    random = np.random.default_rng(0)
    shapes = ((1, 1, 8), (1, 7, 8), (3, 5, 8))
    inputs = [(str(value.name), value.dtype) for value in model.graph.inputs]
    return [
        {name: random.normal(0, 3, shape).astype(dtype.numpy()) for name, dtype in inputs if dtype is not None}
        for shape in shapes
    ]


SPELLINGS = {
    "silu": ("s = Sigmoid(x) y = Mul(x, s)", SILU, "silu", "Sigmoid"),
    "silu, the other order": ("s = Sigmoid(x) y = Mul(s, x)", SILU, "silu", "Sigmoid"),
    "sigmoid by exp": ("n = Neg(x) e = Exp(n) d = Add(e, one) s = Reciprocal(d) y = Mul(x, s)", SILU, "silu", "Exp"),
    "sigmoid by exp, divided": ("n = Mul(x, minus) e = Exp(n) d = Add(one, e) y = Div(x, d)", SILU, "silu", "Exp"),
    "sigmoid by exp, one by it": (
        "n = Neg(x) e = Exp(n) d = Add(one, e) s = Div(one, d) y = Mul(s, x)",
        SILU,
        "silu",
        "Exp",
    ),
    "quick gelu": ("u = Mul(x, quick) s = Sigmoid(u) y = Mul(x, s)", QUICK, "quick_gelu", "Sigmoid"),
    "quick gelu, the other order": ("u = Mul(quick, x) s = Sigmoid(u) y = Mul(s, x)", QUICK, "quick_gelu", "Sigmoid"),
    "quick gelu by exp": ("u = Mul(less, x) e = Exp(u) d = Add(e, one) y = Div(x, d)", QUICK, "quick_gelu", "Exp"),
    "hard swish by Clip": (
        "a = Add(x, three) c = Clip(a, zero, six) m = Mul(x, c) y = Div(m, six)",
        "HardSwish(x)",
        "hard_swish",
        "Clip",
    ),
    "hard swish, factor first": (
        "a = Add(three, x) c = Clip(a, zero, six) h = Mul(c, sixth) y = Mul(h, x)",
        "HardSwish(x)",
        "hard_swish",
        "Clip",
    ),
    "hard swish by HardSigmoid": (
        "h = HardSigmoid <alpha = 0.16666667, beta = 0.5> (x) y = Mul(x, h)",
        "HardSwish(x)",
        "hard_swish",
        "HardSigmoid",
    ),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_spelling_becomes_one_node(name: str, compare: Compare, spell: Spell) -> None:
    body, expected, kind, core = SPELLINGS[name]
    model = make(body)
    lifted = lift(model)
    assert [(site.kind, site.status, site.spelling) for site in lifted.log.sites] == [(kind, "lifted", f"{core} form")]
    assert spell(lifted.model) == expected
    compare(model, lifted.model, cases(model), RTOL, ATOL)


def test_the_factor_of_quick_gelu_is_kept() -> None:
    lifted = lift(make(SPELLINGS["quick gelu"][0]))
    assert lifted.model.graph.node(0).attributes.get_float("alpha", 0) == pytest.approx(1.702, rel=1e-7)


@pytest.mark.parametrize("name", ["silu", "quick gelu", "sigmoid by exp"])
def test_inlined_there_are_no_more_nodes_than_before(name: str, compare: Compare) -> None:
    model = make(SPELLINGS[name][0])
    inlined = lift(model).model
    assert inline(inlined)
    assert len(inlined.graph) <= len(model.graph)
    assert lowered_to(inlined, SPELLINGS[name][2]) == {"Sigmoid": 1}
    compare(model, inlined, cases(model), RTOL, ATOL)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_casts_stay_around_what_computes_in_float32(dtype: str, compare: Compare, spell: Spell) -> None:
    to = {"float16": 10, "bfloat16": 16}[dtype]
    model = make(f"f = Cast <to = 1> (x) s = Sigmoid(f) m = Mul(f, s) y = Cast <to = {to}> (m)", dtype=dtype)
    lifted = lift(model)
    assert spell(lifted.model) == "Cast(graphwright.Silu(Cast(x)))"
    if dtype == "float16":
        compare(model, lifted.model, cases(model), 1e-3, 1e-3)  # rounded once, to 2**-11


@pytest.mark.parametrize("name", ["silu", "quick gelu"])
def test_half_precision(name: str, compare: Compare, spell: Spell) -> None:
    body = f"quick16 = Cast <to = 10> (quick) {SPELLINGS[name][0].replace('quick)', 'quick16)')}"
    model = make(
        body.replace("quick16 = Cast <to = 10> (quick16)", "quick16 = Cast <to = 10> (quick)"), dtype="float16"
    )
    lifted = lift(model)
    assert spell(lifted.model) == SPELLINGS[name][1]
    compare(model, lifted.model, cases(model), 4e-3, 2e-3)  # factor and products each rounded to 2**-11
    inlined = lifted.model
    inline(inlined)
    assert "CastLike" not in [node.op_type for node in inlined.graph]
    compare(model, inlined, cases(model), 4e-3, 2e-3)


def test_a_ready_hard_swish_is_logged(spell: Spell) -> None:
    lifted = lift(make("y = HardSwish(x)"))
    assert [(site.kind, site.spelling) for site in lifted.log.sites] == [("hard_swish", "HardSwish")]
    assert spell(lifted.model) == "HardSwish(x)"


INCOMPLETE = "Sigmoid, before the Silu is complete, is read by several nodes or is an output"
MISSES = {
    "the sigmoid is read twice": ("s = Sigmoid(x) m = Mul(x, s) y = Add(m, s)", "silu", INCOMPLETE),
    "the sigmoid is an output": ("s = Sigmoid(x) y = Mul(x, s)", "silu", INCOMPLETE),
    "that of a quick gelu is read twice": (
        "u = Mul(x, quick) s = Sigmoid(u) m = Mul(x, s) y = Add(m, s)",
        "quick_gelu",
        INCOMPLETE,
    ),
}


@pytest.mark.parametrize("name", MISSES)
def test_a_sigmoid_with_other_readers_stays(name: str, compare: Compare) -> None:
    body, kind, reason = MISSES[name]
    model = make(body, outputs=", float[B, S, 8] s" if "output" in name else "")
    lifted = lift(model)
    assert lifted.log.sites == [Site(kind, lifted.log.sites[0].path, "missed", "Sigmoid", reason)]
    compare(model, lifted.model, cases(model), 0, 0)


@pytest.mark.parametrize(
    "body",
    [
        "y = Sigmoid(x)",
        "s = Sigmoid(g) y = Mul(x, s)",  # a gate
        "a = Add(x, one) s = Sigmoid(a) y = Mul(x, s)",  # shifted
        "a = Neg(x) s = Sigmoid(a) y = Mul(x, s)",  # falling
        "a = Mul(x, b) s = Sigmoid(a) y = Mul(x, s)",  # a factor for each channel
        "s = Sigmoid(x) t = Mul(s, two) y = Add(x, t)",
        "e = Exp(x) d = Add(e, one) y = Log(d)",  # softplus
        "a = Add(x, three) c = Clip(a, zero, six) y = Mul(x, c)",  # six times HardSwish
        "a = Add(x, two) c = Clip(a, zero, six) m = Mul(x, c) y = Div(m, six)",
    ],
)
def test_what_is_neither_is_no_site(body: str, compare: Compare) -> None:
    model = make(body, ", float[B, S, 8] g" if "(g)" in body else "")
    lifted = lift(model)
    assert lifted.log.sites == []
    compare(model, lifted.model, cases(model), 0, 0)


def test_a_wrong_reading_is_declined_by_the_proof(monkeypatch: pytest.MonkeyPatch, compare: Compare) -> None:
    pointwise = importlib.import_module("graphwright.passes.lift.pointwise")
    monkeypatch.setattr(pointwise, "equal", lambda result, wanted, dtype: True)
    model = make("s = Sigmoid(x) y = Mul(x, s)")
    lifted = lift(model)
    assert [(site.kind, site.status) for site in lifted.log.sites] == [("silu", "declined")]
    assert lifted.log.sites[0].reason.startswith("not equal: differs by")
    compare(model, lifted.model, cases(model), 0, 0)
