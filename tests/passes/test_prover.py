"""Translation validation: right rewrites are proved, wrong ones are told, equal sites share a proof."""

import math

import numpy as np
import onnx_ir as ir
import pytest

from graphwright.passes.prover import Prover
from graphwright.passes.region import Region, Rows

FLOAT = ir.TensorType(ir.DataType.FLOAT)
BOOL = ir.TensorType(ir.DataType.BOOL)
HALF = ir.TensorType(ir.DataType.FLOAT16)


def value(name: str, shape: list[int | str | None], kind: ir.TensorType = FLOAT) -> ir.Value:
    return ir.Value(name=name, type=kind, shape=ir.Shape(shape))


def op(op_type: str, *inputs: ir.Value, kind: ir.TensorType = FLOAT, **attributes: object) -> ir.Value:
    node = ir.node(op_type, list(inputs), attributes)  # type: ignore[arg-type]
    node.outputs[0].type = kind
    return node.outputs[0]


def number(x: float, dtype: type = np.float32) -> ir.Value:
    array: np.ndarray = np.array(x, dtype)
    return ir.Value(name=f"c{x}", const_value=ir.tensor(array), type=ir.TensorType(ir.DataType.from_numpy(array.dtype)))


Site = tuple[ir.Value, ir.Value, list[ir.Value], Rows]


def attention(scale: float, mask: bool = True, swap: bool = False) -> Site:
    """softmax(QK * 0.25 + where(allowed, 0, low))V, and an Attention of `scale` in its place."""
    q, k, v = (value(name, ["batch", 2, length, 16]) for name, length in (("q", "S"), ("k", "T"), ("v", "T")))
    allowed = value("allowed", ["batch", 1, "S", "T"], BOOL)
    scores = op("Mul", op("MatMul", q, op("Transpose", k, perm=[0, 1, 3, 2])), number(0.25))
    added = op("Add", scores, op("Where", allowed, number(0), number(-1e9)))
    old = op("MatMul", op("Softmax", added, axis=-1), v)
    inputs = [q, v if swap else k, k if swap else v, *[allowed] * mask]
    return old, op("Attention", *inputs, scale=scale), [q, k, v, allowed], Rows(allowed)


def test_a_right_rewrite_is_proved_at_several_shapes() -> None:
    proof = Prover().prove(*attention(0.25))
    assert proof.equal, proof.reason
    assert proof.shapes == 3
    assert proof.worst < 1e-5
    assert proof.undefined > 0  # rows without an allowed key: not compared, but counted


def test_rows_without_an_allowed_key_are_compared_where_no_mask_is_named() -> None:
    old, new, leaves, _ = attention(0.25)
    assert not Prover().prove(old, new, leaves).equal


@pytest.mark.parametrize(
    "wrong", [attention(0.26), attention(0.25, mask=False), attention(0.25, swap=True), attention(1 / math.sqrt(15))]
)
def test_a_wrong_rewrite_is_told_with_its_numbers(wrong: Site) -> None:
    proof = Prover().prove(*wrong)
    assert not proof.equal
    assert proof.reason.startswith("not equal: differs by")
    assert proof.worst > 1e-3


def test_a_rewrite_of_another_shape_is_told() -> None:
    x = value("x", ["n", 4])
    proof = Prover().prove(op("Relu", x), op("ReduceMax", x), [x])
    assert not proof.equal
    assert "shape [1, 1] instead of [2, 4]" in proof.reason


def test_equal_sites_share_one_proof_and_others_do_not() -> None:
    prover = Prover()
    for scale in (0.25, 0.25, 0.26, 0.25):
        prover.prove(*attention(scale))
    assert prover.asked == 4
    assert len(prover.proofs) == 2


def test_names_do_not_matter_to_the_structure_but_constants_dims_and_wiring_do() -> None:
    def digest(factor: float, size: int | str, swap: bool = False) -> str:
        x, y = value("any", ["n", size]), value("other", ["n", size])
        pair = (y, x) if swap else (x, y)
        return Region(op("Mul", op("Sub", *pair), number(factor)), op("Sub", x, y), [x, y]).digest()

    assert digest(2, 4) == digest(2, 4)
    assert len({digest(2, 4), digest(3, 4), digest(2, 5), digest(2, "m"), digest(2, 4, swap=True)}) == 5


def test_halves_are_proved_in_float32() -> None:
    x = value("x", ["n", 8], HALF)
    doubled = op("Add", x, x, kind=HALF)
    there = op("Cast", op("Cast", x, to=int(ir.DataType.FLOAT)), to=int(ir.DataType.FLOAT16), kind=HALF)
    twice = op("Mul", there, number(2, np.float16), kind=HALF)
    assert Prover().prove(doubled, twice, [x]).equal


def test_a_half_is_equal_to_one_rounding() -> None:
    def proved(factor: float, kind: ir.TensorType) -> bool:
        x = value("x", ["n", 8], kind)
        return Prover().prove(op("Identity", x, kind=kind), op("Mul", x, number(factor), kind=kind), [x]).equal

    assert [proved(1 + 2.0**-13, kind) for kind in (FLOAT, HALF)] == [False, True]
    assert not proved(1 + 2.0**-9, HALF)


def test_data_that_the_site_only_reads_is_cut_off_where_it_comes_in() -> None:
    x, ids = value("x", ["n", 8]), value("ids", ["n"], ir.TensorType(ir.DataType.INT64))
    table = ir.Value(name="table", const_value=ir.tensor(np.ones((1000, 8), np.float32)), type=FLOAT)
    gathered = op("Gather", table, ids)
    gathered.shape = ir.Shape(["n", 8])
    region = Region(op("Add", x, gathered), op("Add", gathered, x), [x])
    assert [leaf.name for leaf in region.leaves] == ["x", gathered.name]
    assert [node.op_type for node in region.nodes] == ["Add", "Add"]
    assert Prover().prove(op("Add", x, gathered), op("Add", gathered, x), [x]).equal


def test_dims_may_be_expressions() -> None:
    x = value("x", ["n", "2*m + 1"])
    assert Prover().prove(op("Neg", op("Neg", x)), op("Identity", x), [x]).equal
    short = value("x", ["n", "floor(m/5 - 2)"])  # a convolution's length: none is left of the first sizes
    assert Prover().prove(op("Neg", op("Neg", short)), op("Identity", short), [short]).equal


def test_what_cannot_be_proved_says_why() -> None:
    x = value("x", [])
    x.shape = None
    proof = Prover().prove(op("Relu", x), op("Relu", x), [x])
    assert not proof.equal
    assert "shape of 'x' is not known" in proof.reason


def test_dims_that_the_file_does_not_tell_get_one_size_for_each_axis() -> None:
    q, k = (value(name, [None, 2, None, 8]) for name in "qk")
    old = op("MatMul", q, op("Transpose", k, perm=[0, 1, 3, 2]))
    new = op("Einsum", q, k, equation="bhsd,bhtd->bhst")
    assert Prover().prove(old, new, [q, k]).equal
