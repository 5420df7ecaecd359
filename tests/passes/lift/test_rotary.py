"""Rotary embeddings in every layout become one `RotaryEmbedding` each; caches are made once, for the batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from graphwright.passes import lift
from graphwright.passes.lift import rotation

Arrays = dict[str, np.ndarray]
Run = Callable[[ir.Model, Arrays], Arrays]
Compare = Callable[[ir.Model, ir.Model, Iterable[Arrays], float, float], None]
Spell = Callable[[ir.Model], str]

# two products and a sum in float32, in one order or the other; results up to about 8
RTOL, ATOL = 1e-6, 1e-6
TABLE = np.random.default_rng(1).standard_normal((16, 4)).astype(np.float32)
CONSTANTS = """
    int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, int64[1] three = {3}, int64[1] four = {4},
    int64[1] last = {-1}, int64[1] end = {9223372036854775807},
    int64[4] flat = {0, 0, 0, 8}, int64[4] one_head = {0, 1, -1, 8}, int64[3] flat3 = {0, 0, 8},
    float[8] inverse = {1, 0.5, 0.25, 0.125, 1, 0.5, 0.25, 0.125}
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


def make(body: str, x: str = "float[B, 2, S, 8]", f: str = "float[1, S, 4]", inputs: str = "", y: str = "") -> ir.Model:
    return ir.from_onnx_text(f"""
        <ir_version: 10, opset_import: ["": 23]>
        rotary ({x} x, {f} f{inputs}) => ({y or x} y) <{CONSTANTS}> {{ {body} }}""")


def tables(model: ir.Model) -> ir.Model:
    """With what is named like one of the tables as a constant."""
    arrays = {
        "table": np.concatenate([TABLE, TABLE], -1),
        "sines": np.concatenate([-TABLE, -TABLE], -1),
        "sinusoid": np.concatenate([np.sin(TABLE), np.cos(TABLE)], -1),
    }
    for value in [value for value in model.graph.inputs if value.name in arrays]:
        model.graph.inputs.remove(value)
        value.const_value = ir.tensor(arrays[str(value.name)], name=value.name)
        model.graph.register_initializer(value)
    return model


def cases(model: ir.Model) -> list[Arrays]:
    random, made = np.random.default_rng(0), list[Arrays]()
    for named in ({"B": 1, "S": 1}, {"B": 1, "S": 7}, {"B": 3, "S": 5}):
        feeds: Arrays = {}
        for value in model.graph.inputs:
            shape = [dim if isinstance(dim, int) else named[str(dim.value)] for dim in value.shape or ()]
            dtype = value.dtype.numpy() if value.dtype is not None else np.dtype(np.float32)
            drawn = random.integers(0, 16, shape) if dtype == np.int64 else random.standard_normal(shape)
            feeds[str(value.name)] = np.asarray(drawn).astype(dtype)
        made.append(feeds)
    return made


def sites(model: ir.Model) -> list[tuple[str, str, str]]:
    return [(site.status, site.spelling, site.reason) for site in lift(model).log.sites if site.kind == "rotary"]


HALF = "RotaryEmbedding(x, Expand(Cos(f)), Expand(Sin(f)))"
PLAIN = f"{COS} {SLICES} {TURNED} {SUM}"


def spelled(model: ir.Model, spell: Spell) -> str:
    node = next(node for node in model.graph if node.op_type == "RotaryEmbedding")
    size = node.attributes.get_int("rotary_embedding_dim", 0)
    return spell(model) + " interleaved" * node.attributes.get_int("interleaved", 0) + (f" of {size}" if size else "")


