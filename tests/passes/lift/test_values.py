"""The questions that lift rules ask of values, and the constants and ops that they add."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphwright.passes.lift.values import (
    add_constant,
    broadcast,
    constant,
    consumers,
    dim,
    insert,
    once,
    only_consumer,
    producer,
    rank,
    same_shape,
    scalar,
    split_scalar,
)
from graphwright.spec import PATH


@pytest.fixture
def model() -> ir.Model:
    return ir.from_onnx_text("""
        <ir_version: 10, opset_import: ["": 23, "local": 1]>
        values (float[B, 1, 4] x, float[3, 1] w) => (float[B, 3, 4] y, float[B, 1, 4] z)
        <float two = {2.0}, float[1, 1] one = {1.0}, float[2] pair = {1, 2}, float[0] none = {}> {
            a = Mul(x, two)
            b = Mul(two, one)
            z = Add(a, a)
            y = Add(a, w)
            c = local.Mul(x)
            d = Constant <value_float = 4.0> ()
            e = Add(z, d)
            f = Add(e, pair)
        }""")


@pytest.fixture
def values(model: ir.Model) -> dict[str, ir.Value]:
    return ir.convenience.create_value_mapping(model.graph)


def test_constants(values: dict[str, ir.Value]) -> None:
    assert scalar(values["two"]) == 2
    assert scalar(values["one"]) == 1
    assert scalar(values["d"]) == 4
    assert [scalar(values[name]) for name in ("pair", "none", "x", "a")] == [None] * 4
    assert scalar(None) is None
    array = constant(values["pair"])
    assert array is not None
    np.testing.assert_array_equal(array, [1, 2])
    assert constant(values["x"]) is None


def test_producers_and_consumers(values: dict[str, ir.Value]) -> None:
    assert producer(values["x"]) is None
    assert producer(values["c"]) is None  # of another domain
    assert producer(values["a"], "Add") is None
    mul = producer(values["a"], "Mul", "Div")
    assert mul is values["a"].producer()
    assert [node.op_type for node in consumers(values["a"])] == ["Add", "Add"]  # a + a reads it once
    assert only_consumer(values["a"]) is None
    assert only_consumer(values["z"]) is None  # an output
    assert only_consumer(values["e"]) is values["f"].producer()
    assert only_consumer(values["e"], "Mul") is None


def test_split_scalar(values: dict[str, ir.Value]) -> None:
    def split(name: str) -> tuple[str | None, float] | None:
        node = values[name].producer()
        assert node is not None
        parts = split_scalar(node)
        return None if parts is None else (parts[0].name, parts[1])

    assert split("a") == ("x", 2)
    assert split("e") == ("z", 4)
    assert split("b") is None  # both are constants
    assert split("y") is None
    assert split("f") is None  # two elements


def test_dims(values: dict[str, ir.Value]) -> None:
    assert [dim(values["x"], axis) for axis in (0, 1, -1, 3, -4)] == ["B", 1, 4, None, None]
    assert rank(values["x"]) == 3
    assert rank(values["a"]) is None
    assert rank(None) is None
    assert dim(None, 0) is None


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ([["B", 1, 4], [3, 1]], "[B,3,4]"),
        ([["B", 1, 4], []], "[B,1,4]"),
        ([["B"], ["B"]], "[B]"),
        ([["B"], ["S"]], "[None]"),
        ([[None], [1]], "[None]"),
        ([[None], [4]], "[4]"),
        ([[1], [1]], "[1]"),
        ([[], []], "[]"),
    ],
)
def test_broadcast(shapes: list[list[int | str | None]], expected: str) -> None:
    assert str(broadcast([ir.Value(shape=ir.Shape(shape)) for shape in shapes])) == expected


def test_broadcast_of_an_unknown_rank_is_unknown() -> None:
    assert broadcast([ir.Value(shape=ir.Shape([1])), ir.Value()]) is None


def test_a_constant_is_reused_by_name_and_content(model: ir.Model) -> None:
    first = add_constant(model.graph, "c", np.array([1, 2], np.float32))
    assert add_constant(model.graph, "c", np.array([1, 2], np.float32)) is first
    others = [
        add_constant(model.graph, "c", array)
        for array in (np.array([1, 3], np.float32), np.array([[1, 2]], np.float32), np.array([1, 2], np.float64))
    ]
    assert [value.name for value in others] == ["c.1", "c.2", "c.3"]
    assert [(value.dtype, str(value.shape)) for value in (first, *others)] == [
        (ir.DataType.FLOAT, "[2]"),
        (ir.DataType.FLOAT, "[2]"),
        (ir.DataType.FLOAT, "[1,2]"),
        (ir.DataType.DOUBLE, "[2]"),
    ]
    kept = constant(model.graph.initializers["c"])
    assert kept is not None
    np.testing.assert_array_equal(kept, [1, 2])


def test_an_inserted_op_stands_before_and_has_the_path(model: ir.Model, values: dict[str, ir.Value]) -> None:
    before = values["y"].producer()
    assert before is not None
    before.metadata_props[PATH] = "block.norm"
    made = insert(before, "Transpose", [values["w"]], perm=[1, 0], other=None)
    node = made.producer()
    assert node is not None
    nodes = list(model.graph)
    assert nodes.index(node) == nodes.index(before) - 1
    assert node.metadata_props == {PATH: "block.norm"}
    assert list(node.attributes) == ["perm"]


def test_an_op_is_made_once_for_the_same_inputs(model: ir.Model, values: dict[str, ir.Value]) -> None:
    before = values["f"].producer()
    assert before is not None
    made = once(before, "Add", [values["x"], values["w"]])
    assert once(before, "Add", [values["x"], values["w"]]) is made
    assert once(before, "Add", [values["x"], values["x"]]) is not made
    assert once(before, "Sub", [values["x"], values["w"]]) is not made
    assert (made.dtype, str(made.shape)) == (ir.DataType.FLOAT, "[B,3,4]")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (["B", 3], ["B", 3], True),
        (["B", 3], ["C", 3], False),
        (["B", 3], ["B", 1], False),
        ([3], [1, 3], False),
        ([None, 3], [None, 3], False),  # two dims that nothing is known of
        (None, None, False),
        ([], [], True),
    ],
)
def test_one_shape_is_known_to_be_another(
    one: list[int | str | None] | None, other: list[int | str | None] | None, same: bool
) -> None:
    made = [ir.Value(name="v", shape=None if dims is None else ir.Shape(dims)) for dims in (one, other)]
    assert same_shape(*made) is same
