"""Caches inside of Attention: the exact graph, the same numbers at every length of the past, and what stays."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import RemoveUnusedNodesPass, ShapeInferencePass

from graphwright.passes import lowered_to
from graphwright.passes.lift.reshapes import FoldReshapes
from graphwright.passes.lower.cached import UseCaches
from graphwright.passes.lower.heads import MergeHeads
from graphwright.spec import SITE

Arrays = dict[str, np.ndarray]
Compare = Callable[[ir.Model, ir.Model, Iterable[Arrays], float, float], None]
RTOL, ATOL = 1e-6, 1e-6  # float32, the same kernel on the same keys

NEW = "float[B, 2, S, 8] k, float[B, 2, S, 6] v"
PAST = "float[B, 2, P, 8] pk, float[B, 2, P, 6] pv"
STEP = f"float[B, 4, S, 8] q, {NEW}, {PAST}"
MASK = ", bool[B, 1, S, T] m"
ATTEND = "y = Attention <scale = 0.4> (q, keys, values)"
JOIN = "keys = Concat <axis = 2> (pk, k)  values = Concat <axis = -2> (pv, v)"
OUT = "float[B, 4, S, 6] y, float[B, 2, T, 8] keys, float[B, 2, T, 6] values"


def make(body: str, inputs: str = STEP, outputs: str = OUT, constants: str = "") -> ir.Model:
    model = ir.from_onnx_text(
        f'<ir_version: 10, opset_import: ["": 23]> step ({inputs}) => ({outputs}) {constants} {{ {body} }}'
    )
    ShapeInferencePass()(model)
    for node in model.graph:
        if node.op_type == "Attention":
            node.metadata_props[SITE] = "attention"
    return model


def cached(model: ir.Model) -> tuple[ir.Model, bool]:
    after = model.clone()
    return after, UseCaches()(after).modified


def cases(model: ir.Model) -> Iterator[Arrays]:
    """Steps of one token and of several, on a past of 0, 1 and 7."""
    random = np.random.default_rng(0)
    for batch, past, new in ((1, 0, 1), (2, 1, 1), (2, 7, 1), (1, 7, 3), (2, 0, 4)):
        size = {"B": batch, "S": new, "P": past, "T": past + new}
        feeds: Arrays = {}
        for value in model.graph.inputs:
            shape = [dim if isinstance(dim, int) else size[str(dim.value)] for dim in value.shape or ()]
            array: np.ndarray = random.standard_normal(shape).astype(np.float32)
            if value.dtype == ir.DataType.BOOL:
                array = np.broadcast_to(np.tri(new, past + new, past, dtype=bool), shape).copy()
            feeds[str(value.name)] = array
        yield feeds


@pytest.mark.parametrize(
    "model",
    [
        make(f"{JOIN} {ATTEND}"),
        make(f"{JOIN} {ATTEND.replace('values)', 'values, m)')}", STEP + MASK),
        make(f"{JOIN} {ATTEND.replace('0.4', '0.4, softcap = 2.0')}"),
        make(f"{JOIN} {ATTEND}", outputs=OUT.split(", float[B, 2, T, 8]", maxsplit=1)[0]),
    ],
    ids=["plain", "masked", "soft-cap", "the cache does not go out"],
)
def test_two_concats_go_inside(model: ir.Model, compare: Compare) -> None:
    after, modified = cached(model)
    assert modified
    (node,) = after.graph
    assert [value and value.name for value in node.inputs][4:] == ["pk", "pv"]
    assert [value.name for value in node.outputs] == ["y", "keys", "values"]
    assert lowered_to(after, "attention") == {"Attention": 1}
    compare(model, after, cases(model), RTOL, ATOL)


def test_what_reads_the_keys_later_reads_the_present(compare: Compare) -> None:
    more = "z = Attention (q, keys, values)  s = Add(y, z)"
    model = make(f"{JOIN} {ATTEND} {more}", outputs=OUT.replace("] y", "] s"))
    after, modified = cached(model)
    assert modified
    assert [node.op_type for node in after.graph] == ["Attention", "Attention", "Add"]
    assert [len(node.outputs) for node in after.graph] == [3, 1, 1]
    compare(model, after, cases(model), RTOL, ATOL)


def test_heads_lie_side_by_side_then(compare: Compare) -> None:
    body = f"""
        q4 = Reshape(q, four)  k4 = Reshape(k, two)  v4 = Reshape(v, two)
        qt = Transpose <perm = [0, 2, 1, 3]> (q4)  kt = Transpose <perm = [0, 2, 1, 3]> (k4)
        vt = Transpose <perm = [0, 2, 1, 3]> (v4)
        {JOIN.replace("(pk, k)", "(pk, kt)").replace("(pv, v)", "(pv, vt)")}
        a = Attention <scale = 0.4> (qt, keys, values, m)
        at = Transpose <perm = [0, 2, 1, 3]> (a)  f = Reshape(at, flat)  y = Neg(f)"""
    inputs = f"float[B, S, 32] q, float[B, S, 16] k, float[B, S, 12] v, {PAST}{MASK}"
    constants = "<int64[4] four = {0, 0, 4, -1}, int64[4] two = {0, 0, 2, -1}, int64[3] flat = {0, 0, -1}>"
    model = make(body, inputs, OUT.replace("float[B, 4, S, 6]", "float[B, S, 24]"), constants)
    after, _ = cached(model)
    assert MergeHeads()(after).modified
    FoldReshapes()(after)
    RemoveUnusedNodesPass()(after)
    assert [node.op_type for node in after.graph] == ["Attention", "Neg"]
    assert lowered_to(after, "attention") == {"Attention": 1}
    compare(model, after, cases(model), RTOL, ATOL)


@pytest.mark.parametrize(
    "model",
    [
        make(f"{JOIN} {ATTEND.replace('0.4', '0.4, is_causal = 1')}"),
        make(f"{JOIN.replace('(pk, k)', '(pk, k, k)')} {ATTEND}", outputs="float[B, 4, S, 6] y"),
        make(f"{JOIN.replace('axis = 2', 'axis = 0')} {ATTEND}", outputs="float[B, 4, S, 6] y"),
        make(f"keys = Concat <axis = 2> (pk, k)  {ATTEND.replace('values', 'v')}", outputs="float[B, 4, S, 6] y"),
        make(f"{JOIN} {ATTEND}", STEP.replace("P, 6", "R, 6")),
        make(f"{JOIN} {ATTEND}", STEP.replace("B, 2, S, 6", "B, 2, R, 6")),
        make(f"{JOIN} c = ReduceMax(keys)  g = Mul(q, c)  {ATTEND.replace('(q', '(g')}"),
        make(f"keys = Concat <axis = 2> (pk, k)  {ATTEND.replace('values', 'keys')}", outputs="float[B, 4, S, 8] y"),
        make(f"{JOIN} {ATTEND.replace('values)', 'values, , pk, pv)')}", outputs="float[B, 4, S, 6] y"),
    ],
    ids=[
        *("causal from the first key", "three parts", "along the batch", "keys alone", "pasts of other lengths"),
        *("new ones of other lengths", "the query is made of the keys", "keys that are values", "a cache already"),
    ],
)
def test_other_attentions_stay(model: ir.Model) -> None:
    assert not cached(model)[1]
