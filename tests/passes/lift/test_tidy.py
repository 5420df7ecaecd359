"""One opset before the lift rules, no leftovers behind them; what the graph computes and its outputs' names stay."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import onnx_ir as ir
import pytest

from graphwright.errors import BuildError
from graphwright.passes import lift
from graphwright.passes.lift.tidy import ConvertOpset, DropIdentities, Fold, Tidy
from graphwright.spec import PATH

Arrays = dict[str, np.ndarray]
Run = Callable[[ir.Model, Arrays], Arrays]
Compare = Callable[[ir.Model, ir.Model, Iterable[Arrays], float, float], None]
Spell = Callable[[ir.Model], str]


def make(
    body: str, outputs: str = "float[B, 3, 4] y", opset: int = 23, constants: str = "", functions: str = ""
) -> ir.Model:
    local = ', "local": 1' if functions else ""
    return ir.from_onnx_text(f"""
        <ir_version: 8, opset_import: ["": {opset}{local}]>
        tidy (float[B, 3, 4] x, bool flag) => ({outputs}) <{constants or "int64[1] last = {-1}"}> {{ {body} }}
        {functions}""")


def cases() -> list[Arrays]:
    random = np.random.default_rng(0)
    return [
        {"x": random.standard_normal((batch, 3, 4)).astype(np.float32), "flag": np.array(flag)}
        for batch in (1, 3)
        for flag in (True, False)
    ]


OLD = {
    # the last: Softmax over all axes from the first on, and Squeeze and ReduceMean with axes as attributes
    11: "u = Unsqueeze <axes = [0]> (x)  q = Squeeze <axes = [0]> (u)  m = ReduceMean <axes = [-1]> (q)  d = Sub(q, m)"
    "  y = Softmax(d)",
    13: "m = ReduceMean <axes = [-1]> (x)  d = Sub(x, m)  y = Softmax(d)",
    17: "m = ReduceMean <axes = [-1]> (x)  d = Sub(x, m)  y = Softmax <axis = 1> (d)",
    18: "m = ReduceMean(x, last)  d = Sub(x, m)  y = Softmax(d)",
    22: "m = ReduceMean(x, last)  d = Sub(x, m)  y = Softmax <axis = 1> (d)",
}


@pytest.mark.parametrize("opset", OLD)
def test_an_older_graph_becomes_opset_23(opset: int, compare: Compare, spell: Spell) -> None:
    model = make(OLD[opset], opset=opset)
    model.graph.node(-1).name = "weights"
    after = model.clone()
    assert ConvertOpset()(after).modified
    assert after.opset_imports[""] == 23
    assert after.ir_version == 10
    ops = {node.op_type for node in after.graph} - {"Constant", "Identity", "Flatten", "Shape", "Reshape"}
    assert ops == {"ReduceMean", "Sub", "Softmax"} | ({"Squeeze", "Unsqueeze"} if opset == 11 else set())
    assert all(not node.attributes.get_ints("axes") for node in after.graph)
    compare(model, after, cases(), 1e-6, 1e-7)  # the same float32 ops; rounded where the converter reshapes


def test_a_graph_of_opset_23_stays(spell: Spell) -> None:
    model = make("y = Relu(x)")
    assert not ConvertOpset()(model).modified
    assert model.ir_version == 10  # the oldest runtime reads no newer one
    assert spell(model) == "Relu(x)"


def test_paths_survive_a_conversion() -> None:
    model = make("r = Relu(x)  y = Softmax(r)", opset=20)
    for node in model.graph:
        node.metadata_props[PATH] = f"block.{node.op_type}"
    ConvertOpset()(model)
    assert [node.metadata_props[PATH] for node in model.graph] == ["block.Relu", "block.Softmax"]


def test_a_newer_graph_is_refused() -> None:
    with pytest.raises(
        BuildError, match=r"The graph is of opset 24; this version reads up to 23\. Export it at opset 23"
    ):
        lift(make("y = Relu(x)", opset=24))


def test_a_graph_that_cannot_be_converted_is_refused() -> None:
    with pytest.raises(BuildError, match=r"The graph of opset 9 could not be converted to 23\."):
        lift(make("y = Imaginary(x)", opset=9))


def test_fold_inlines_functions_and_folds_constants(compare: Compare, spell: Spell) -> None:
    model = make(
        "two = Add(one, one)  z = local.twice(x)  y = Mul(z, two)",
        constants="float one = {1.0}",
        functions='<domain: "local", opset_import: ["": 23]> twice (a) => (b) { b = Add(a, a) }',
    )
    after = model.clone()
    assert Fold()(after).modified
    assert spell(after) == "Mul(Add(x, x), 2)"
    assert not after.functions
    compare(model, after, cases(), 0, 0)  # doubling is exact


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
