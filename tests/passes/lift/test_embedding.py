"""What is constant in an embedding becomes a constant; the rest is a Gather as before."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import onnx_ir as ir
import pytest

from graphwright.passes import lift
from graphwright.passes.lift import embedding

Arrays = dict[str, np.ndarray]
Compare = Callable[[ir.Model, ir.Model, Iterable[Arrays], float, float], None]
Spell = Callable[[ir.Model], str]

CONSTANTS = """
    int64 nought = {0}, int64 unit = {1}, int64[1] zero = {0}, int64[1] one = {1},
    int64[1, 8] zeros = {0, 0, 0, 0, 0, 0, 0, 0},
    int64[1, 8] order = {0, 1, 2, 3, 4, 5, 6, 7}, int64[1, 8] turned = {7, 6, 5, 4, 3, 2, 1, 0}, int64[1] none = {-1},
    int64[1, 8] some = {0, 1, 0, 0, 0, 0, 0, 0}, int64[1, 8] nines = {9, 9, 9, 9, 9, 9, 9, 9},
    float[2, 4] types = {1, 2, 3, 4, 5, 6, 7, 8},
    float[8, 4] places = {
        1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4, 5
    },
    float[3, 4] words = {0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.2}
"""
SIZES = "n = Shape <start = 0, end = 1> (ids) l = Shape <start = 1, end = 2> (ids) t = Concat <axis = 0> (n, l)"
WORDS = "w = Gather(words, ids)"


def make(body: str) -> ir.Model:
    return ir.from_onnx_text(f"""
        <ir_version: 10, opset_import: ["": 23]>
        embedding (int64[B, S] ids) => (float[B, S, 4] y) <{CONSTANTS}> {{ {SIZES} {WORDS} {body} }}""")


def feeds(batch: int, length: int) -> Arrays:
    return {"ids": np.random.default_rng(0).integers(0, 3, (batch, length))}


CASES = [feeds(1, 1), feeds(1, 7), feeds(3, 5)]
FOLDED = {
    "token types of zeros": (
        "z = Expand(nought, t) k = Gather(types, z) y = Add(w, k)",
        "Add(Gather(words, ids), types.0)",
        "one row of a table",
    ),
    "token types of ones": (
        "z = ConstantOfShape <value = int64[1] {1}> (t) k = Gather(types, z) y = Add(k, w)",
        "Add(Gather(words, ids), types.1)",
        "one row of a table",
    ),
    "token types of a buffer of zeros": (
        """p = Slice(order, zero, l, one) g = GatherElements <axis = 1> (zeros, p) z = Expand(g, t)
           k = Gather(types, z) y = Add(w, k)""",
        "Add(Gather(words, ids), types.0)",
        "one row of a table",
    ),
    "positions of a buffer": (
        "p = Slice(order, zero, l, one) k = Gather(places, p) y = Add(w, k)",
        "Add(Gather(words, ids), Slice(places.rows, 0, Shape(ids), 1))",
        "rows in a fixed order",
    ),
    "positions in another order": (
        "p = Slice(turned, zero, l, one) k = Gather(places, p) y = Add(w, k)",
        "Add(Gather(words, ids), Slice(places.rows, 0, Shape(ids), 1))",
        "rows in a fixed order",
    ),
}


@pytest.mark.parametrize("name", FOLDED)
def test_what_is_constant_is_a_constant(name: str, compare: Compare, spell: Spell) -> None:
    body, expected, spelling = FOLDED[name]
    model = make(body)
    lifted = lift(model)
    assert spell(lifted.model) == expected
    assert sorted((site.kind, site.status, site.spelling) for site in lifted.log.sites) == [
        ("embedding", "lifted", "Gather"),
        ("embedding", "lifted", spelling),
    ]
    compare(model, lifted.model, CASES, 0, 0)


LEFT = {
    "token types that are not all one": (
        "p = Slice(some, zero, l, one) z = Expand(p, t) k = Gather(types, z) y = Add(w, k)"
    ),
    "rows that do more than be added": "z = Expand(nought, t) k = Gather(types, z) m = Mul(w, k) y = Add(m, k)",
    "a sum that the rows make larger": (
        "z = Expand(nought, t) k = Gather(types, z) v = Slice(w, zero, one, one) y = Add(v, k)"
    ),
    "rows of a table that something else reads": (
        "p = Slice(order, zero, l, one) k = Gather(places, p) r = Gather(places, ids) v = Add(w, r) y = Add(v, k)"
    ),
    "an axis counted from the end": "p = Slice(order, zero, l, none) k = Gather(places, p) y = Add(w, k)",
    "ids by a count": "q = Squeeze(l) p = Range(nought, q, unit) k = Gather(places, p) y = Add(w, k)",
}


@pytest.mark.parametrize("name", LEFT)
def test_anything_else_is_a_gather(name: str, compare: Compare) -> None:
    model = make(LEFT[name])
    lifted = lift(model)
    assert [node.op_type for node in lifted.model.graph].count("Gather") >= 2
    assert not [name for name in lifted.model.graph.initializers if "rows" in name or "types." in name]
    assert {(site.status, site.spelling) for site in lifted.log.sites} == {("lifted", "Gather")}
    compare(model, lifted.model, CASES, 0, 0)


def test_a_row_that_the_table_lacks_is_left_to_fail_at_run_time() -> None:
    model = make("p = Slice(nines, zero, l, one) z = Expand(p, t) k = Gather(types, z) y = Add(w, k)")
    assert [node.op_type for node in lift(model).model.graph].count("Gather") == 2


def test_a_gather_inside_of_an_attention_is_no_site() -> None:
    model = make("p = Slice(order, zero, l, one) k = Gather(places, p) e = Exp(k) y = Mul(w, e)")
    assert [site.spelling for site in lift(model).log.sites] == ["Gather"]


def test_the_proof_sees_ids_that_are_not_all_one(monkeypatch: pytest.MonkeyPatch, compare: Compare) -> None:
    monkeypatch.setattr(embedding, "_uniform", lambda value: 0 if value.name == "z" else None)
    model = make(LEFT["token types that are not all one"])
    lifted = lift(model)
    assert [site.status for site in lifted.log.sites] == ["lifted", "declined"]
    assert "not equal: differs by" in lifted.log.sites[1].reason
    compare(model, lifted.model, CASES, 0, 0)