BSHD = f"{COS.replace('one', 'two')} {SLICES} {TURNED} {SUM}"
POSITIONS = ", int64[B, S] positions"
SHAPES = {
    "a row of cos for each": (
        PLAIN,
        {"f": "float[B, S, 4]"},
        "RotaryEmbedding(x, Cos(f), Sin(f))",
    ),
    "no batch, no heads": (
        f"{DOUBLED} c = Cos(e) s = Sin(e) {SLICES} {TURNED} {SUM}",
        {"f": "float[S, 4]"},
        HALF.replace("Cos(f)", "Reshape(Cos(f))").replace("Sin(f)", "Reshape(Sin(f))"),
    ),
    "batch of one": (
        PLAIN,
        {"x": "float[1, 2, S, 8]"},
        "RotaryEmbedding(x, Cos(f), Sin(f))",
    ),
    "heads behind the length": (
        BSHD,
        {"x": "float[B, S, 2, 8]"},
        "Transpose(RotaryEmbedding(Transpose(x), Expand(Cos(f)), Expand(Sin(f))))",
    ),
    "the length before the batch": (
        f"""g = Unsqueeze(f, one) e = Concat <axis = -1> (g, g) w = Unsqueeze(e, one) c = Cos(w) s = Sin(w)
            {SLICES} {TURNED} {SUM}""",
        {"x": "float[S, B, 2, 8]", "f": "float[S, 4]"},
        "Transpose(RotaryEmbedding(Transpose(x), Expand(Reshape(Cos(f))), Expand(Reshape(Sin(f)))))",
    ),
    "neighbours of a view, made halves": (
        f"""{HALF_COS} z = Reshape(k, one_head) {EVEN.replace("(x,", "(z,")} {APART} o = Concat <axis = -1> (u, v)
            y = Add(x, o)""",
        {"inputs": ", float[B, S, 8] k"},
        f"Add(x, {HALF.replace('(x,', '(Gather(Reshape(k), columns),')})",
    ),
    "a table, by positions": (
        f"""c3 = Gather(table, positions) s3 = Gather(sines, positions)
            c = Unsqueeze(c3, one) s = Unsqueeze(s3, one) {SLICES} {TURNED} {SUM}""",
        {"inputs": ", float[16, 8] table, float[16, 8] sines" + POSITIONS},
        "RotaryEmbedding(x, Gather(table.columns, positions), Gather(sines.columns, positions))",
    ),
    "a table, by length": (
        f"""l = Shape <start = 2, end = 3> (x) c = Slice(table, zero, l, zero) s = Slice(sines, zero, l, zero)
            {SLICES} {TURNED} {SUM}""",
        {"inputs": ", float[16, 8] table, float[16, 8] sines"},
        "RotaryEmbedding(x, Expand(Reshape(Slice(table.columns, 0, Shape(x), 0))), "
        "Expand(Reshape(Slice(sines.columns, 0, Shape(x), 0))))",
    ),
    "a sinusoidal table": (
        f"""g = Gather(sinusoid, positions) h = Unsqueeze(g, one) sh, ch = Split <axis = -1, num_outputs = 2> (h)
            su = Unsqueeze(sh, last) s5 = Concat <axis = -1> (su, su) s = Reshape(s5, flat)
            cu = Unsqueeze(ch, last) c5 = Concat <axis = -1> (cu, cu) c = Reshape(c5, flat) {EVEN} {STACKED} {SUM}""",
        {"inputs": ", float[16, 8] sinusoid" + POSITIONS},
        "RotaryEmbedding(x, Gather(sinusoid.columns, positions), Gather(sinusoid.columns.1, positions)) interleaved",
    ),
    "frequencies doubled in a constant": (
        f"""t = Unsqueeze(positions, last) q = Cast <to = 1> (t) e = Mul(q, inverse)
            {COS[len(DOUBLED) :]} {SLICES} {TURNED} {SUM}""",
        {"inputs": POSITIONS},
        "RotaryEmbedding(x, Cos(Mul(Cast(Unsqueeze(positions)), inverse.columns)), "
        "Sin(Mul(Cast(Unsqueeze(positions)), inverse.columns)))",
    ),
    "part of a packed value": (
        f"x, k, v = Split <axis = -1, num_outputs = 3> (qkv) {COS} {SLICES} {TURNED} {SUM}".replace(
            "x, k", "z, k"
        ).replace("(x,", "(z,"),
        {"inputs": ", float[B, 2, S, 24] qkv"},
        "RotaryEmbedding(Split(qkv), Expand(Cos(f)), Expand(Sin(f)))",
    ),
    "each half cast": (
        f"""{COS} {SLICES.replace("a =", "a0 =").replace("b =", "b0 =")} a = Cast <to = 1> (a0) b = Cast <to = 1> (b0)
            {TURNED} z = Cast <to = 1> (x) {SUM.replace("(x,", "(z,").replace("y =", "o =")} y = Cast <to = 10> (o)""",
        {"x": "float16[B, 2, S, 8]"},
        "Cast(RotaryEmbedding(Cast(x), Expand(Cos(f)), Expand(Sin(f))))",
    ),
    "half precision": (
        PLAIN.replace("c = Unsqueeze(c3, one)", "c4 = Cast <to = 10> (c3) c = Unsqueeze(c4, one)").replace(
            "s = Unsqueeze(s3, one)", "s4 = Cast <to = 10> (s3) s = Unsqueeze(s4, one)"
        ),
        {"x": "float16[B, 2, S, 8]"},
        "RotaryEmbedding(x, Expand(Cast(Cos(f))), Expand(Cast(Sin(f))))",
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_layout_becomes_a_rotary_embedding(name: str, compare: Compare, spell: Spell) -> None:
    body, shapes, expected = SHAPES[name]
    model = tables(make(body, **shapes))
    lifted = lift(model).model
    assert spelled(lifted, spell) == expected
    assert [status for status, _, _ in sites(model)] == ["lifted"]
    half = name == "half precision"  # float16 of results up to 8: two roundings of 4e-3
    compare(model, lifted, cases(model), 4e-3 if half else RTOL, 8e-3 if half else ATOL)


def test_brain_floats_are_lifted_and_proved_in_float32() -> None:
    body = PLAIN.replace("c = Unsqueeze(c3,", "c4 = Cast <to = 16> (c3) c = Unsqueeze(c4,")
    model = make(
        body.replace("s = Unsqueeze(s3,", "s4 = Cast <to = 16> (s3) s = Unsqueeze(s4,"), x="bfloat16[B, 2, S, 8]"
    )
    assert sites(model) == [("lifted", "half-split", "")]


def test_layers_and_operands_share_the_caches(compare: Compare) -> None:
    second = """p = Slice(m, zero, four, last) q = Slice(m, four, end, last) w = Neg(q) t = Concat <axis = -1> (w, p)
        mc = Mul(m, c) ts = Mul(t, s) z = Add(mc, ts)"""
    model = make(f"{COS} {SLICES} {TURNED} {SUM.replace('y =', 'o =')} m = Exp(o) {second} y = Add(o, z)")
    lifted = lift(model)
    ops = [node.op_type for node in lifted.model.graph]
    assert (len(ops), ops.count("RotaryEmbedding"), ops.count("Expand"), ops.count("Cos")) == (10, 2, 2, 1)
    # the second one's caches have the batch of the first one's x
    assert (lifted.prover.asked, len(lifted.prover.proofs)) == (2, 2)
    compare(model, lifted.model, cases(model), RTOL * 10, ATOL * 10)  # exp of 6 enlarges what is given to it


NEAR_MISSES = {
    "halves of other angles": (
        PLAIN.replace(DOUBLED, "g = Exp(f) e = Concat <axis = -1> (f, g)"),
        "cos or sin of the columns 0 and 4, which are a pair, are not shown to be equal",
    ),
    "both signs": (
        f"{COS} {SLICES} n = Neg(b) o = Neg(a) r = Concat <axis = -1> (n, o) {SUM}",
        "cos or sin of the columns 0 and 4",
    ),
    "neighbours with the angles of halves": (f"{COS} {EVEN} {STACKED} {SUM}", "cos or sin of the columns 0 and 1"),
    "halves with the angles of neighbours": (
        f"{PAIRED} {COS[len(DOUBLED) :]} {SLICES} {TURNED} {SUM}",
        "cos or sin of the columns 0 and 4",
    ),
    "turned about": (
        f"{COS} a = Slice(x, zero, three, last) b = Slice(x, three, end, last) {TURNED} {SUM}",
        "the columns are paired neither by halves nor as neighbours",
    ),
    "cos of each head": (
        f"{DOUBLED} c = Cos(e) s = Sin(e) {SLICES} {TURNED} {SUM}",
        "cos and sin of [1, 2, S] differ between the heads",
    ),
    "never put together": (
        f"{HALF_COS} {SLICES} {APART} y = Concat <axis = 2> (u, v)",
        "the columns are paired neither by halves nor as neighbours",
    ),
}


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_a_near_miss_stays_and_says_why(name: str, compare: Compare) -> None:
    body, reason = NEAR_MISSES[name]
    y = "float[B, 2, T, 4]" if name == "never put together" else ""
    model = make(body, y=y, f="float[1, 2, S, 4]" if name == "cos of each head" else "float[1, S, 4]")
    lifted = lift(model)
    found = [site for site in lifted.log.sites if site.kind == "rotary"]
    assert [site.status for site in found] == ["missed"]
    assert reason in found[0].reason
    assert "RotaryEmbedding" not in [node.op_type for node in lifted.model.graph]
    compare(model, lifted.model, cases(model), RTOL, ATOL)


def test_double_is_no_type_of_the_operator() -> None:
    model = make(PLAIN, x="double[B, 2, S, 8]", f="double[1, S, 4]")
    assert sites(model) == [("missed", "products", "it computes in DOUBLE")]


@pytest.mark.parametrize(
    "body",
    [
        f"{COS} z = Exp(x) {SLICES.replace('(x,', '(z,')} {TURNED} {SUM}",
        """a, b = Split <axis = -1, num_outputs = 2> (x) g = Sigmoid(a) h = Tanh(b) u = Mul(a, g) v = Mul(b, h)
           o = Add(u, v) y = Concat <axis = -1> (o, o)""",
        f"{COS} {SLICES} r = Concat <axis = -1> (b, a) {SUM}",
    ],
    ids=["of two values", "gates", "no sign"],
)
def test_a_sum_of_products_is_not_always_a_site(body: str) -> None:
    assert sites(make(body)) == []


def test_what_is_read_elsewhere_stays(compare: Compare) -> None:
    model = make(f"{COS} {SLICES} {TURNED} {SUM.replace('y =', 'o =')} y = Sub(o, r)")
    lifted = lift(model).model
    assert {"RotaryEmbedding", "Neg"} <= {node.op_type for node in lifted.graph}
    compare(model, lifted, cases(model), RTOL, ATOL)


def test_the_proof_sees_halves_that_are_not_equal(monkeypatch: pytest.MonkeyPatch, compare: Compare) -> None:
    monkeypatch.setattr(rotation, "_equal", lambda columns, one, other: True)
    model = make(NEAR_MISSES["halves of other angles"][0])
    lifted = lift(model)
    assert [site.status for site in lifted.log.sites] == ["declined"]
    assert "not equal: differs by" in lifted.log.sites[0].reason
    compare(model, lifted.model, cases(model), RTOL, ATOL)


def test_many_sites_take_time_in_proportion() -> None:
    def seconds(layers: int) -> float:
        body, value = COS, "x"
        for k in range(layers):
            body += f""" a{k} = Slice({value}, zero, four, last) b{k} = Slice({value}, four, end, last)
                n{k} = Neg(b{k}) r{k} = Concat <axis = -1> (n{k}, a{k}) xc{k} = Mul({value}, c) rs{k} = Mul(r{k}, s)
                o{k} = Add(xc{k}, rs{k}) z{k} = Exp(o{k})"""
            value = f"z{k}"
        model = make(f"{body} y = Neg({value})")
        lifted = lift(model)
        assert len(lifted.log.sites) == layers
        return next(step.seconds for step in lifted.trail.steps if step.name == "LiftRotary")

    assert seconds(80) < 16 * seconds(10)  # eight times the work, and what noise there is


def ready(cache: str, positions: str = "", x: str = "float[B, 2, S, 8] x") -> ir.Model:
    tail = ", positions" if positions else ""
    return ir.from_onnx_text(f"""
        <ir_version: 10, opset_import: ["": 23]>
        rotary ({x}, {cache} cos, {cache} sin{positions}) => (float[B, 2, S, 8] y, float[B, 2, S, 8] z) {{
            y = RotaryEmbedding(x, cos, sin{tail})
            m = Neg(x)
            z = RotaryEmbedding(m, cos, sin{tail})
        }}""")


def rotated(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Half-split rotation, pair by pair: (a cos - b sin, b cos + a sin)."""
    a, b = x[..., :4], x[..., 4:]
    cos, sin = cos[:, None], sin[:, None]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (2, 5), (3, 7)])
def test_a_cache_of_one_row_serves_a_larger_batch(run: Run, batch: int, length: int) -> None:
    lifted = lift(ready("float[1, S, 4]"))
    assert [(site.kind, site.status) for site in lifted.log.sites] == [("rotary", "lifted")] * 2
    ops = [node.op_type for node in lifted.model.graph]
    assert ops.count("Expand") == 2  # cos and sin, shared by both readers
    expand = [node for node in lifted.model.graph if node.op_type == "RotaryEmbedding"]
    assert [value.producer().op_type for node in expand for value in node.inputs[1:3]] == ["Expand"] * 4  # type: ignore[union-attr]
    random = np.random.default_rng(0)
    x = random.standard_normal((batch, 2, length, 8)).astype(np.float32)
    cos, sin = (random.standard_normal((1, length, 4)).astype(np.float32) for _ in range(2))
    outputs = run(lifted.model, {"x": x, "cos": cos, "sin": sin})
    np.testing.assert_allclose(outputs["y"], rotated(x, cos, sin), rtol=1e-6, atol=1e-6)  # two products and a sum
    np.testing.assert_allclose(outputs["z"], -outputs["y"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "model",
    [
        ready("float[B, S, 4]"),
        ready("float[64, 4]", ", int64[B, S] positions"),
        ready("float[1, S, 4]", x="float[1, 2, S, 8] x"),
    ],
    ids=["a row for each", "position ids", "a batch of one"],
)
def test_legal_caches_are_left_alone(model: ir.Model) -> None:
    lifted = lift(model).model
    assert [node.op_type for node in lifted.graph] == ["RotaryEmbedding", "Neg", "RotaryEmbedding"]


PARTIAL = """
    <ir_version: 10, opset_import: ["": 23]>
    rotary (float[B, 2, S, 8] x, CACHE cos, CACHE sin TAIL) => (float[B, 2, S, 8] y)
    <int64[1] zero = {0}, int64[1] from = {FROM}, int64[1] four = {4}, int64[1] end = {8}, int64[1] last = {-1}> {
        part = Slice(x, zero, four, last)
        rest = Slice(x, from, end, last)
        turned = RotaryEmbedding <interleaved = 1> (part, cos, sin POSITIONS)
        y = Concat <axis = -1> (turned, rest)
    }"""


@pytest.mark.parametrize(("cache", "tail"), [("float[B, S, 2]", ""), ("float[16, 2]", ", int64[B, S] positions")])
def test_a_ready_made_one_takes_in_the_columns_that_pass(cache: str, tail: str, compare: Compare, spell: Spell) -> None:
    text = (
        PARTIAL.replace("CACHE", cache)
        .replace("TAIL", tail)
        .replace("POSITIONS", tail[:1] + tail[-10:])
        .replace("FROM", "4")
    )
    model = ir.from_onnx_text(text.replace(", positions", ", positions"))
    lifted = lift(model).model
    assert spelled(lifted, spell) == f"RotaryEmbedding(x, cos, sin{', positions' if tail else ''}) interleaved of 4"
    assert sites(model) == [("lifted", "RotaryEmbedding, partial", "")]
    compare(model, lifted, cases(model), RTOL, ATOL)


def test_other_columns_are_not_taken_in() -> None:
    text = PARTIAL.replace("CACHE", "float[B, S, 2]").replace("TAIL", "").replace("POSITIONS", "").replace("FROM", "5")
    model = ir.from_onnx_text(text.replace("float[B, 2, S, 8] y", "float[B, 2, S, 7] y"))
    assert [node.op_type for node in lift(model).model.graph].count("Concat") == 1
    assert sites(model) == [("lifted", "RotaryEmbedding", "")]


def test_a_second_lift_changes_nothing() -> None:
    for model in (
        ready("float[1, S, 4]"),
        make(PLAIN),
        make(SHAPES["heads behind the length"][0], x="float[B, S, 2, 8]"),
    ):
        once = lift(model).model
        twice = lift(once).model
        assert [node.op_type for node in twice.graph] == [node.op_type for node in once.graph]


def test_the_lifted_graph_is_what_the_operator_text_says() -> None:
    proto = ir.to_proto(lift(ready("float[1, S, 4]")).model)
    onnx.checker.check_model(proto, full_check=True)
    shapes = {"x": (3, 2, 5, 8), "cos": (1, 5, 4), "sin": (1, 5, 4)}
    feeds: dict[str, np.ndarray] = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    wanted = rotated(feeds["x"], feeds["cos"], feeds["sin"])
    found = dict(zip(["y"], ReferenceEvaluator(proto).run(["y"], feeds), strict=True))["y"]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
