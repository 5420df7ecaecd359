"""Gated units become SwiGLU or GeGLU; activations that are multiplied otherwise stay, and a near miss says why."""

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

RTOL, ATOL = 2e-6, 5e-6  # float32 products of numbers up to 9
CONSTANTS = """
    float root = {1.4142135}, float one = {1}, float half = {0.5}, float three = {3}, float c = {0.044715},
    float k = {0.7978846}, float quick = {1.702}, float[1, 8] row = {1, 2, 3, 4, 5, 6, 7, 8},
    int64[1] zero = {0}, int64[1] four = {4}, int64[1] eight = {8}, int64[1] last = {-1}
"""
SILU = "s = Sigmoid(g) a = Mul(g, s)"
GELU = "u = Div(g, root) e = Erf(u) f = Add(e, one) h = Mul(g, half) a = Mul(h, f)"
TANH = """g3 = Pow(g, three) q = Mul(c, g3) p = Add(g, q) o = Mul(k, p) t = Tanh(o) f = Add(t, one) h = Mul(g, half)
    a = Mul(h, f)"""
SPLIT = "g, x = Split <axis = -1, num_outputs = 2> (both)"


def make(body: str, inputs: str = "float[B, S, 4] g, float[B, S, 4] x", y: str = "float[B, S, 4] y") -> ir.Model:
    return ir.from_onnx_text(f"""
        <ir_version: 10, opset_import: ["": 23]>
        gated ({inputs}) => ({y}) <{CONSTANTS}> {{ {body} }}""")


def cases(model: ir.Model) -> list[Arrays]:
    random, found = np.random.default_rng(0), []
    for batch, length in ((1, 1), (1, 7), (3, 5)):
        sizes, case = {"B": batch, "S": length}, {}
        for value in model.graph.inputs:
            assert value.dtype is not None
            shape = [dim if isinstance(dim, int) else sizes[str(dim.value)] for dim in value.shape or ()]
            case[str(value.name)] = random.normal(0, 2, shape).astype(value.dtype.numpy())
        found.append(case)
    return found


