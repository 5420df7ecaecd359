"""Rows of queries that no key is allowed have no right value: found from the masks, left out, counted."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphwright.compare.cases import Case
from graphwright.compare.parity import compare
from graphwright.compare.undefined import UndefinedRows, leave_out
from graphwright.export.graph_session import open_graph
from graphwright.passes import lift, lowered_to, optimize

# padded tokens attend to nothing: row i of `keep` allows key j if both count
GRAPH = """
    <ir_version: 10, opset_import: ["": 23]>
    padded (float[B, S, 8] x, bool[B, S] keep) => (float[B, S, 8] y, float[B] pooled)
    <float lowest = {-3.4e38}, int64[1] one = {1}, int64[1] two = {2}, int64[1] axes = {1}, int64[1] last = {2}> {
        a = Unsqueeze(keep, one) b = Unsqueeze(keep, two) allowed = And(a, b)
        xt = Transpose<perm = [0, 2, 1]>(x) p = MatMul(x, xt) s = Where(allowed, p, lowest) w = Softmax(s)
        y = MatMul(w, x) m = ReduceMean<keepdims = 0>(x, last) pooled = ReduceMax<keepdims = 0>(m, axes)
    }"""


def case(lengths: list[int], size: int = 5) -> Case:
    x = np.random.default_rng(0).standard_normal((len(lengths), size, 8)).astype(np.float32)
    keep = np.arange(size) < np.array(lengths)[:, None]
    return Case("padded", {"x": x, "keep": keep})


def test_rows_without_a_key_are_found_and_left_out() -> None:
    lifted = lift(ir.from_onnx_text(GRAPH)).model
    padded = case([5, 3, 1])
    with UndefinedRows(lifted) as undefined:
        (rows,) = undefined.find(padded.feeds)
        np.testing.assert_array_equal(rows, ~padded.feeds["keep"])
        assert undefined.find(case([5, 5]).feeds) == []


def test_only_undefined_rows_of_outputs_of_that_shape_become_nan() -> None:
    model = ir.from_onnx_text(GRAPH)
    lifted = lift(model).model
    padded = case([5, 3, 1])
    with open_graph(model) as old, open_graph(lifted) as new:
        before, after = old.run(padded.feeds), new.run(padded.feeds)
    assert not np.allclose(before["y"], after["y"])  # mean(V) there, 0 here
    ((_, expected),) = leave_out(lifted, [(padded, before)])
    np.testing.assert_array_equal(np.isnan(expected["y"]).all(axis=-1), ~padded.feeds["keep"])
    assert np.isfinite(expected["pooled"]).all()
    found = compare(expected, after)
    assert found["y"].undefined == 6 * 8
    assert found["y"].max_abs < 2e-6
    assert not np.isnan(before["y"]).any(), "what was recorded stays as it was"


def test_a_graph_without_masks_has_no_undefined_rows() -> None:
    text = GRAPH.replace("s = Where(allowed, p, lowest)", "s = Identity(p)")
    with UndefinedRows(lift(ir.from_onnx_text(text)).model) as undefined:
        assert undefined.find(case([5, 3, 1]).feeds) == []


@pytest.mark.parametrize(
    ("form", "op"),
    [
        ("standard", "Attention"),
        ("multihead", "com.microsoft.MultiHeadAttention"),
        ("packed", "com.microsoft.Attention"),
        ("grouped", "com.microsoft.GroupQueryAttention"),
        ("primitive", "Softmax"),
    ],
)
def test_rows_without_a_key_are_found_in_every_form_of_ort_cpu(form: str, op: str) -> None:
    """A lowered graph is what an artifact holds: `verify` leaves the same rows out."""
    diagonal = ", ".join(str(float(row == column)) for row in range(8) for column in range(8))
    weights = ", ".join(f"float[8, 8] {name} = {{{diagonal}}}" for name in ("wq", "wk", "wv"))
    model = ir.from_onnx_text(f"""
        <ir_version: 10, opset_import: ["": 23]>
        padded (float[B, S, 8] x, bool[B, S] keep) => (float[B, S, 8] y)
        <{weights}, int64[2] rows = {{1, 3}}, int64[2] columns = {{1, 2}}, int64[4] parts = {{0, 0, 1, 8}},
         int64[3] flat = {{0, 0, 8}}> {{
            a = Unsqueeze(keep, rows) b = Unsqueeze(keep, columns) allowed = And(a, b)
            q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)
            q4 = Reshape(q, parts) k4 = Reshape(k, parts) v4 = Reshape(v, parts)
            qt = Transpose<perm = [0, 2, 1, 3]>(q4) kt = Transpose<perm = [0, 2, 1, 3]>(k4)
            vt = Transpose<perm = [0, 2, 1, 3]>(v4) t = Attention(qt, kt, vt, allowed)
            u = Transpose<perm = [0, 2, 1, 3]>(t) y = Reshape(u, flat) }}""")
    lowered = optimize(model, "ort-cpu", options={"attention": form}).model
    assert lowered_to(lowered, "attention") == {op: 1}
    padded = case([5, 3, 1])
    with UndefinedRows(lowered) as undefined:
        (rows,) = undefined.find(padded.feeds)
    np.testing.assert_array_equal(rows, ~padded.feeds["keep"])
