"""GroupNorm by InstanceNormalization or in primitives becomes one `GroupNormalization`; other norms stay."""

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

# float32, numbers of deviation 1 around 1, scales of 6: ONNX Runtime expands the operator to mean(x * x) - mean(x) ** 2
RTOL, ATOL = 1e-5, 2e-5
SIZES = ((1, 4, 5), (3, 7, 2), (2, 1, 9))
CONSTANTS = """
    float[6, 1, 1] w = {1, -2, 3, 4, 5, 6}, float[6, 1, 1] b = {0.5, 1, -2, 3, 1, 0},
    float[1, 6, 1, 1] w4 = {1, 2, 3, 4, 5, 6}, float[6, 1] row = {1, 2, 3, 4, 5, 6},
    float[6] v = {6, 5, 4, 3, 2, 1}, float eps = {1e-3},
    float[1] ones1 = {1}, float[1] zeros1 = {0}, float[3] ones = {1, 1, 1}, float[3] zeros = {0, 0, 0},
    float[6] ones6 = {1, 1, 1, 1, 1, 1}, float[6] zeros6 = {0, 0, 0, 0, 0, 0}, float[3] threes = {1, 2, 3},
    float[12] twelve = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12},
    int64[3] one = {0, 1, -1}, int64[3] groups = {0, 3, -1}, int64[3] each = {0, 6, -1}, int64[3] more = {0, 12, -1},
    int64[4] apart = {0, 3, 2, 16},
    int64[1] last = {-1}, int64[1] third = {3}, int64[3] behind = {2, 3, 4}, int64[2] image = {1, 2}
"""
INSTANCE = """s = Shape(x) g = Reshape(x, groups) i = InstanceNormalization <epsilon = 1e-3> (g, ones, zeros)
    n = Reshape(i, s)"""
AFFINE = "m = Mul(n, w) y = Add(m, b)"
LIFTED = "GroupNormalization(x, w.vector, b.vector)"


def statistics(axes: str) -> str:
    return f"""mean = ReduceMean(g, {axes}) d = Sub(g, mean) dd = Mul(d, d) var = ReduceMean(dd, {axes})
        e = Add(var, eps) root = Sqrt(e) i = Div(d, root) n = Reshape(i, s)"""


PRIMITIVES = f"s = Shape(x) g = Reshape(x, groups) {statistics('last')}"


def make(body: str, inputs: str = "", outputs: str = "", x: str = "float[B, 6, H, W]") -> ir.Model:
    return ir.from_onnx_text(f"""
        <ir_version: 10, opset_import: ["": 23]>
        norm ({x} x{inputs}) => ({x} y{outputs}) <{CONSTANTS}> {{ {body} }}""")


def cases(model: ir.Model) -> list[Arrays]:
    random, found = np.random.default_rng(0), []
    for sizes in SIZES:
        named = dict(zip("BHW", sizes, strict=True))
        found.append(
            {
                str(value.name): random.normal(
                    1, 1, [dim if isinstance(dim, int) else named[str(dim.value)] for dim in value.shape or ()]
                ).astype(np.float32)
                for value in model.graph.inputs
            }
        )
    return found


