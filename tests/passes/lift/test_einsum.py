"""Einsum of two tensors becomes a product of matrices where it is one, whatever its labels; else it stays."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import onnx_ir as ir
import pytest

from graphwright.passes.lift import einsum
from graphwright.passes.lift.einsum import UnfoldEinsum
from graphwright.passes.prover import Prover

Arrays = dict[str, np.ndarray]
Compare = Callable[[ir.Model, ir.Model, Iterable[Arrays], float, float], None]
Spell = Callable[[ir.Model], str]

RTOL, ATOL = 1e-6, 2e-6  # float32, sums of at most 16 products of size 1


def model(equation: str, a: str, b: str, y: str, weight: str = "") -> ir.Model:
    """An Einsum of a and b, of which `weight` names the one that is a constant."""
    inputs = ", ".join(f"float[{dims}] {name}" for name, dims in (("a", a), ("b", b)) if name != weight)
    constant = f"<float {weight} = {{0}}>" if weight else ""
    made = ir.from_onnx_text(f"""
        <ir_version: 10, opset_import: ["": 23]>
        product ({inputs}) => (float[{y}] y) {constant} {{
            e = Einsum<equation = "{equation}">(a, b) y = Identity(e)
        }}""")
    made.graph.node(0).outputs[0].shape = made.graph.outputs[0].shape
    made.graph.node(0).outputs[0].dtype = ir.DataType.FLOAT
    if weight:
        shape = [int(size) for size in {"a": a, "b": b}[weight].split(",")]
        array: np.ndarray = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
        value = made.graph.initializers[weight]
        value.const_value, value.shape = ir.tensor(array), ir.Shape(shape)
    return made


def cases(graph: ir.Model) -> Iterator[Arrays]:
    random = np.random.default_rng(0)
    for size in ({"B": 1, "S": 1, "T": 1}, {"B": 3, "S": 4, "T": 5}, {"B": 2, "S": 7, "T": 2}):
        yield {
            str(value.name): random.standard_normal(
                [dim if isinstance(dim, int) else size[str(dim.value)] for dim in value.shape or ()]
            ).astype(np.float32)
            for value in graph.graph.inputs
        }


# name -> the graph, what it becomes, and the shape of that
UNFOLDED: dict[str, tuple[ir.Model, str, str]] = {
    "scores": (
        model("bihd,bjhd->bhij", "B, S, 2, 8", "B, T, 2, 8", "B, 2, S, T"),
        "MatMul(Transpose(a), Transpose(b))",
        "[B,2,S,T]",
    ),
    "spaces and capitals": (
        model(" B i D, B D j -> B i j ", "B, S, 8", "B, 8, T", "B, S, T"),
        "MatMul(a, b)",
        "[B,S,T]",
    ),
    "result in another order": (
        model("bid,bjd->jib", "B, S, 8", "B, T, 8", "T, S, B"),
        "Transpose(MatMul(a, Transpose(b)))",
        "[T,S,B]",
    ),
    "labels of one side broadcast": (
        model("bihd,bjd->bhij", "B, S, 2, 8", "B, T, 8", "B, 2, S, T"),
        "MatMul(Transpose(a), Unsqueeze(Transpose(b)))",
        "[B,2,S,T]",
    ),
    "labels of the other side broadcast": (
        model("bjd,bihd->bhij", "B, T, 8", "B, S, 2, 8", "B, 2, S, T"),
        "MatMul(Transpose(b), Unsqueeze(Transpose(a)))",
        "[B,2,S,T]",
    ),
    "labels of weights broadcast, which are larger than the result": (
        model("bghij,bgjd->bighd", "B, 2, 3, S, T", "B, 2, T, 8", "B, S, 2, 3, 8"),
        "Transpose(MatMul(a, Unsqueeze(b)))",
        "[B,S,2,3,8]",
    ),
    "labels broadcast in front of the batch": (
        model("bihd,jhd->bhij", "B, S, 2, 8", "T, 2, 8", "B, 2, S, T"),
        "MatMul(Transpose(a), Transpose(b))",
        "[B,2,S,T]",
    ),
    "a batch between the labels of one side": (
        model("bhid,ijd->bhij", "B, 2, 4, 8", "4, T, 8", "B, 2, 4, T"),
        "Transpose(MatMul(Transpose(a), Transpose(b)))",
        "[B,2,4,T]",
    ),
    "labels of both sides": (
        model("bihd,bjkd->bhijk", "B, S, 2, 8", "B, T, 3, 8", "B, 2, S, T, 3"),
        "Reshape(MatMul(Transpose(a), Unsqueeze(Reshape(Transpose(b)))))",
        "[B,2,S,T,3]",
    ),
    "several labels summed": (
        model("bihd,bjdh->bij", "B, S, 2, 8", "B, T, 8, 2", "B, S, T"),
        "MatMul(Reshape(a), Reshape(Transpose(b)))",
        "[B,S,T]",
    ),
    "ellipsis": (
        model("...id,...jd->...ij", "B, 2, S, 8", "B, 2, T, 8", "B, 2, S, T"),
        "MatMul(a, Transpose(b))",
        "[B,2,S,T]",
    ),
    "ellipsis of no axes, no arrow": (model("...id,...dj", "S, 8", "8, T", "S, T"), "MatMul(a, b)", "[S,T]"),
    "no arrow: the alphabet's order, and b is summed": (
        model("bzd,bdj", "B, S, 8", "B, 8, T", "T, S"),
        "Transpose(MatMul(Reshape(Transpose(a)), Reshape(b)))",
        "[T,S]",
    ),
    "one b for the batch, on the left": (
        model("bid,bdj->bij", "1, S, 8", "B, 8, T", "B, S, T"),
        "MatMul(a, b)",
        "[B,S,T]",
    ),
    "one b for the batch, on the right": (
        model("bid,bdj->bij", "B, S, 8", "1, 8, T", "B, S, T"),
        "MatMul(a, b)",
        "[B,S,T]",
    ),
    "one b for the batch, and labels broadcast": (
        model("bihd,bdj->bihj", "1, 4, 2, 8", "3, 8, 5", "3, 4, 2, 5"),
        "MatMul(a, Unsqueeze(b))",
        "[3,4,2,5]",
    ),
    "weight": (model("bnd,dh->bnh", "B, S, 8", "8, 6", "B, S, 6", "b"), "MatMul(a, b)", "[B,S,6]"),
    "weight first": (model("hd,bnd->bnh", "6, 8", "B, S, 8", "B, S, 6", "a"), "MatMul(b, a.d.h)", "[B,S,6]"),
    "weight first, one for the batch": (
        model("bihd,bjd->bhij", "1, 4, 2, 8", "B, T, 8", "B, 2, 4, T", "a"),
        "Transpose(Reshape(MatMul(b, a.b.d.ih)))",
        "[B,2,4,T]",
    ),
    "weight of two labels summed": (
        model("bihd,ohd->bio", "B, S, 2, 8", "6, 2, 8", "B, S, 6", "b"),
        "MatMul(Reshape(a), b.hd.o)",
        "[B,S,6]",
    ),
}


@pytest.mark.parametrize("name", UNFOLDED)
def test_a_product_of_matrices_becomes_one(name: str, compare: Compare, spell: Spell) -> None:
    graph, expected, shape = UNFOLDED[name]
    before = graph.clone()
    assert UnfoldEinsum(prover=Prover())(graph).modified
    assert spell(graph) == f"Identity({expected})"
    made = graph.graph.node(-1).inputs[0]
    assert made is not None
    assert str(made.shape) == shape
    compare(before, graph, cases(before), RTOL, ATOL)


# name -> what looks like a product of matrices
STAYS: dict[str, ir.Model] = {
    "a label twice in one operand": model("bii,bij->bj", "B, 4, 4", "B, 4, T", "B, T"),
    "a label summed in one operand alone": model("bid,bj->bij", "B, S, 8", "B, T", "B, S, T"),
    "nothing summed": model("bi,bj->bij", "B, S", "B, T", "B, S, T"),
    "everything summed": model("id,id->", "S, 8", "S, 8", ""),
    "a vector on the right": model("bid,bd->bi", "B, S, 8", "B, 8", "B, S"),
    "a summed label that is broadcast": model("bid,bjd->bij", "B, S, 1", "B, T, 8", "B, S, T"),
    "an axis of no elements": model("bid,bjd->bij", "B, 0, 8", "B, T, 8", "B, 0, T"),
}


@pytest.mark.parametrize("name", STAYS)
def test_what_is_no_product_of_matrices_stays(name: str, compare: Compare) -> None:
    graph = STAYS[name]
    before = graph.clone()
    assert not UnfoldEinsum(prover=Prover())(graph).modified
    assert [node.op_type for node in graph.graph] == ["Einsum", "Identity"]
    compare(before, graph, cases(before), 0, 0)


UNKNOWN = {
    "three operands": 'e = Einsum<equation = "id,dk,kj->ij">(a, b, b)',
    "one operand": 'e = Einsum<equation = "id->di">(a)',
    "ellipses of different ranks": 'u = Unsqueeze(a, one) e = Einsum<equation = "...id,...dj->...ij">(u, b)',
    "an equation that does not fit": 'e = Einsum<equation = "xid,dj->xij">(a, b)',
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_other_equations_are_left_alone(name: str) -> None:
    graph = ir.from_onnx_text(f"""
        <ir_version: 10, opset_import: ["": 23]>
        other (float[8, 8] a, float[8, 8] b) => (float y) <int64[1] one = {{0}}> {{
            {UNKNOWN[name]} y = Identity(e)
        }}""")
    for node in graph.graph:
        node.outputs[0].shape = ir.Shape([1, 8, 8]) if node.op_type == "Unsqueeze" else node.outputs[0].shape
    before = [node.op_type for node in graph.graph]
    assert not UnfoldEinsum(prover=Prover())(graph).modified
    assert [node.op_type for node in graph.graph] == before


def test_sizes_that_nothing_tells_leave_it_and_nothing_behind() -> None:
    graph = model("bihd,bjkd->bhijk", "B, S, 2, 8", "B, T, 3, 8", "B, 2, S, T, 3")
    for value in graph.graph.inputs:
        value.shape = ir.Shape([None, None, *list(value.shape or ())[2:]])
    assert not UnfoldEinsum(prover=Prover())(graph).modified
    assert [node.op_type for node in graph.graph] == ["Einsum", "Identity"]


def test_a_broken_check_is_caught_by_the_proof(monkeypatch: pytest.MonkeyPatch, compare: Compare) -> None:
    graph = model("bid,bdj->bji", "B, 4, 4", "B, 4, 4", "B, 4, 4")
    before = graph.clone()
    monkeypatch.setattr(einsum, "_terms", lambda node: ("bid", "bdj", "bij"))
    assert not UnfoldEinsum(prover=Prover())(graph).modified
    assert [node.op_type for node in graph.graph] == ["Einsum", "Identity"]
    compare(before, graph, cases(before), 0, 0)
