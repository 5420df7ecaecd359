"""Attentions whose mask is causal, whatever else it forbids, are marked; others are not."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from onnx_ir.passes.common import ShapeInferencePass

from graphwright.passes.lift.values import dim, rank
from graphwright.passes.lower.causal import CAUSAL, MarkCausal

QKV = "float[B, 4, S, 8] q, float[B, 4, S, 8] k, float[B, 4, S, 8] v"
CROSS = "float[B, 4, S, 8] q, float[B, 4, T, 8] k, float[B, 4, T, 8] v"
KEEP = "bool[B, S] keep, float[1, 4, S, S] bias"
POSITIONS = """
    s = Shape <start = 2, end = 3> (q)  n = Squeeze(s)  i = Range(zero, n, one)
    rows = Unsqueeze(i, ends)  columns = Unsqueeze(i, front)"""
PAD = "pad = Unsqueeze(keep, axes)"
LOWER = "c = LessOrEqual(columns, rows)"
# the last dims of values that follow from positions, as an export names them
LENGTHS: dict[str, tuple[int | str, int | str]] = {
    "rows": ("S", 1),
    "wide": ("S", 1),
    "columns": (1, "S"),
    "keys": (1, "T"),
    "pad": (1, "S"),
}
WIDE = "wide = Sub(rows, window)  w = Greater(columns, wide)"


def make(body: str, inputs: str = f"{QKV}, {KEEP}", attention: str = "y = Attention(q, k, v, m)") -> ir.Model:
    constants = """int64 zero = {0}, int64 one = {1}, int64[1] window = {3}, int64[3] ends = {0, 1, 3},
        int64[3] front = {0, 1, 2}, int64[2] axes = {1, 2}, float low = {-3.4e38}, float small = {-1.0}"""
    model = ir.from_onnx_text(f"""
        <ir_version: 10, opset_import: ["": 23]> causal ({inputs}) => (float[B, 4, S, 8] y) <{constants}> {{
            {POSITIONS} {body} {attention} }}""")
    ShapeInferencePass()(model)
    for node in model.graph:
        value = node.outputs[0]
        if rank(value) == 4 and node.op_type != "Attention":
            lengths = LENGTHS.get(str(value.name), ("S", "T") if "T" in inputs else ("S", "S"))
            value.shape = ir.Shape([dim(value, 0), dim(value, 1), *lengths])
    return model


def marked(model: ir.Model) -> bool:
    modified = MarkCausal()(model).modified
    (node,) = [node for node in model.graph if node.op_type == "Attention"]
    assert (CAUSAL in node.metadata_props) == modified
    return modified


@pytest.mark.parametrize(
    "body",
    [
        f"{LOWER} m = Identity(c)",
        f"{LOWER} {PAD} m = And(c, pad)",
        f"{LOWER} {PAD} {WIDE} cw = And(c, w)  m = And(cw, pad)",
        f"{LOWER} {PAD} cp = And(pad, c)  m = Where(cp, bias, low)",
    ],
    ids=["alone", "and padding", "and a window", "with a bias"],
)
def test_a_mask_that_forbids_what_comes_later_is_found(body: str) -> None:
    assert marked(make(body))


@pytest.mark.parametrize(
    "body",
    [
        f"c = Less(columns, rows) {PAD} m = And(c, pad)",
        f"c = GreaterOrEqual(columns, rows) {PAD} m = And(c, pad)",
        f"{WIDE} {PAD} m = And(w, pad)",
        f"{LOWER} {PAD} m = Or(c, pad)",
        f"{LOWER} m = Where(c, bias, small)",
        f"{LOWER} other = Not(c)  m = Where(other, low, bias)",
        f"{LOWER} m = Where(c, low, bias)",
        "m = Add(bias, bias)",
    ],
    ids=["its own place too", "later keys", "window alone", "or", "lowered a little", "turned", "swapped", "bias"],
)
def test_other_masks_are_not_marked(body: str) -> None:
    assert not marked(make(body))


def test_other_lengths_and_other_keys_are_not_marked() -> None:
    body = "t = Shape <start = 2, end = 3> (k)  l = Squeeze(t)  j = Range(zero, l, one)  keys = Unsqueeze(j, front)"
    cross = make(f"{body} m = LessOrEqual(keys, rows)", f"{CROSS}, bool[B, S] keep")
    assert not marked(cross)
    cached = "y, keys, values = Attention(q, k, v, m, past, past)"
    past = f"{QKV}, {KEEP}, float[B, 4, 0, 8] past"
    assert not marked(make(f"{LOWER} m = Identity(c)", past, cached))