SPELLINGS = {
    "instance norm": (f"{INSTANCE} {AFFINE}", LIFTED, 3),
    "operands swapped": (f"{INSTANCE} m = Mul(w4, n) y = Add(b, m)", "GroupNormalization(x, w4.vector, b.vector)", 3),
    "no affine": (f"{INSTANCE} y = Identity(n)", "GroupNormalization(x, ones.6.float, zeros.6.float)", 3),
    "no bias": (f"{INSTANCE} y = Mul(n, w)", "GroupNormalization(x, w.vector, zeros.6.float)", 3),
    "one group": (
        f"{INSTANCE} {AFFINE}".replace("groups", "one").replace("s,", "s1,").replace("ros)", "ros1)"),
        LIFTED,
        1,
    ),
    "a group for each channel": (
        f"{INSTANCE} {AFFINE}".replace("groups", "each").replace("ones,", "ones6,").replace("zeros)", "zeros6)"),
        LIFTED,
        6,
    ),
    "scale of the groups": (
        f"{INSTANCE} {AFFINE}".replace("ones, zeros", "threes, threes"),
        "GroupNormalization(x, w.vector.merged, b.vector.merged)",
        3,
    ),
    "weights that are inputs": (
        f"""{INSTANCE} u = Unsqueeze(weight, image) m = Mul(n, u) o = Unsqueeze(bias, image) y = Add(m, o)""",
        "GroupNormalization(x, weight, bias)",
        3,
    ),
    "bias of another shape behind it": (
        f"{INSTANCE} m = Mul(n, w) y = Add(m, map)",
        "Add(GroupNormalization(x, w.vector, zeros.6.float), map)",
        3,
    ),
    "primitives": (f"{PRIMITIVES} {AFFINE}", LIFTED, 3),
    "primitives of the channels apart": (
        f"""s = Shape(x) size = Shape <start = 2> (x) n0 = Shape <end = 1> (x) head = Constant <value_ints = [3, 2]> ()
            to = Concat <axis = 0> (n0, head, size) g = Reshape(x, to) {statistics("behind")} {AFFINE}""",
        LIFTED,
        3,
    ),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_spelling_becomes_group_normalization(name: str, compare: Compare, spell: Spell) -> None:
    body, expected, groups = SPELLINGS[name]
    inputs = (
        ", float[6] weight, float[6] bias" if "weight" in body else ", float[B, 1, H, W] map" if "map" in body else ""
    )
    model = make(body, inputs)
    lifted = lift(model)
    how = "primitives" if "primitives" in name else "InstanceNormalization"
    assert [(site.kind, site.status, site.spelling) for site in lifted.log.sites] == [("group_norm", "lifted", how)]
    assert spell(lifted.model) == expected
    (norm,) = [node for node in lifted.model.graph if node.op_type == "GroupNormalization"]
    assert norm.attributes.get_int("num_groups", 0) == groups
    assert norm.attributes.get_float("epsilon", 0) == pytest.approx(1e-3, rel=1e-7)
    compare(model, lifted.model, cases(model), RTOL, ATOL)


def test_of_a_sequence_no_reshape_back_is_left(compare: Compare, spell: Spell) -> None:
    body = "g = Reshape(x, each) n = InstanceNormalization <epsilon = 1e-3> (g, ones6, zeros6) y = Mul(n, row)"
    model = make(body, x="float[B, 6, 8]")
    lifted = lift(model)
    assert spell(lifted.model) == "GroupNormalization(x, row.vector, zeros.6.float)"
    compare(model, lifted.model, cases(model), RTOL, ATOL)


def test_a_ready_norm_is_logged(spell: Spell) -> None:
    lifted = lift(make("y = GroupNormalization <num_groups = 3> (x, v, v)"))
    assert [(site.kind, site.spelling) for site in lifted.log.sites] == [("group_norm", "GroupNormalization")]
    assert spell(lifted.model) == "GroupNormalization(x, v, v)"


def test_half_precision(compare: Compare, spell: Spell) -> None:
    body = INSTANCE.replace("ones,", "ho,").replace("zeros)", "hz)")
    casts = " ".join(f"{new} = Cast <to = 10> ({old})" for new, old in (("ho", "ones"), ("hz", "zeros"), ("hw", "w")))
    model = make(f"{casts} {body} y = Mul(n, hw)", x="float16[B, 6, H, W]")
    lifted = lift(model)
    assert spell(lifted.model) == "GroupNormalization(x, hw.vector, zeros.6.float16)"
    halved = [{"x": case["x"].astype(np.float16)} for case in cases(model)]
    compare(model, lifted.model, halved, 2e-3, 1e-2)  # rounded to 2**-11 before a scale of 6, and behind it


def test_a_group_whose_scale_is_computed_stays(compare: Compare) -> None:
    model = make(f"{INSTANCE} {AFFINE}".replace("ones, zeros", "scale, zeros"), ", float[3] scale")
    lifted = lift(model)
    reason = "the groups have a scale or bias that is computed"
    assert lifted.log.sites == [Site("group_norm", lifted.log.sites[0].path, "missed", "InstanceNormalization", reason)]
    compare(model, lifted.model, cases(model), 0, 0)


NOT_REGROUPED = {
    "the groups are read elsewhere": f"{INSTANCE} m = Mul(n, w) k = ReduceMax(i) y = Add(m, k)",
    "they become something else": "g = Reshape(x, groups) i = InstanceNormalization(g, ones, zeros) t = Shape(flip) "
    "n = Reshape(i, t) z = Transpose <perm = [0, 1, 3, 2]> (n) y = Add(z, x)",
}


@pytest.mark.parametrize("name", NOT_REGROUPED)
def test_groups_that_are_not_put_back_stay(name: str, compare: Compare) -> None:
    model = make(NOT_REGROUPED[name], ", float[B, 6, W, H] flip" if "flip" in NOT_REGROUPED[name] else "")
    lifted = lift(model)
    (site,) = lifted.log.sites
    assert (site.kind, site.status) == ("group_norm", "missed")
    assert "do not become" in site.reason
    compare(model, lifted.model, cases(model), 0, 0)


@pytest.mark.parametrize(
    "body",
    [
        "n = InstanceNormalization(x, v, v) y = Mul(n, w)",  # a standard op already
        # more groups than channels
        """s = Shape(x) g = Reshape(x, more) i = InstanceNormalization(g, twelve, twelve) y = Reshape(i, s)""",
    ],
)
def test_other_instance_norms_are_no_sites(body: str, compare: Compare) -> None:
    model = make(body, x="float[B, 6, 4, 4]")
    lifted = lift(model)
    assert lifted.log.sites == []
    compare(model, lifted.model, cases(model), 0, 0)


def test_a_mean_over_less_than_the_group_is_no_group_norm(compare: Compare) -> None:
    body = PRIMITIVES.replace("groups", "apart").replace("last)", "third)")
    model = make(f"{body} {AFFINE}", x="float[B, 6, 4, 4]")
    lifted = lift(model)
    assert [(site.kind, site.status) for site in lifted.log.sites] == [("layer_norm", "lifted")]
    compare(model, lifted.model, cases(model), RTOL, ATOL)


def test_a_wrong_reading_is_declined_by_the_proof(monkeypatch: pytest.MonkeyPatch, compare: Compare) -> None:
    module = importlib.import_module("graphwright.passes.lift.group_norm")
    monkeypatch.setattr(module, "_per_channel", lambda node, before, channels: node.graph.initializers["v"])
    model = make(f"{INSTANCE} m = Mul(n, w) o = Add(m, b) y = PRelu(o, v)", x="float[B, 6, 4, 6]")
    lifted = lift(model)
    assert [(site.kind, site.status) for site in lifted.log.sites] == [("group_norm", "declined")]
    assert lifted.log.sites[0].reason.startswith("not equal: differs by")
    compare(model, lifted.model, cases(model), 0, 0)
