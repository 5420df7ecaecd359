"""What masks of sizes say: a verdict holds at every legal size, so that a window is none, however wide and said."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphwright.passes.lift import sized_masks
from graphwright.passes.lift.sized_masks import LARGEST, says

Dim = int | str | None
Case = tuple[str, str]

CONSTANTS = """int64 i0 = {0}, int64 i1 = {1}, int64 i3 = {3}, int64 i8 = {8}, int64 i300 = {300}, int64 i5000 = {5000},
    int64[1] a0 = {0}, int64[1] a1 = {1}, int64[1] a2 = {2}, float zero = {0},
    float one = {1}, float hundredth = {0.01}, float low = {-1e9}, float half = {-65504}, float five = {-5},
    bool[1] table = {1}"""
RANGE = """l = Shape<start = 1, end = 2>(x) n = Squeeze(l) r = Range(i0, n, i1)
    q = Unsqueeze(r, a1) k = Unsqueeze(r, a0) d = Sub(q, k) causal = LessOrEqual(k, q)"""
KEYS = f"""{RANGE} lt = Shape<start = 1, end = 2>(y) nt = Squeeze(lt) rt = Range(i0, nt, i1) kt = Unsqueeze(rt, a0)"""
BATCH = f"{RANGE} b = Shape<start = 0, end = 1>(x) nb = Squeeze(b)"


def mask(body: str, shape: list[Dim], table: np.ndarray | None = None) -> ir.Value:
    dtype = "float" if "float m" in body else "bool"
    graph = ir.from_onnx_text(f"""
        <ir_version: 10, opset_import: ["": 23]>
        sized (float[B, S, 8] x, float[B, T, 8] y) => ({dtype}[] m) <{CONSTANTS}> {{
            {body.replace("float m", "m")}
        }}""")
    made = graph.graph.outputs[0]
    made.shape = ir.Shape(shape)
    if table is not None:
        value = graph.graph.initializers["table"]
        value.const_value, value.shape = ir.tensor(table), ir.Shape(table.shape)
        value.dtype = ir.DataType.from_numpy(table.dtype)
    return made


SQUARE: list[Dim] = ["S", "S"]

# name -> how the mask is made, its shape, and what it says
SAID: dict[str, tuple[str, list[Dim], str]] = {
    "causal": (f"{RANGE} m = LessOrEqual(k, q)", SQUARE, "causal"),
    "causal, for batch and heads": (f"{RANGE} m = Unsqueeze(causal, a0)", [1, "S", "S"], "causal"),
    "causal, -inf added": (
        f"{RANGE} sq = Concat<axis = 0>(l, l) o = ConstantOfShape<value = float[1] {{-inf}}>(sq)"
        " float m = Trilu<upper = 1>(o, i1)",
        SQUARE,
        "causal",
    ),
    "causal, a low number added": (f"{RANGE} float m = Where(causal, zero, low)", SQUARE, "causal"),
    "causal, the lowest half added": (f"{RANGE} float m = Where(causal, zero, half)", SQUARE, "causal"),
    "causal from the first key": (f"{KEYS} m = LessOrEqual(kt, q)", ["S", "T"], "causal"),
    "every key": (f"{RANGE} up = Greater(k, q) m = Or(causal, up)", SQUARE, "all"),
    "every key, for a row": (f"{RANGE} m = GreaterOrEqual(k, i0)", [1, "S"], "all"),
    "every key, for a column": (f"{RANGE} m = GreaterOrEqual(q, i0)", ["S", 1], "all"),
    "every key, zeros added": (f"{RANGE} float m = Where(causal, zero, zero)", SQUARE, "all"),
    # windows
    "a window of 3": (f"{RANGE} near = Less(d, i3) m = And(causal, near)", SQUARE, ""),
    "a window of 300": (f"{RANGE} near = Less(d, i300) m = And(causal, near)", SQUARE, ""),
    "a window of 5000": (f"{RANGE} near = Less(d, i5000) m = And(causal, near)", SQUARE, ""),
    "a window of 8 blocks of 8": (
        f"{RANGE} bq = Div(q, i8) bk = Div(k, i8) db = Sub(bq, bk) near = Less(db, i8) m = And(causal, near)",
        SQUARE,
        "",
    ),
    "blocks of 8": (f"{RANGE} bq = Div(q, i8) bk = Div(k, i8) same = Equal(bq, bk) m = And(causal, same)", SQUARE, ""),
    "a window of a hundredth": (
        f"{RANGE} f = Cast<to = 1>(d) g = Mul(f, hundredth) near = Less(g, one) m = And(causal, near)",
        SQUARE,
        "",
    ),
    "a window in the value of a ConstantOfShape": (
        f"{RANGE} sq = Concat<axis = 0>(l, l) w = ConstantOfShape<value = int64[1] {{300}}>(sq) near = Less(d, w)"
        " m = And(causal, near)",
        SQUARE,
        "",
    ),
    "a window around each query": (f"{RANGE} o = Abs(d) m = Less(o, i300)", SQUARE, ""),
    "a window of half the keys": (f"{RANGE} t = Add(d, d) near = Less(t, n) m = And(causal, near)", SQUARE, ""),
    "every key but in long texts": (f"{RANGE} short = Less(n, i300) m = Or(causal, short)", SQUARE, ""),
    # other lengths
    "causal up to the last key": (f"{KEYS} o = Sub(nt, n) q2 = Add(q, o) m = LessOrEqual(kt, q2)", ["S", "T"], ""),
    "the first key, for every query": (f"{RANGE} m = Less(k, i1)", [1, "S"], ""),
    "the first query sees none": (f"{RANGE} m = Less(k, q)", SQUARE, ""),
    "from behind": (f"{RANGE} m = GreaterOrEqual(k, q)", SQUARE, ""),
    # other dims
    "causal in small batches": (
        f"{BATCH} o = Sub(nb, i3) w = Max(o, i0) q2 = Add(q, w) m = LessOrEqual(k, q2)",
        SQUARE,
        "",
    ),
    # added numbers
    "a bias is added": (f"{RANGE} float m = Where(causal, five, low)", SQUARE, ""),
    "low is not low enough": (f"{RANGE} float m = Where(causal, zero, five)", SQUARE, ""),
    # shapes that say nothing
    "unknown lengths": (f"{RANGE} near = Less(d, i300) m = And(causal, near)", [None, None], ""),
    "made-up names": (f"{RANGE} near = Less(d, i300) m = And(causal, near)", ["unk__1", "unk__2"], ""),
    "names that are no expressions": (f"{RANGE} near = Less(d, i300) m = And(causal, near)", ["a b", "?"], ""),
    "a vector": (f"{RANGE} m = GreaterOrEqual(r, i0)", ["S"], ""),
}


@pytest.mark.parametrize("name", SAID)
def test_what_a_mask_of_sizes_says(name: str) -> None:
    body, shape, expected = SAID[name]
    assert says(mask(body, shape), {}) == expected


def positions(count: int) -> np.ndarray:
    return np.subtract.outer(np.arange(count), np.arange(count))


SLICED = "l = Shape<start = 1, end = 2>(x) rows = Slice(table, a0, l, a0) m = Slice(rows, a0, l, a1)"
SHIFTED = "l0 = Shape<start = 1, end = 2>(x) l = Add(l0, a1) rows = Slice(table, a1, l, a0) m = Slice(rows, a1, l, a1)"

# name -> a table that a mask is read from, how, and what it says
TABLES: dict[str, tuple[np.ndarray, str, str]] = {
    "causal": (positions(40) >= 0, SLICED, "causal"),
    "a window of 30": ((positions(40) >= 0) & (positions(40) < 30), SLICED, ""),
    "a window of all but one": ((positions(40) >= 0) & (positions(40) < 39), SLICED, ""),
    "causal from the second row": (positions(40) >= 0, SHIFTED, ""),  # 39 is the longest, which it does not tell
    "causal, too long to be looked at": (
        np.ones((1, 1, LARGEST + 1), bool),
        f"{RANGE} u = Identity(table) c = Unsqueeze(causal, a0) z = Slice(u, a0, a1, a2) m = And(c, z)",
        "",
    ),
    "window of a head": (
        np.full((10, 1, 1), 300),
        f"{RANGE} near = Less(d, table) m = And(causal, near)",
        "",
    ),
    "positions": (
        np.arange(40),
        """l = Shape<start = 1, end = 2>(x) r = Slice(table, a0, l) q = Unsqueeze(r, a1) k = Unsqueeze(r, a0)
        m = LessOrEqual(k, q)""",
        "causal",
    ),
    "positions that start anew": (
        np.arange(40) % 36,
        """l = Shape<start = 1, end = 2>(x) r = Slice(table, a0, l) q = Unsqueeze(r, a1) k = Unsqueeze(r, a0)
        m = LessOrEqual(k, q)""",
        "",
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_what_a_mask_of_a_table_says(name: str) -> None:
    table, body, expected = TABLES[name]
    shape: list[Dim] = [10, "S", "S"] if "head" in name else SQUARE
    assert says(mask(body, shape, table), {}) == expected


def test_nothing_is_said_where_the_length_that_tells_cannot_be_run(monkeypatch: pytest.MonkeyPatch) -> None:
    body, shape, _ = SAID["a window of 300"]
    monkeypatch.setattr(sized_masks, "LARGEST", 200)
    assert says(mask(body, shape), {}) == ""
    assert says(mask(SAID["causal"][0], SQUARE), {}) == "causal"


def test_a_mask_of_fixed_lengths_is_what_it_is() -> None:
    table = positions(6) >= 0
    assert says(mask("m = Identity(table)", [6, 6], table), {}) == "causal"
    assert says(mask("m = Identity(table)", [6, 6], np.ones((6, 6), bool)), {}) == "all"
    assert says(mask("m = Identity(table)", [6, 6], positions(6) <= 0), {}) == ""
    assert says(mask("m = Identity(table)", [1, 1], np.ones((1, 1), bool)), {}) == "all"
