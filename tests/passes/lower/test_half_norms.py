"""Norms between casts of half precision become norms in half precision, where nothing but their scale is rounded."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import RemoveUnusedNodesPass, ShapeInferencePass

from graphwright.passes import optimize
from graphwright.passes.lower.half_norms import NormInHalf

Run = Callable[[ir.Model, dict[str, np.ndarray]], dict[str, np.ndarray]]
Spell = Callable[[ir.Model], str]
HALVES = {"float16": (10, np.float16), "bfloat16": (16, ml_dtypes.bfloat16)}


def make(norm: str, half: str = "float16", tail: str = "", scale: str = "1.0, 0.5, -2.0, 0.1") -> ir.Model:
    number = HALVES[half][0]
    text = f"""<ir_version: 10, opset_import: ["": 23]> g (float[N, 4] x) => (float[N, 4] y)
        <float[4] w = {{ {scale} }}, float[4] b = {{ 0.1, -0.3, 0.0, 1.0 }}> {{
        h = Cast <to = {number}> (x)  u = Cast <to = 1> (h)  n = {norm}
        d = Cast <to = {number}> (n)  r = Add(d, h)  {tail} y = Cast <to = 1> (r) }}"""
    return ShapeInferencePass()(ir.from_onnx_text(text)).model


LAYER, RMS = "LayerNormalization(u, w, b)", "RMSNormalization(u, w)"


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize(("norm", "wanted"), [(LAYER, "LayerNormalization"), (RMS, "RMSNormalization")])
def test_a_norm_between_casts_is_one_in_half(half: str, norm: str, wanted: str, spell: Spell) -> None:
    model = make(norm, half)
    result = NormInHalf()(model)
    assert result.modified
    RemoveUnusedNodesPass()(model)
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    assert [node.op_type for node in model.graph] == ["Cast", wanted, "Add", "Cast"]
    named = "Cast(x)"
    inputs = [named, f"w.{half}", f"b.{half}"][: 3 if norm == LAYER else 2]
    assert spell(model) == f"Cast(Add({wanted}({', '.join(inputs)}), {named}))"


@pytest.mark.parametrize("norm", [LAYER, RMS])
def test_the_numbers_stay(norm: str, run: Run) -> None:
    model = make(norm)
    narrow = model.clone()
    NormInHalf()(narrow)
    RemoveUnusedNodesPass()(narrow)
    x = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    # scale and bias are rounded to 11 bits: two roundings of numbers up to about 4
    np.testing.assert_allclose(run(narrow, {"x": x})["y"], run(model, {"x": x})["y"], rtol=2e-3, atol=4e-3)


@pytest.mark.parametrize(
    "model",
    [
        make(LAYER, tail="z = Add(n, u)  zz = Cast <to = 10> (z)  rr = Add(r, zz)  "),  # read in float32 too
        make(LAYER, scale="1e6, 1.0, 1.0, 1.0"),  # leaves the range of float16
        make("LayerNormalization <stash_type = 10> (u, w, b)"),  # sums in float16
        make("LayerNormalization(x, w, b)"),  # of what never was half
        make("LayerNormalization(u, x, b)"),  # a scale that is computed
        make("LpNormalization(u)"),  # another norm
    ],
)
def test_what_would_lose_more_stays(model: ir.Model) -> None:
    before = [node.op_type for node in model.graph]
    assert not NormInHalf()(model).modified
    assert [node.op_type for node in model.graph] == before


def test_a_wide_scale_fits_bfloat16() -> None:
    assert NormInHalf()(make(LAYER, "bfloat16", scale="1e6, 1.0, 1.0, 1.0")).modified


def test_a_norm_that_is_the_graphs_output_stays() -> None:
    text = """<ir_version: 10, opset_import: ["": 23]> g (float16[N, 4] x) => (float[N, 4] y)
        <float[4] w = { 1.0, 1.0, 1.0, 1.0 }> { u = Cast <to = 1> (x)  y = RMSNormalization(u, w) }"""
    assert not NormInHalf()(ShapeInferencePass()(ir.from_onnx_text(text)).model).modified


def test_a_graphs_output_behind_a_norm_keeps_its_name(run: Run) -> None:
    text = """<ir_version: 10, opset_import: ["": 23]> g (float16[N, 4] x) => (float16[N, 4] y)
        <float[4] w = { 1.0, 2.0, 1.0, 1.0 }> {
        u = Cast <to = 1> (x)  n = RMSNormalization(u, w)  y = Cast <to = 10> (n) }"""
    model = ShapeInferencePass()(ir.from_onnx_text(text)).model
    narrow = model.clone()
    assert NormInHalf()(narrow).modified
    assert [value.name for value in narrow.graph.outputs] == ["y"]
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float16)
    np.testing.assert_allclose(run(narrow, {"x": x})["y"], run(model, {"x": x})["y"], rtol=2e-3)


def test_a_norm_is_in_half_for_every_target_already() -> None:
    text = """<ir_version: 10, opset_import: ["": 23]> g (float[N, 16] x) => (float[N, 16] y) <
        float[16, 16] a = { %s }, float[16] w = { %s } > {
        m = MatMul(x, a)  n = RMSNormalization(m, w)  y = MatMul(n, a) }"""
    model = ir.from_onnx_text(text % (", ".join(["0.1"] * 256), ", ".join(["1.0"] * 16)))
    for target in ("ort-cuda:fp16", "tensorrt:fp16"):
        nodes = [node.op_type for node in optimize(model, target).model.graph]
        assert nodes.count("Cast") == 2, (target, nodes)
