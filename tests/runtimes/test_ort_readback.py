"""What ONNX Runtime does to a graph at load is said: on real graphs, and on counts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import graphwright as gw
from graphwright.runtimes import RUNTIMES, BuildRequest
from graphwright.runtimes.ort_readback import differences


def notes(text: str, tmp_path: Path) -> tuple[str, ...]:
    model = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["": 23]> graph {text}')
    ir.save(model, tmp_path / "model.onnx")
    return RUNTIMES["ort-cpu"].build(BuildRequest(tmp_path / "model.onnx")).notes


def test_a_function_without_a_kernel_is_named(tmp_path: Path) -> None:
    text = "(float[B, 8, S] x, float[8] s) => (float[B, 8, S] y) { y = GroupNormalization <num_groups = 2> (x, s, s) }"
    taken_apart = "1 of 1 GroupNormalization taken apart by ONNX Runtime: it has no kernel for them"
    assert notes(text, tmp_path)[0] == taken_apart


def test_casts_around_a_type_without_kernels_are_counted(tmp_path: Path) -> None:
    (note,) = notes("(float16[B, 8] x, float16[8, 8] w) => (float16[B, 8] y) { y = MatMul(x, w) }", tmp_path)
    assert "Casts put in" in note


@pytest.mark.parametrize("opset", [18, 23])
def test_what_is_fused_is_no_loss(opset: int, tmp_path: Path) -> None:
    text = """(float[B, S, 8] x) => (float[B, S, 8] y) <float[8, 8] w = {WEIGHT}, float[8] b = {BIAS}> {
        m = MatMul(x, w)  a = Add(m, b)  g = Gelu(a)  n = MatMul(g, w)  y = Softmax(n) }"""
    weight = ", ".join(f"{number:.3f}" for number in np.linspace(-1, 1, 64))
    text = text.replace("WEIGHT", weight).replace("BIAS", ", ".join(["0.5"] * 8))
    assert notes(text, tmp_path) == ()


def test_a_convolution_in_blocks_of_channels_is_one_still(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).standard_normal((16, 16, 3, 3)).astype(np.float32)
    model = ir.from_onnx_text("""<ir_version: 10, opset_import: ["": 23]>
        graph (float[B, 16, H, W] x, float[16, 16, 3, 3] w) => (float[B, 16, M, N] y) { y = Conv(x, w) }""")
    value = model.graph.inputs.pop()
    value.const_value = ir.tensor(weight, name="w")
    model.graph.register_initializer(value)
    ir.save(model, tmp_path / "model.onnx")
    built = RUNTIMES["ort-cpu"].build(BuildRequest(tmp_path / "model.onnx"))
    assert built.notes == (), built.ops


def test_counts() -> None:
    assert differences({"Gelu": 6, "Attention": 6}, {"com.microsoft.BiasGelu": 6, "Attention": 6}) == ()
    assert differences({"MatMul": 4}, {"MatMul": 3, "com.microsoft.FusedMatMul": 1}) == ()
    assert differences({"Attention": 6}, {"Attention": 4, "Softmax": 2})[0].startswith("2 of 6 Attention taken apart")
    assert differences({"com.microsoft.MultiHeadAttention": 1}, {"MatMul": 2}) != ()
    assert differences({"Cast": 2}, {"Cast": 1}) == ()


def test_a_lowered_graph_is_kept_as_it_was_lowered(tmp_path: Path) -> None:
    """What the ort-cpu lowering promises, ONNX Runtime keeps: the norms stay two ops, the linear layers Gemm."""
    text = """(float[B, S, 32] x) => (float[B, S, 32] y) <float[32, 32] w = {WEIGHT}, float[32] b = {BIAS}> {
        m = MatMul(x, w)  a = Add(m, b)  s = Add(a, x)  y = LayerNormalization <axis = -1> (s, b, b) }"""
    weight = ", ".join(f"{number:.3f}" for number in np.linspace(-1, 1, 1024))
    text = text.replace("WEIGHT", weight).replace("BIAS", ", ".join(["0.5"] * 32))
    model = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["": 23]> graph {text}')
    built = gw.build(model, tmp_path / "built")
    assert built.record.build is not None
    assert built.record.build.notes in ([], ["taken from the store"])
    ops = built.record.ops["runtime"]
    assert ops["Gemm"] == ops["LayerNormalization"] == 1
    assert "com.microsoft.SkipLayerNormalization" not in ops
