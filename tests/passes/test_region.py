"""A part of a graph by itself: where it is cut, what is drawn, and how deep, odd or unknown it may be."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphwright.passes.prover import Prover
from graphwright.passes.region import LARGEST, Region, Rows, Trust, UnprovableError, evaluate

Dim = int | str | None
FLOAT = ir.TensorType(ir.DataType.FLOAT)
INT = ir.TensorType(ir.DataType.INT64)
BOOL = ir.TensorType(ir.DataType.BOOL)


def value(name: str, shape: list[Dim] | None, kind: ir.TensorType = FLOAT) -> ir.Value:
    return ir.Value(name=name, type=kind, shape=None if shape is None else ir.Shape(shape))


def op(
    op_type: str, *inputs: ir.Value, kind: ir.TensorType = FLOAT, shape: list[Dim] | None = None, **attributes: object
) -> ir.Value:
    node = ir.node(op_type, list(inputs), attributes)  # type: ignore[arg-type]
    node.outputs[0].type = kind
    node.outputs[0].shape = None if shape is None else ir.Shape(shape)
    return node.outputs[0]


def constant(*numbers: float, dtype: type = np.float32) -> ir.Value:
    array: np.ndarray = np.array(numbers, dtype)
    return ir.Value(
        name=f"c{numbers}",
        const_value=ir.tensor(array),
        shape=ir.Shape(array.shape),
        type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
    )


def chain(start: ir.Value, length: int, shape: list[Dim] | None = None) -> ir.Value:
    for _ in range(length):
        start = op("Relu", start, shape=shape)
    return start


def ops(region: Region) -> list[str]:
    return [node.op_type for node in region.nodes]


def leaves(region: Region) -> list[str | None]:
    return [leaf.name for leaf in region.leaves]


def test_a_leaf_inside_of_another_is_drawn_by_itself() -> None:
    x = value("x", ["n", 8])
    inner = op("Relu", x, shape=["n", 8])
    inner.name = "inner"
    region = Region(op("Add", x, inner), op("Add", inner, x), [x, inner])
    assert leaves(region) == ["x", "inner"]
    assert ops(region) == ["Add", "Add"]
    # so that what holds only between the two is not proved
    largest = op("Max", x, inner)
    assert not Prover().prove(largest, op("Identity", inner), [x, inner]).equal
    assert Prover().prove(largest, op("Identity", inner), [x]).equal


def test_constants_are_what_they_are_but_for_leaves() -> None:
    x, ones = value("x", ["n", 8]), constant(*[1] * 8)
    old = op("Mul", x, ones)
    assert leaves(Region(old, op("Identity", x), [x])) == ["x"]
    assert Prover().prove(old, op("Identity", x), [x]).equal
    assert not Prover().prove(old, op("Identity", x), [x, ones]).equal


def test_a_result_may_be_a_leaf() -> None:
    x = value("x", ["n", 8])
    assert Prover().prove(op("Identity", x), x, [x]).equal
    assert not Prover().prove(op("Neg", x), x, [x]).equal


def test_a_leaf_that_cannot_be_drawn_gives_way_to_what_it_is_computed_from() -> None:
    x = value("x", ["n", 8])
    inner = op("Relu", x)  # its shape is not known
    region = Region(op("Abs", inner), op("Identity", inner), [inner])
    assert leaves(region) == ["x"]
    assert ops(region) == ["Relu", "Abs", "Identity"]


def test_other_data_is_cut_off_where_its_shape_is_known_but_sizes_are_computed() -> None:
    x, ids = value("x", ["n", 8]), value("ids", ["n"], INT)
    other = op("Cast", ids, to=1)  # no shape
    other = op("Unsqueeze", other, constant(1, dtype=np.int64), shape=["n", 1])
    other.name = "other"
    count = op("Cast", op("Shape", x, kind=INT, start=0, end=1, shape=[1]), to=1, shape=[1])
    region = Region(op("Mul", op("Add", x, other), count), op("Mul", op("Add", other, x), count), [x])
    assert leaves(region) == ["x", "other"]
    assert [node for node in ops(region) if node in ("Shape", "Cast", "Unsqueeze")] == ["Shape", "Cast"]


def test_only_the_size_of_what_a_shape_is_read_off_counts() -> None:
    x = value("x", ["n", 8])
    deep = chain(value("z", ["n", 8]), 5, ["n", 8])
    length = op("Shape", deep, kind=INT)
    region = Region(op("Expand", x, length), op("Expand", x, length), [x])
    assert ops(region) == ["Shape", "Expand", "Expand"]


DEPTH = 3000  # more than Python's own stack


def test_a_region_beside_a_deep_graph() -> None:
    x, deep = value("x", ["n", 8]), chain(value("z", ["n", 8]), DEPTH, ["n", 8])
    assert Prover().prove(op("Add", x, deep), op("Add", deep, x), [x]).equal


def test_a_region_that_is_too_large_says_so() -> None:
    x = value("x", ["n", 8])
    for length in (LARGEST + 1, DEPTH):
        deep = chain(x, length)
        proof = Prover().prove(op("Neg", deep), op("Neg", deep), [x])
        assert proof.reason == f"could not be proved: its region has more than {LARGEST} nodes"


NAMES: dict[str, list[Dim]] = {
    "identifiers": ["n", "m"],
    "the same twice": ["n", "n"],
    "with dots": ["DynamicDimension.0", "DynamicDimension.1"],
    "words of Python": ["lambda", "import"],
    "blanks and brackets": ["batch size", "x[0]"],
    "a question mark": ["?", "?"],
    "code": ["__import__('os').abort()", "n"],
    "expressions": ["2*n + m", "floor(m/5 - 2)"],
    "a name of its own that is an expression of others": ["n", "2*n"],
}


@pytest.mark.parametrize("name", NAMES)
def test_dims_may_have_any_name(name: str) -> None:
    x = value("x", [*NAMES[name], 3])
    proof = Prover().prove(op("Neg", op("Neg", x)), op("Identity", x), [x])
    assert proof.equal, proof.reason
    assert not Prover().prove(op("Neg", x), op("Identity", x), [x]).equal


# name -> shapes of q, k and a mask of their product, and the trust at which they can be run together
TRUSTED: dict[str, tuple[list[Dim], list[Dim], list[Dim], Trust | None]] = {
    "names": (["B", "S", 8], ["B", "T", 8], ["B", 1, "T"], "all"),
    "no names": ([None, None, 8], [None, None, 8], [None, 1, 1], "axes"),
    "no names, lengths that must be one": ([None, None, 8], [None, None, 8], [None, 1, None], "lengths"),
    "names that cannot be": (["B", "S", 8], ["B", "T", 8], ["C", 1, "T"], None),
}


@pytest.mark.parametrize("name", TRUSTED)
def test_dims_that_are_not_known_are_guessed(name: str) -> None:
    *shapes, trust = TRUSTED[name]
    q, k, mask = (value(n, shape) for n, shape in zip(("q", "k", "mask"), shapes, strict=True))
    old = op("Add", op("MatMul", q, op("Transpose", k, perm=[0, 2, 1])), mask)
    new = op("Add", mask, op("Einsum", q, k, equation="bid,bjd->bij"))
    proof = Prover().prove(old, new, [q, k, mask])
    assert proof.equal == (trust is not None), proof.reason
    if trust is not None:
        first = Region(old, new, [q, k, mask], trust=trust)
        assert (
            first.names() == {"all": ["B", "S", "T"], "axes": ["axis0", "axis1"], "lengths": ["axis0", "axis1"]}[trust]
        )
    wrong = op("Sub", mask, op("Einsum", q, k, equation="bid,bjd->bij"))
    assert not Prover().prove(old, wrong, [q, k, mask]).equal


UNPROVABLE: dict[str, tuple[ir.Value, str]] = {
    "no shape": (value("x", None), "the shape of 'x' is not known"),
    "no elements": (value("x", ["n", 0]), "no size at any small size"),
    "no type": (ir.Value(name="x", shape=ir.Shape(["n"])), "the type of 'x' is not known"),
    "text": (value("x", ["n"], ir.TensorType(ir.DataType.STRING)), "string"),
    "complex numbers": (value("x", ["n"], ir.TensorType(ir.DataType.COMPLEX64)), "complex64"),
}


@pytest.mark.parametrize("name", UNPROVABLE)
def test_what_cannot_be_run_is_not_proved(name: str) -> None:
    x, message = UNPROVABLE[name]
    kind = x.type if isinstance(x.type, ir.TensorType) else FLOAT
    proof = Prover().prove(op("Identity", x, kind=kind), op("Identity", x, kind=kind), [x])
    assert not proof.equal
    assert message in proof.reason


def test_functions_that_call_functions_go_along() -> None:
    model = ir.from_onnx_text("""
        <ir_version: 10, opset_import: ["": 23, "own": 1]> g (float[n] x) => (float[n] y) { y = own.Outer(x) }
        <domain: "own", opset_import: ["": 23, "own": 1]> Outer (x) => (y) { a = own.Inner(x) y = Neg(a) }
        <domain: "own", opset_import: ["": 23]> Inner (x) => (y) { y = Abs(x) }""")
    x = value("x", ["n"])
    call = ir.node("Outer", [x], domain="own")
    call.outputs[0].type = FLOAT
    proof = Prover(model.functions).prove(call.outputs[0], op("Neg", op("Abs", x)), [x])
    assert proof.equal, proof.reason


def test_rows_without_a_key_are_undefined_wherever_they_lie() -> None:
    q, mask = value("q", ["B", 2, "S", 8]), value("mask", ["B", 1, "S", "T"], BOOL)
    results = {
        "mask": np.array([[True, False], [False, False]])[None, None],
        "old": np.zeros((1, 2, 2, 8)),
        "attention": np.zeros((1, 2, 2, 8)),
    }
    assert Rows(mask).undefined(results)[0, :, :, 0].tolist() == [[False, True]] * 2
    flipped = {**results, "old": np.zeros((1, 2, 8, 2))}
    assert Rows(mask, q, flipped=True).undefined(flipped)[0, :, 0].tolist() == [[False, True]] * 2
    merged = {**results, "old": np.zeros((2, 2, 8))}
    assert Rows(mask, q).undefined(merged)[..., 0].tolist() == [[False, True]] * 2
    added = {**results, "mask": np.where(results["mask"], 0, -np.inf)}
    assert np.array_equal(Rows(mask).undefined(added), Rows(mask).undefined(results))


def test_values_that_follow_from_sizes_are_computed_at_each() -> None:
    x = value("x", ["B", "S", 8])
    table = constant(*range(6), dtype=np.int64)
    length = op("Shape", x, kind=INT, start=1, end=2)
    rows = op("Gather", table, op("Sub", length, constant(1, dtype=np.int64), kind=INT), kind=INT)
    last = op("Add", rows, op("Shape", x, kind=INT, start=0, end=1), kind=INT)
    found = list(evaluate(last, [(3, {"S": 2}), (3, {"S": 7}), (10, {"S": 6}), (3, {"B": 1, "S": 6})], {}))
    assert [None if array is None else array.tolist() for array in found] == [[4], None, [15], [6]]
    x.shape = None
    assert list(evaluate(last, [(3, {"S": 2})], {})) == []


def test_a_dim_without_a_size_is_told() -> None:
    region = Region(op("Neg", x := value("x", ["n", "m"])), x, [x])
    with pytest.raises(UnprovableError, match="the dim 'm' cannot be worked out"):
        region.feeds({"n": 2}, np.random.default_rng(0))
