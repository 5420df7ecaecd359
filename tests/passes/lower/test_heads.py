"""Heads side by side: the exact graph, the same numbers, and what stays as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import RemoveUnusedNodesPass, ShapeInferencePass

from graphwright.passes import lowered_to
from graphwright.passes.lift.reshapes import FoldReshapes
from graphwright.passes.lower.heads import MergeHeads
from graphwright.spec import SITE
from graphwright.tests.passes.lower.layers import cases

Arrays = dict[str, np.ndarray]
Compare = Callable[[ir.Model, ir.Model, Iterable[Arrays], float, float], None]

# float32; the kernel and its order of sums are the same, only where the heads are parted differs
RTOL, ATOL = 1e-6, 1e-6
WIDE = "float[B, S, 32] q, float[B, T, 32] k, float[B, T, 24] v"
GROUPED = "float[B, S, 32] q, float[B, T, 16] k, float[B, T, 12] v"
MASK = ", bool[B, 1, S, T] m"
ROTARY = "float[B, S, 32] q, float[B, S, 32] k, float[B, S, 24] v, float[B, S, 4] cos, float[B, S, 4] sin"


def body(kv: int = 4, attributes: str = "scale = 0.4", mask: str = "", perm: str = "0, 2, 1, 3") -> str:
    return f"""
        q4 = Reshape(q, parts_q)  k4 = Reshape(k, parts_kv)  v4 = Reshape(v, parts_kv)
        qt = Transpose <perm = [{perm}]> (q4)  kt = Transpose <perm = [0, 2, 1, 3]> (k4)
        vt = Transpose <perm = [0, 2, 1, 3]> (v4)
        a = Attention <{attributes}> (qt, kt, vt{mask})
        at = Transpose <perm = [0, 2, 1, 3]> (a)  z = Reshape(at, flat)  y = Neg(z)"""


TURNED = """
        q4 = Reshape(q, parts_q)  k4 = Reshape(k, parts_kv)  v4 = Reshape(v, parts_kv)
        qt = Transpose <perm = [0, 2, 1, 3]> (q4)  kt = Transpose <perm = [0, 2, 1, 3]> (k4)
        vt = Transpose <perm = [0, 2, 1, 3]> (v4)
        qr = RotaryEmbedding (qt, cos, sin)  kr = RotaryEmbedding (kt, cos, sin)
        a = Attention (qr, kr, vt)
        at = Transpose <perm = [0, 2, 1, 3]> (a)  z = Reshape(at, flat)  y = Neg(z)"""


def make(inputs: str, text: str, kv: int = 4, output: str = "float[B, S, 24] y") -> ir.Model:
    weights = (
        f"int64[4] parts_q = {{0, 0, 4, -1}}, int64[4] parts_kv = {{0, 0, {kv}, -1}}, int64[3] flat = {{0, 0, -1}}"
    )
    model = ir.from_onnx_text(
        f'<ir_version: 10, opset_import: ["": 23]> heads ({inputs}) => ({output}) <{weights}> {{{text}}}'
    )
    ShapeInferencePass()(model)
    for node in model.graph:
        if node.op_type == "Attention":
            node.metadata_props[SITE] = "attention"
    return model


def merged(model: ir.Model) -> ir.Model:
    after = model.clone()
    assert MergeHeads()(after).modified
    FoldReshapes()(after)
    RemoveUnusedNodesPass()(after)
    return after


@pytest.mark.parametrize(
    ("model", "heads"),
    [
        (make(WIDE, body()), 4),
        (make(WIDE + MASK, body(mask=", m")), 4),
        (make(WIDE, body(attributes="is_causal = 1")), 4),
        (make(GROUPED, body(kv=2), kv=2), 2),
        (make(GROUPED + MASK, body(kv=2, mask=", m"), kv=2), 2),
    ],
    ids=["plain", "masked", "causal", "grouped", "grouped and masked"],
)
def test_views_and_transposes_become_one_attention(model: ir.Model, heads: int, compare: Compare) -> None:
    after = merged(model)
    node, _ = after.graph
    assert node.op_type == "Attention"
    assert (node.attributes["q_num_heads"].as_int(), node.attributes["kv_num_heads"].as_int()) == (4, heads)
    assert [value and value.name for value in node.inputs[:3]] == ["q", "k", "v"]
    assert lowered_to(after, "attention") == {"Attention": 1}
    compare(model, after, cases(model), RTOL, ATOL)


def test_a_rotation_is_made_on_heads_side_by_side(compare: Compare) -> None:
    model = make(ROTARY, TURNED)
    after = merged(model)
    assert [node.op_type for node in after.graph] == ["RotaryEmbedding", "RotaryEmbedding", "Attention", "Neg"]
    assert [node.attributes.get_int("num_heads", 0) for node in after.graph][:2] == [4, 4]
    compare(model, after, cases(model), RTOL, ATOL)


def test_a_result_that_is_not_merged_after_all_is_parted_again(compare: Compare) -> None:
    text = body().replace("z = Reshape(at, flat)  y = Neg(z)", "y = Neg(at)")
    model = make(WIDE, text, output="float[B, S, 4, 6] y")
    after = merged(model)
    assert "Transpose" not in [node.op_type for node in after.graph]
    compare(model, after, cases(model), RTOL, ATOL)


@pytest.mark.parametrize(
    "model",
    [
        make(WIDE.replace("B, S", "S, B"), body(perm="1, 2, 0, 3"), output="float[S, B, 24] y"),
        make(WIDE, body() + " other = Relu(a)", output="float[B, S, 24] y, float[B, 4, S, 6] other"),
        make(ROTARY, TURNED + " other = Relu(qr)", output="float[B, S, 24] y, float[B, 4, S, 8] other"),
        make(
            "float[B, 4, S, 8] q, float[B, 4, T, 8] k, float[B, 4, T, 6] v",
            "a = Attention (q, k, v) at = Transpose <perm = [0, 2, 1, 3]> (a)  y = Reshape(at, flat)",
        ),
    ],
    ids=["another layout", "read elsewhere", "its rotation is read elsewhere", "no views"],
)
def test_other_layouts_stay(model: ir.Model) -> None:
    assert not MergeHeads()(model).modified
