"""Columns through every op that moves them: each spelling of a rotation becomes the same `RotaryEmbedding`."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import ShapeInferencePass

from graphwright.passes import lift
from graphwright.passes.lift.columns import Columns

Arrays = dict[str, np.ndarray]
Compare = Callable[[ir.Model, ir.Model, Iterable[Arrays], float, float], None]
Spell = Callable[[ir.Model], str]

# two products and a sum in float32, in one order or the other; results up to about 8
RTOL, ATOL = 1e-6, 1e-6
CONSTANTS = """
    int64 first = {0}, int64 after = {1}, int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2},
    int64[1] four = {4}, int64[1] eight = {8}, int64[1] last = {-1}, int64[1] end = {9223372036854775807},
    int64[4] lower = {0, 1, 2, 3}, int64[4] upper = {4, 5, 6, 7}, int64[5] pairs = {0, 0, 0, 4, 2},
    int64[5] halves = {0, 0, 0, 2, 4}, int64[4] flat = {0, 0, 0, 8}, int64[3] flat3 = {0, 0, 8},
    int64[4] twice = {1, 1, 1, 2}, int64[2] parts = {4, 4}, float scaling = {1.25},
    float[8] signs = {-1, -1, -1, -1, 1, 1, 1, 1}
"""
DOUBLED = "e = Concat <axis = -1> (f, f)"
COS = f"{DOUBLED} c3 = Cos(e) s3 = Sin(e) c = Unsqueeze(c3, one) s = Unsqueeze(s3, one)"
SLICES = "a = Slice(x, zero, four, last) b = Slice(x, four, end, last)"
EVEN = "a = Slice(x, zero, end, last, two) b = Slice(x, one, end, last, two)"
TURNED = "n = Neg(b) r = Concat <axis = -1> (n, a)"
STACKED = (
    "n = Neg(b) nu = Unsqueeze(n, last) au = Unsqueeze(a, last) k = Concat <axis = -1> (nu, au) r = Reshape(k, flat)"
)
PAIRED = "fu = Unsqueeze(f, last) fd = Concat <axis = -1> (fu, fu) e = Reshape(fd, flat3)"
SUM = "xc = Mul(x, c) rs = Mul(r, s) y = Add(xc, rs)"
HALF_COS = "ch = Cos(f) sh = Sin(f) c = Unsqueeze(ch, one) s = Unsqueeze(sh, one)"
APART = "ac = Mul(a, c) bs = Mul(b, s) u = Sub(ac, bs) bc = Mul(b, c) as = Mul(s, a) v = Add(as, bc)"


def make(body: str) -> ir.Model:
    return ir.from_onnx_text(f"""
        <ir_version: 10, opset_import: ["": 23]>
        rotary (float[B, 2, S, 8] x, float[1, S, 4] f) => (float[B, 2, S, 8] y) <{CONSTANTS}> {{ {body} }}""")


def cases() -> list[Arrays]:
    random = np.random.default_rng(0)
    sizes = ((1, 1), (1, 7), (3, 5))
    shapes = [{"x": (batch, 2, length, 8), "f": (1, length, 4)} for batch, length in sizes]
    return [{k: random.standard_normal(v).astype(np.float32) for k, v in each.items()} for each in shapes]


HALF = "RotaryEmbedding(x, Expand(Cos(f)), Expand(Sin(f)))"
SPELLINGS = {
    "halves by Slice": (f"{COS} {SLICES} {TURNED} {SUM}", HALF),
    "halves by Split": (f"{COS} a, b = Split <axis = -1, num_outputs = 2> (x) {TURNED} {SUM}", HALF),
    "halves by Split with sizes": (f"{COS} a, b = Split <axis = 3> (x, parts) {TURNED} {SUM}", HALF),
    "halves by Gather": (
        f"{COS} a = Gather <axis = 3> (x, lower) b = Gather <axis = -1> (x, upper) {TURNED} {SUM}",
        HALF,
    ),
    "halves by a view": (
        f"""{COS} p = Reshape(x, halves) a = Gather <axis = 3> (p, first) b = Gather <axis = 3> (p, after)
            {TURNED} {SUM}""",
        HALF,
    ),
    "operands in another order": (
        f"{COS} {SLICES} {TURNED} rs = Mul(s, r) xc = Mul(c, x) y = Add(rs, xc)",
        HALF,
    ),
    "negated behind Slice": (
        f"""{COS} m = Neg(x) a = Slice(x, zero, four, last) n = Slice(m, four, end, last)
            r = Concat <axis = -1> (n, a) {SUM}""",
        HALF,
    ),
    "a difference": (
        f"{COS} {SLICES} m = Neg(a) r = Concat <axis = -1> (b, m) xc = Mul(x, c) rs = Mul(r, s) y = Sub(xc, rs)",
        HALF,
    ),
    "signs in a vector": (f"{COS} {SLICES} q = Concat <axis = -1> (b, a) r = Mul(q, signs) {SUM}", HALF),
    "signs in sin": (
        f"""{COS.replace("s3 = Sin(e)", "t = Sin(f) m = Neg(t) s3 = Concat <axis = -1> (m, t)")}
            {SLICES} r = Concat <axis = -1> (b, a) {SUM}""",
        HALF,
    ),
    "halves apart": (f"{HALF_COS} {SLICES} {APART} y = Concat <axis = -1> (u, v)", HALF),
    "halves of cos": (
        f"""{COS.replace("c = U", "cw = U").replace("s = U", "sw = U")} {SLICES}
            c = Slice(cw, zero, four, last) s = Slice(sw, four, eight, last) {APART}
            y = Concat <axis = 3> (u, v)""",
        HALF,
    ),
    "Cos before doubling": (
        f"""{HALF_COS.replace("c =", "d =").replace("s =", "t =")} c = Concat <axis = -1> (d, d)
            s = Concat <axis = -1> (t, t)
            {SLICES} {TURNED} {SUM}""",
        HALF,
    ),
    "doubled by Tile": (
        f"{COS} {SLICES} {TURNED} {SUM}".replace(
            DOUBLED, "w = Unsqueeze(f, zero) t = Tile(w, twice) e = Squeeze(t, zero)"
        ),
        HALF,
    ),
    "heads unsqueezed before Cos": (
        f"{DOUBLED} u = Unsqueeze(e, one) c = Cos(u) s = Sin(u) {SLICES} {TURNED} {SUM}",
        HALF,
    ),
    "scaled": (
        f"""{DOUBLED} c2 = Cos(e) c3 = Mul(c2, scaling) s2 = Sin(e) s3 = Mul(scaling, s2)
            c = Unsqueeze(c3, one) s = Unsqueeze(s3, one) {SLICES} {TURNED} {SUM}""",
        "RotaryEmbedding(x, Expand(Mul(Cos(f), 1.25)), Expand(Mul(1.25, Sin(f))))",
    ),
    "backwards": (
        f"{COS.replace('Sin(e)', 'Neg(q)').replace('s3 =', 'q = Sin(e) s3 =')} {SLICES} {TURNED} {SUM}",
        "RotaryEmbedding(x, Expand(Cos(f)), Expand(Neg(Sin(f))))",
    ),
    "neighbours, a stack": (f"{PAIRED} {COS[len(DOUBLED) :]} {EVEN} {STACKED} {SUM}", f"{HALF} interleaved"),
    "neighbours, cos doubled by Expand": (
        f"""fu = Unsqueeze(f, last) fd = Expand(fu, twice) e = Reshape(fd, flat3) {COS[len(DOUBLED) :]}
            {EVEN} {STACKED} {SUM}""",
        f"{HALF} interleaved",
    ),
    "neighbours, complex numbers spelled in reals": (
        f"""{HALF_COS} p = Reshape(x, pairs) a1, b1 = Split <axis = 4, num_outputs = 2> (p) a = Squeeze(a1, last)
            b = Squeeze(b1, last) {APART} uu = Unsqueeze(u, last) vu = Unsqueeze(v, last)
            k = Concat <axis = -1> (uu, vu) y = Reshape(k, flat)""",
        f"{HALF} interleaved",
    ),
    "neighbours, complex numbers as pairs": (
        f"""ch = Cos(f) sh = Sin(f) cw = Unsqueeze(ch, one) sw = Unsqueeze(sh, one)
            c = Unsqueeze(cw, last) s = Unsqueeze(sw, last)
            p = Reshape(x, pairs) a, b = Split <axis = -1, num_outputs = 2> (p) {APART}
            k = Concat <axis = -1> (u, v) y = Reshape(k, flat)""",
        f"{HALF} interleaved",
    ),
    "neighbours made halves": (
        f"""{COS} p = Reshape(x, pairs) t = Transpose <perm = [0, 1, 2, 4, 3]> (p) z = Reshape(t, flat)
            {SLICES.replace("(x,", "(z,")} {TURNED} {SUM.replace("(x,", "(z,")}""",
        HALF.replace("(x,", "(Reshape(Transpose(Reshape(x))),"),
    ),
    "partial": (
        f"""w = Slice(x, zero, four, last) p = Slice(x, four, end, last) g = Slice(f, zero, two, last)
            {COS.replace("(f, f)", "(g, g)")} a = Slice(w, zero, two, last) b = Slice(w, two, four, last) {TURNED}
            {SUM.replace("(x,", "(w,").replace("y =", "o =")} y = Concat <axis = -1> (o, p)""",
        "RotaryEmbedding(x, Expand(Cos(Slice(f, 0, 2, -1))), Expand(Sin(Slice(f, 0, 2, -1)))) of 4",
    ),
}


def spelled(model: ir.Model, spell: Spell) -> str:
    node = next(node for node in model.graph if node.op_type == "RotaryEmbedding")
    size = node.attributes.get_int("rotary_embedding_dim", 0)
    return spell(model) + " interleaved" * node.attributes.get_int("interleaved", 0) + (f" of {size}" if size else "")


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_spelling_becomes_a_rotary_embedding(name: str, compare: Compare, spell: Spell) -> None:
    body, expected = SPELLINGS[name]
    model = make(body)
    lifted = lift(model)
    assert spelled(lifted.model, spell) == expected
    assert [site.status for site in lifted.log.sites] == ["lifted"]
    compare(model, lifted.model, cases(), RTOL, ATOL)


def test_columns_are_symbols() -> None:
    model = make(f"{SLICES} {TURNED} {COS} y = Mul(r, c)")
    ShapeInferencePass()(model)
    columns = Columns(model.graph)
    named = {str(value.name): value for node in model.graph for value in node.outputs}
    x = columns.taken(model.graph.inputs[0])
    turned, cos = columns.taken(named["r"]), columns.deep(named["c"])
    assert x is not None
    assert turned is not None
    assert cos is not None
    assert turned.tolist() == [*(-x[4:]).tolist(), *x[:4].tolist()]
    assert cos[:4].tolist() == cos[4:].tolist()
    assert len(set(cos.tolist())) == 4
    assert columns.meaning(int(x[3])) == ("leaf", model.graph.inputs[0], 3)


def test_columns_of_no_known_number_are_not_followed() -> None:
    model = ir.from_onnx_text("""
        <ir_version: 10, opset_import: ["": 23]>
        rotary (float[B, 2, S, D] x, float[B, 8192] w) => (float[B, 2, S, D] y) { y = Neg(x) }""")
    columns = Columns(model.graph)
    assert [columns.taken(value) for value in (*model.graph.inputs, model.graph.outputs[0], None)] == [None] * 4
