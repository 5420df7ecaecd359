"""A sum and the norm that reads it become one function with both as outputs; other norms stay as they are."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable

import numpy as np
import onnx_ir as ir
import pytest

from graphwright.passes import lift, lowered_to
from graphwright.passes.lift.functions import inline

Arrays = dict[str, np.ndarray]
Compare = Callable[[ir.Model, ir.Model, Iterable[Arrays], float, float], None]
Spell = Callable[[ir.Model], str]

RTOL, ATOL = 1e-5, 5e-6  # float32 rows of 8: the same ops, which ONNX Runtime may fuse
CONSTANTS = (
    "float[8] w = {1.5, -2, 0.5, 3, 1, -1, 2, 0.25}, float[8] b = {0.5, -1, 2, 1, 0.25, -3, 4, 1}, float two = {2}"
)
LAYER = "LayerNormalization <axis = -1, epsilon = 0.001> (t, w, b)"
RMS = "RMSNormalization <axis = -1, epsilon = 0.001> (t, w)"
CALL = "graphwright.SkipLayerNormalization(x, s, w, b)"


def make(body: str, inputs: str = "", outputs: str = "", s: str = "float[B, S, 8]") -> ir.Model:
    return ir.from_onnx_text(f"""
        <ir_version: 10, opset_import: ["": 23]>
        residual (float[B, S, 8] x, {s} s{inputs}) => (float[B, S, 8] y{outputs}) <{CONSTANTS}> {{ {body} }}""")


def cases(model: ir.Model) -> list[Arrays]:
    random, found = np.random.default_rng(0), []
    for batch, length in ((1, 1), (1, 7), (3, 5)):
        sizes, case = {"B": batch, "S": length}, {}
        for value in model.graph.inputs:
            assert value.dtype is not None
            shape = [dim if isinstance(dim, int) else sizes[str(dim.value)] for dim in value.shape or ()]
            case[str(value.name)] = random.normal(1, 1, shape).astype(value.dtype.numpy())
        found.append(case)
    return found


PAIRS = {
    "LayerNorm": (f"t = Add(x, s) y = {LAYER}", "", CALL),
    "no bias": (
        f"t = Add(x, s) y = {LAYER.replace(', b', '')}",
        "",
        "graphwright.SkipLayerNormalization(x, s, w, zeros.8.float)",
    ),
    "RMSNorm": (f"t = Add(s, x) y = {RMS}", "", "graphwright.SkipRMSNormalization(s, x, w)"),
    "the sum is read behind the norm": (f"t = Add(x, s) n = {LAYER} y = Add(t, n)", "", f"Add({CALL}[1], {CALL})"),
    "the sum is read before the norm": (
        f"t = Add(x, s) r = Relu(t) n = {LAYER} y = Add(r, n)",
        "",
        f"Add(Relu({CALL}[1]), {CALL})",
    ),
    "the sum is an output": (f"t = Add(x, s) y = {LAYER}", ", float[B, S, 8] t", f"{CALL}; {CALL}[1]"),
    "two norms read the sum": (
        f"t = Add(x, s) n = {LAYER} m = {RMS} y = Add(n, m)",
        "",
        f"Add({CALL}, RMSNormalization({CALL}[1], w))",
    ),
    "in primitives": (
        """t = Add(x, s) q = Mul(t, t) axis = Constant <value_ints = [-1]> () v = ReduceMean(q, axis)
           eps = Constant <value_float = 0.001> () e = Add(v, eps) r = Sqrt(e) n = Div(t, r) y = Mul(n, w)""",
        "",
        "graphwright.SkipRMSNormalization(x, s, w)",
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_a_pair_becomes_one_function(name: str, compare: Compare, spell: Spell) -> None:
    body, outputs, expected = PAIRS[name]
    model = make(body, outputs=outputs)
    lifted = lift(model)
    (site,) = [site for site in lifted.log.sites if site.kind == "residual_norm"]
    assert (site.status, site.spelling.split(", ")[0]) == ("lifted", "Add")
    assert spell(lifted.model) == expected
    (call,) = [node for node in lifted.model.graph if node.domain == "graphwright"]
    assert call.attributes.get_float("epsilon", 0) == pytest.approx(1e-3)
    assert call.attributes.get_int("axis", 0) == -1
    compare(model, lifted.model, cases(model), RTOL, ATOL)
    inlined = lifted.model
    inline(inlined)
    assert len(inlined.graph) <= len(model.graph)
    assert lowered_to(inlined, "residual_norm") == {"Add": 1}
    if "Layer" in call.op_type:
        assert lowered_to(inlined, "layer_norm") == {"LayerNormalization": 1}
    else:
        assert lowered_to(inlined, "rms_norm") == {"RMSNormalization": 1}
    compare(model, inlined, cases(model), RTOL, ATOL)


def test_a_chain_of_layers_shares_its_proofs(compare: Compare, spell: Spell) -> None:
    layer = "t{0} = Add(h{0}, x) n{0} = LayerNormalization(t{0}, w{0}, b) r{0} = Relu(n{0}) h{1} = Add(t{0}, r{0})"
    weights = "".join(f", float[8] w{i}" for i in range(4))
    model = make("h0 = Relu(s) " + " ".join(layer.format(i, i + 1) for i in range(4)) + " y = Relu(h4)", weights)
    lifted = lift(model)
    assert [site.status for site in lifted.log.sites if site.kind == "residual_norm"] == ["lifted"] * 4
    assert (lifted.prover.asked, len(lifted.prover.proofs)) == (8, 2)  # each asks for its norm and its sum
    compare(model, lifted.model, cases(model), 1e-4, 2e-5)  # four layers on top of each other


def test_half_precision(spell: Spell) -> None:
    body = f"hw = Cast <to = 10> (w) t = Add(x, s) y = {RMS.replace('w)', 'hw)')}"
    text = f"""<ir_version: 10, opset_import: ["": 23]> residual (float16[B, S, 8] x, float16[B, S, 8] s)
        => (float16[B, S, 8] y) <{CONSTANTS}> {{ {body} }}"""
    lifted = lift(ir.from_onnx_text(text))
    assert spell(lifted.model) == "graphwright.SkipRMSNormalization(x, s, hw)"


@pytest.mark.parametrize(
    ("body", "s"),
    [
        (f"t = Add(x, s) y = {LAYER}", "float[B, 1, 8]"),  # broadcast
        (f"t = Add(x, s) y = {LAYER}", "float[8]"),
        (f"t = Mul(x, s) y = {LAYER}", "float[B, S, 8]"),
        (f"t = Relu(x) n = {LAYER} y = Add(n, s)", "float[B, S, 8]"),  # the sum is behind
        ("t = Add(x, s) y, m = LayerNormalization(t, w, b) ", "float[B, S, 8]"),  # its mean is asked for
        # scale and bias that depend on the sum
        (
            """t = Add(x, s) a = Constant <value_ints = [0, 1]> () m = ReduceMean <keepdims = 0> (t, a)
               y = LayerNormalization(t, m, b)""",
            "float[B, S, 8]",
        ),
    ],
)
def test_what_is_no_pair_stays(body: str, s: str, compare: Compare) -> None:
    outputs = ", float[B, S, 1] m" if "y, m" in body else ""
    model = make(body, outputs=outputs, s=s)
    lifted = lift(model)
    assert "residual_norm" not in [site.kind for site in lifted.log.sites]
    compare(model, lifted.model, cases(model), 0, 0)


def test_a_sum_outside_of_the_branch_stays_there(compare: Compare) -> None:
    model = ir.from_onnx_text(f"""
        <ir_version: 10, opset_import: ["": 23]>
        residual (bool flag, float[2, 8] x, float[2, 8] s) => (float[2, 8] y) <{CONSTANTS}> {{
            t = Add(x, s)
            y = If (flag) <then_branch = then () => (float[2, 8] p) {{ p = {LAYER} }},
                           else_branch = other () => (float[2, 8] q) {{ q = Relu(t) }}> }}""")
    lifted = lift(model)
    assert [site.kind for site in lifted.log.sites] == ["layer_norm"]
    random = np.random.default_rng(0)
    case = {name: random.standard_normal((2, 8)).astype(np.float32) for name in "xs"}
    compare(model, lifted.model, [case | {"flag": np.array(flag)} for flag in (True, False)], 0, 0)


@pytest.mark.parametrize("output", [0, 1])
def test_a_wrong_reading_is_declined_by_the_proof(
    output: int, monkeypatch: pytest.MonkeyPatch, compare: Compare
) -> None:
    module = importlib.import_module("graphwright.passes.lift.residual")
    text = module.SKIP_LAYER_NORM.text
    wrong = text.replace("(sum, scale, bias)", "(sum, bias, scale)")
    if output:
        wrong = text.replace("sum = Add(x, skip)", "both = Add(x, skip) sum = Relu(x)").replace("(sum, s", "(both, s")
    definition = module.Definition(wrong)
    monkeypatch.setitem(module._FUNCTIONS, "LayerNormalization", definition)
    model = make(f"t = Add(x, s) n = {LAYER} y = Add(t, n)")
    lifted = lift(model)
    assert [(site.kind, site.status) for site in lifted.log.sites] == [
        ("layer_norm", "lifted"),
        ("residual_norm", "declined"),
    ]
    assert lifted.log.sites[1].reason.startswith("not equal: differs by")
    compare(model, lifted.model, cases(model), 0, 0)
