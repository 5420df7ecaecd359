"""Masks spelled by index arithmetic become views of what they read; near misses stay."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import ShapeInferencePass

from graphwright.passes.lift.index_grid import LiftIndexGrid
from graphwright.passes.prover import Prover
from graphwright.passes.sites import SiteLog

Arrays = dict[str, np.ndarray]
Compare = Callable[[ir.Model, ir.Model, Iterable[Arrays], float, float], None]
Spell = Callable[[ir.Model], str]

CONSTANTS = """
    int64 zero = {0}, int64 one = {1}, int64 two = {2}, int64[3] behind = {1, 2, 3}, int64[3] around = {0, 1, 2},
    int64[1] last = {-1}, int64[3] row = {0, 1, 3}, int64[1] single = {1}"""
SIZES = """
    bs = Shape <start = 0, end = 1> (mask)  ls = Shape <start = 1, end = 2> (mask)
    b = Squeeze(bs)  l = Squeeze(ls)"""
GRID = """
    rows = Range(zero, b, one)  columns = Range(zero, l, one)
    r4 = Unsqueeze(rows, behind)  c4 = Unsqueeze(columns, around)
    size = Concat <axis = 0> (bs, single, single, ls)
    re = Expand(r4, size)  ce = Expand(c4, size)  r5 = Unsqueeze(re, last)  c5 = Unsqueeze(ce, last)"""
GATHER = "indices = Concat <axis = -1> (r5, c5)  g = GatherND(mask, indices)"
ALWAYS = """
    queries = Range(zero, l, one)  q4 = Unsqueeze(queries, row)  always = GreaterOrEqual(q4, zero)"""


def make(body: str, output: str) -> ir.Model:
    model = ir.from_onnx_text(f"""
        <ir_version: 10, opset_import: ["": 23]>
        masks (bool[B, S] mask) => ({output}) <{CONSTANTS}> {{ {SIZES} {body} }}""")
    ShapeInferencePass()(model)
    sizes: dict[str, list[int | str]] = {
        "g": ["B", 1, 1, "S"],
        "q4": [1, 1, "S", 1],
        "always": [1, 1, "S", 1],
        "y": ["B", 1, "S", "S"],
    }
    known: dict[str, list[int | str]] = {
        "rows": ["B"],
        "columns": ["S"],
        "queries": ["S"],
        "re": ["B", 1, 1, "S"],
        "ce": ["B", 1, 1, "S"],
    }
    for node in model.graph:
        for value in node.outputs:
            if value.name in sizes | known and not value.is_graph_output():
                value.shape = ir.Shape((sizes | known)[str(value.name)])
    return model


def lifted(model: ir.Model) -> tuple[ir.Model, bool]:
    after = model.clone()
    return after, LiftIndexGrid(SiteLog(), Prover(after.functions))(after).modified


def feeds(batch: int, length: int) -> Arrays:
    return {"mask": np.random.default_rng(0).random((batch, length)) > 0.5}


CASES = [feeds(1, 1), feeds(1, 7), feeds(3, 5)]
GIVES = "bool[B, 1, 1, S] y"


def test_a_gather_of_an_index_grid_is_a_view(compare: Compare, spell: Spell) -> None:
    model = make(f"{GRID} {GATHER} y = Not(g)", GIVES)
    after, modified = lifted(model)
    assert modified
    assert spell(after) == "Not(Unsqueeze(mask))"
    compare(model, after, CASES, 0, 0)


def test_what_sizes_make_true_is_left_out(compare: Compare, spell: Spell) -> None:
    model = make(f"{GRID} {GATHER} {ALWAYS} a = And(always, g)  y = Not(a)", "bool[B, 1, S, S] y")
    after, modified = lifted(model)
    assert modified
    assert spell(after) == "Not(Expand(Unsqueeze(mask)))"
    compare(model, after, CASES, 0, 0)


@pytest.mark.parametrize(
    ("body", "output"),
    [
        (GRID.replace("Range(zero, l, one)", "Range(one, l, one)") + GATHER + " y = Not(g)", GIVES),
        (GRID.replace("Range(zero, b, one)", "Range(zero, b, two)") + GATHER + " y = Not(g)", GIVES),
        (GRID + GATHER.replace("r5, c5", "c5, r5") + " y = Not(g)", GIVES),
        (GRID + "t = Transpose <perm = [1, 0]> (mask)" + GATHER.replace("mask", "t") + " y = Not(g)", GIVES),
        (f"{GRID} {GATHER} {ALWAYS.replace('q4, zero', 'q4, one')} y = And(always, g)", "bool[B, 1, S, S] y"),
        (f"{GRID} {GATHER} {ALWAYS} y = Or(always, g)", "bool[B, 1, S, S] y"),
    ],
    ids=["starts at 1", "every other row", "axes swapped", "other data", "not the first query", "Or"],
)
def test_near_misses_stay(body: str, output: str) -> None:
    model = make(body, output)
    wanted = 1 if "always" in body else 0  # of the last two the gather is a grid all the same
    after, modified = lifted(model)
    left = [node.op_type for node in after.graph]
    assert left.count("GatherND") == 1 - wanted
    assert left.count("And") == [node.op_type for node in model.graph].count("And")
    assert modified == bool(wanted)


def test_a_grid_that_is_misread_is_declined_by_its_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    module = import_module("graphwright.passes.lift.index_grid")
    monkeypatch.setattr(module, "_grid_axes", lambda node: [0, 3])
    after, modified = lifted(
        make(GRID.replace("Range(zero, l, one)", "Range(one, l, one)") + GATHER + "y = Not(g)", GIVES)
    )
    assert not modified
    assert "GatherND" in [node.op_type for node in after.graph]