SPELLINGS = {
    "silu": (f"{SILU} y = Mul(a, x)", "graphwright.SwiGLU(g, x)", "Silu"),
    "silu, the other order": (f"{SILU} y = Mul(x, a)", "graphwright.SwiGLU(g, x)", "Silu"),
    "gelu": (f"{GELU} y = Mul(a, x)", "graphwright.GeGLU(g, x)", "Gelu"),
    "gelu by tanh": (f"{TANH} y = Mul(x, a)", "graphwright.GeGLU(g, x)", "Gelu"),
    "a ready gelu": ("a = Gelu(g) y = Mul(x, a)", "graphwright.GeGLU(g, x)", "Gelu"),
    "one projection, Split": (
        f"{SPLIT} {SILU} y = Mul(a, x)",
        "graphwright.SwiGLU(Split(both), Split(both)[1])",
        "Silu",
    ),
    "one projection, the second half gates": (
        f"{SPLIT.replace('g, x', 'x, g')} {GELU} y = Mul(a, x)",
        "graphwright.GeGLU(Split(both)[1], Split(both))",
        "Gelu",
    ),
    "one projection, Slice": (
        f"g = Slice(both, zero, four, last) x = Slice(both, four, eight, last) {SILU} y = Mul(x, a)",
        "graphwright.SwiGLU(Slice(both, 0, 4, -1), Slice(both, 4, 8, -1))",
        "Silu",
    ),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_spelling_becomes_one_function(name: str, compare: Compare, spell: Spell) -> None:
    body, expected, activation = SPELLINGS[name]
    model = make(body, "float[B, S, 8] both") if "both" in body else make(body)
    lifted = lift(model)
    assert [(site.kind, site.status) for site in lifted.log.sites] == [
        (activation.lower(), "lifted"),
        ("gate", "lifted"),
    ]
    assert lifted.log.sites[1].spelling == f"{activation} times up"
    assert spell(lifted.model) == expected
    if activation == "Gelu":
        form = lifted.model.graph.node(-1).attributes.get_string("approximate", "")
        assert form == ("tanh" if "tanh" in name else "none")
    compare(model, lifted.model, cases(model), RTOL, ATOL)
    inlined = lifted.model
    inline(inlined)
    assert len(inlined.graph) <= len(model.graph)
    assert lowered_to(inlined, "gate") == {"Mul": 1}
    assert lowered_to(inlined, activation.lower()) == {{"Silu": "Sigmoid"}.get(activation, "Gelu"): 1}
    compare(model, inlined, cases(model), RTOL, ATOL)


def test_half_precision(compare: Compare, spell: Spell) -> None:
    model = make(f"{SILU} y = Mul(a, x)", "float16[B, S, 4] g, float16[B, S, 4] x", "float16[B, S, 4] y")
    lifted = lift(model)
    assert spell(lifted.model) == "graphwright.SwiGLU(g, x)"
    compare(model, lifted.model, cases(model), 4e-3, 2e-3)  # three results, each rounded to 2**-11


MISSES = {
    "the activation is read twice": (
        f"{SILU} m = Mul(a, x) y = Add(m, a)",
        "the activation is read more than once, or is an output of the graph",
    ),
    "the activation is an output": (
        f"{SILU} y = Mul(a, x)",
        "the activation is read more than once, or is an output of the graph",
    ),
    "a cast in between": (
        f"{SILU} d = Cast <to = 11> (a) xd = Cast <to = 11> (x) m = Mul(d, xd) y = Cast <to = 1> (m)",
        "a Cast stands between the activation and the product",
    ),
}


@pytest.mark.parametrize("name", MISSES)
def test_a_near_miss_says_why(name: str, compare: Compare, spell: Spell) -> None:
    body, reason = MISSES[name]
    y = "float[B, S, 4] y, float[B, S, 4] a" if "output" in name else "float[B, S, 4] y"
    model = make(body, y=y)
    lifted = lift(model)
    assert lifted.log.sites[1:] == [Site("gate", lifted.log.sites[1].path, "missed", "Silu times up", reason)]
    assert "GLU" not in spell(lifted.model)
    compare(model, lifted.model, cases(model), RTOL, ATOL)


@pytest.mark.parametrize(
    ("body", "inputs"),
    [
        (f"{SILU} y = Mul(a, half)", None),  # scaled
        (f"{SILU} y = Mul(a, a)", None),
        (f"{SILU} y = Mul(a, g)", None),
        (f"{SILU} y = Add(a, x)", None),
        (f"{SILU} y = Mul(a, x)", "float[B, S, 4] g, float[B, 1, 4] x"),  # a factor of channels
        (f"{SILU} y = Mul(a, x)", "float[B, 1, 4] g, float[B, S, 4] x"),
        ("u = Mul(g, quick) s = Sigmoid(u) a = Mul(g, s) y = Mul(a, x)", None),
        ("a = Relu(g) y = Mul(a, x)", None),
    ],
)
def test_other_products_are_no_sites(body: str, inputs: str | None, compare: Compare) -> None:
    model = make(body, inputs) if inputs else make(body)
    lifted = lift(model)
    assert "gate" not in [site.kind for site in lifted.log.sites]
    compare(model, lifted.model, cases(model), RTOL, ATOL)


def test_a_wrong_reading_is_declined_by_the_proof(monkeypatch: pytest.MonkeyPatch, compare: Compare) -> None:
    module = importlib.import_module("graphwright.passes.lift.gated")
    read = module._read
    monkeypatch.setattr(module, "_read", lambda activation, product: read(activation, product)[::-1])
    model = make(f"{SILU} y = Mul(a, x)")
    lifted = lift(model)
    assert [(site.kind, site.status) for site in lifted.log.sites] == [("silu", "lifted"), ("gate", "declined")]
    assert lifted.log.sites[1].reason.startswith("not equal: differs by")
    compare(model, lifted.model, cases(model), RTOL, ATOL)
