"""No leftovers behind the lift rules; what the graph computes and its outputs' names stay."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import onnx_ir as ir
import pytest

from graphwright.passes import lift
from graphwright.passes.lift.tidy import DropIdentities, Tidy

Arrays = dict[str, np.ndarray]
Run = Callable[[ir.Model, Arrays], Arrays]
Compare = Callable[[ir.Model, ir.Model, Iterable[Arrays], float, float], None]
Spell = Callable[[ir.Model], str]


def make(body: str, outputs: str = "float[B, 3, 4] y", constants: str = "") -> ir.Model:
    return ir.from_onnx_text(f"""
        <ir_version: 8, opset_import: ["": 23]>
        tidy (float[B, 3, 4] x, bool flag) => ({outputs}) <{constants or "int64[1] last = {-1}"}> {{ {body} }}""")


def cases() -> list[Arrays]:
    random = np.random.default_rng(0)
    return [
        {"x": random.standard_normal((batch, 3, 4)).astype(np.float32), "flag": np.array(flag)}
        for batch in (1, 3)
        for flag in (True, False)
    ]


@pytest.mark.parametrize(
    ("body", "outputs", "expected"),
    [
        ("i = Identity(x)  r = Relu(i)  j = Identity(r)  y = Neg(j)", "y", "Neg(Relu(x))"),
        ("r = Relu(x)  y = Identity(r)", "y", "Relu(x)"),
        ("y = Identity(x)", "y", "Identity(x)"),
        ("y = Relu(x)  z = Identity(y)", "y, z", "Relu(x); Identity(Relu(x))"),
        ("r = Relu(x)  y = Identity(r)  z = Identity(r)", "y, z", "Relu(x); Identity(Relu(x))"),
        ("r = Relu(x)  y = Identity(r)  z = Neg(y)", "y, z", "Relu(x); Neg(Relu(x))"),
        ("y = Identity(w)", "y", "Identity(w)"),
    ],
)
def test_identities_go_but_for_those_that_name_an_output(
    body: str, outputs: str, expected: str, compare: Compare, spell: Spell
) -> None:
    constants = "float[1, 3, 4] w = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}"
    declared = ", ".join(f"float[{'1' if 'w' in body else 'B'}, 3, 4] {name}" for name in outputs.split(", "))
    model = make(body, declared, constants=constants)
    after = model.clone()
    DropIdentities()(after)
    assert spell(after) == expected
    assert [value.name for value in after.graph.outputs] == outputs.split(", ")
    compare(model, after, cases(), 0, 0)


BRANCHES = """
    r = Relu(x)
    y = If (flag) <
        then_branch = then () => (float[B, 3, 4] a) { a = Identity(r) },
        else_branch = other () => (float[B, 3, 4] b) { n = Neg(r) m = Identity(n) b = Abs(m) }
    >"""


def test_a_body_does_not_give_a_value_from_outside(compare: Compare) -> None:
    model = make(BRANCHES)
    after = lift(model).model
    (branch,) = [node for node in after.graph if node.op_type == "If"]
    bodies = {name: branch.attributes[name].as_graph() for name in ("then_branch", "else_branch")}
    assert {name: [node.op_type for node in body] for name, body in bodies.items()} == {
        "then_branch": ["Identity"],
        "else_branch": ["Neg", "Abs"],
    }
    compare(model, after, cases(), 0, 0)


def test_tidy_leaves_out_what_is_not_read_and_computes_equal_things_once(compare: Compare, spell: Spell) -> None:
    model = make(
        """dead = Neg(x)  c = Constant <value = float {2.0}> ()  d = Constant <value = float {2.0}> ()
           a = Mul(x, c)  b = Mul(x, d)  y = Add(a, b)""",
        constants="float[2] unread = {1, 2}",
    )
    after = model.clone()
    assert Tidy()(after).modified
    assert spell(after) == "Add(Mul(x, 2), Mul(x, 2))"
    assert [node.op_type for node in after.graph] == ["Mul", "Add"]
    assert list(after.graph.initializers) == ["c"]
    compare(model, after, cases(), 0, 0)


def test_random_numbers_are_drawn_as_often_as_before() -> None:
    model = make("a = RandomNormalLike(x)  b = RandomNormalLike(x)  y = Sub(a, b)")
    Tidy()(model)
    assert [node.op_type for node in model.graph] == ["RandomNormalLike", "RandomNormalLike", "Sub"]


def test_equal_outputs_keep_their_names(run: Run) -> None:
    model = make("a = Relu(x)  b = Relu(x)  y = Neg(a)  z = Neg(b)", "float[B, 3, 4] y, float[B, 3, 4] z")
    once = lift(model).model
    twice = lift(once).model
    for case in cases():
        for after in (once, twice):
            outputs = run(after, case)
            assert list(outputs) == ["y", "z"]
            np.testing.assert_array_equal(outputs["y"], outputs["z"])
            np.testing.assert_array_equal(outputs["y"], run(model, case)["y"])
    assert sum(node.op_type == "Neg" for node in twice.graph) == 1
