"""Dynamic int8 becomes products with dequantized weights; near misses stay."""

from __future__ import annotations

import re

import numpy as np
import onnx_ir as ir
import pytest

from graphwright.passes import count_ops
from graphwright.passes.lower.integer_weights import KeepIntegerWeights
from graphwright.passes.quantize.dynamic_int8 import DynamicInt8, quantize_columns
from graphwright.runtimes.onnx_reference import OnnxReferenceSession

HEAD = '<ir_version: 10, opset_import: ["": 23]>'


def make(inputs: str, outputs: str, body: str, **arrays: np.ndarray) -> ir.Model:
    text = f"{HEAD} layers ({inputs}) => ({outputs}) {{ {body} }}"
    fed = re.findall(r"(\w+)(?:,|$)", inputs)
    used = {name: array for name, array in arrays.items() if re.search(rf"\b{name}\b", body) and name not in fed}
    return ir.from_onnx_text(text, initializers=[ir.tensor(array, name=name) for name, array in used.items()])


def two_layers() -> ir.Model:
    random = np.random.default_rng(0)
    return make(
        "float[B, S, 32] x",
        "float[B, S, 24] y, float[M, 16] z",
        "y = MatMul(x, w) r = Reshape(x, shape) z = Gemm <transB = 1> (r, u, c)",
        w=random.standard_normal((32, 24)).astype(np.float32),
        u=random.standard_normal((16, 32)).astype(np.float32),
        c=random.standard_normal(16).astype(np.float32),
        shape=np.array([-1, 32]),
    )


def test_dynamic_int8_becomes_products_with_dequantized_weights() -> None:
    model = two_layers()
    w, u, c = (np.asarray(model.graph.initializers[name].const_value) for name in "wuc")
    DynamicInt8()(model)
    assert KeepIntegerWeights()(model).modified
    assert count_ops(model) == {"DequantizeLinear": 2, "MatMul": 2, "Reshape": 1, "Add": 1}
    assert not KeepIntegerWeights()(model).modified
    wide = [matrix.astype(np.float64) * scale for matrix, scale in map(quantize_columns, (w, u.T))]
    # by the book: ONNX Runtime itself would quantize x in front of such weights
    session = OnnxReferenceSession(ir.to_proto(model))
    for batch, sequence in ((1, 1), (2, 5), (3, 17)):
        x = np.random.default_rng(batch).standard_normal((batch, sequence, 32)).astype(np.float32)
        found = session.run({"x": x})
        # sums of 32 products of numbers near 1, in float32
        np.testing.assert_allclose(found["y"], x @ wide[0], rtol=0, atol=1e-5)
        np.testing.assert_allclose(found["z"], x.reshape(-1, 32) @ wide[1] + c, rtol=0, atol=1e-5)


INPUTS = "float[B, 16] x"
DYNAMIC = "q, s, z = DynamicQuantizeLinear(x)"
SCALED = "t = Mul(s, ws) y = Mul(f, t)"


@pytest.mark.parametrize(
    ("inputs", "body", "more"),
    [
        (
            INPUTS,
            f"{DYNAMIC} i = MatMulInteger(q, w, z) f = Cast <to = 1> (i) {SCALED} other = Identity(i)",
            "int32[B, N] other",
        ),
        (INPUTS, f"{DYNAMIC} i = MatMulInteger(q, w, z, wz) f = Cast <to = 1> (i) {SCALED}", ""),
        (INPUTS, f"{DYNAMIC} i = MatMulInteger(q, w) f = Cast <to = 1> (i) {SCALED}", ""),
        (
            f"{INPUTS}, uint8[B, 16] q, float s, uint8 z",
            f"i = MatMulInteger(q, w, z) f = Cast <to = 1> (i) {SCALED}",
            "",
        ),
        (f"{INPUTS}, float[16] ws", f"{DYNAMIC} i = MatMulInteger(q, w, z) f = Cast <to = 1> (i) {SCALED}", ""),
        (INPUTS, f"{DYNAMIC} i = MatMulInteger(q, w, z) f = Cast <to = 1> (i) y = Mul(f, ws)", ""),
    ],
    ids=[
        "product read twice",
        "zero of W",
        "no zero of x",
        "quantized by someone else",
        "scale not constant",
        "no scale of x",
    ],
)
def test_what_is_another_form_stays(inputs: str, body: str, more: str) -> None:
    outputs = "float[B, N] y" + f", {more}" * bool(more)
    arrays: dict[str, np.ndarray] = {
        "w": np.ones((16, 16), np.int8),
        "ws": np.ones(16, np.float32),
        "wz": np.zeros((), np.int8),
    }
    model = make(inputs, outputs, body, **arrays)
    before = count_ops(model)
    assert not KeepIntegerWeights()(model).modified
    assert count_ops(model) == before
