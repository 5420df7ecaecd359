"""A simulated graph holds what the half types hold, and computes in float32 in between."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphwright.export.graph_session import open_graph
from graphwright.passes.lower.simulate import is_half, simulated

Arrays = dict[str, np.ndarray]
NUMPY = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
CODES = {"float16": 10, "bfloat16": 16}
BOTH = pytest.mark.parametrize("kind", ["float16", "bfloat16"])


def make(body: str, inputs: str, outputs: str, **constants: np.ndarray) -> ir.Model:
    return ir.from_onnx_text(
        f'<ir_version: 10, opset_import: ["": 23]> g ({inputs}) => ({outputs}) {{ {body} }}',
        initializers=[ir.tensor(array, name=name) for name, array in constants.items()],
    )


def run(model: ir.Model, feeds: Arrays) -> Arrays:
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    after = simulated(model)
    onnx.checker.check_model(ir.to_proto(after), full_check=True)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
    with open_graph(after, optimize=False) as session:
        return session.run(feeds)


def stored(array: np.ndarray, kind: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        return array.astype(NUMPY[kind]).astype(np.float32)


@BOTH
def test_each_result_is_rounded_and_the_sum_inside_is_not(kind: str) -> None:
    random = np.random.default_rng(0)
    x, w = random.normal(0, 1, (5, 64)).astype(np.float32), random.normal(0, 1, (64, 8)).astype(NUMPY[kind])
    body = f"h = Cast <to = {CODES[kind]}> (x)  m = MatMul(h, w)  r = Mul(m, m)  y = Cast <to = 1> (r)"
    got = run(make(body, "float[B, 64] x", "float[B, 8] y", w=w), {"x": x})["y"]
    product = stored(stored(x, kind) @ w.astype(np.float32), kind)
    # a float32 sum in another order may round to the neighbour now and then
    assert (got == stored(product * product, kind)).mean() > 0.98
    exact = (x @ w.astype(np.float32)) ** 2
    assert not np.allclose(got, exact, rtol=1e-5)


@BOTH
def test_overflow_and_underflow_are_those_of_the_type(kind: str) -> None:
    x = np.array([[70_000, 1e-9, 3.4e38, -65_519, 1]], np.float32)
    body = f"h = Cast <to = {CODES[kind]}> (x)  y = Cast <to = 1> (h)"
    np.testing.assert_array_equal(run(make(body, "float[B, 5] x", "float[B, 5] y"), {"x": x})["y"], stored(x, kind))


def test_inputs_and_outputs_of_the_type_keep_it() -> None:
    model = make("m = Add(x, x)  y = Relu(m)", "float16[B, 2] x", "float16[B, 2] y, float16[B, 2] m")
    x = np.array([[1.5, 40_000]], np.float16)
    got = run(model, {"x": x})
    assert {name: array.dtype for name, array in got.items()} == {"y": np.float16, "m": np.float16}
    np.testing.assert_array_equal(got["m"], np.array([[3, np.inf]], np.float16))


def test_types_in_attributes_and_bodies() -> None:
    half = onnx.helper.make_tensor("value", onnx.TensorProto.FLOAT16, [1], np.array([0.5], np.float16))
    model = make(
        """h = Cast <to = 10> (x)  s = Shape(x)  c = ConstantOfShape(s)  a = Add(h, c)
        b = If (flag) <
            then_branch = then () => (float16[B, 2] t) { t = Relu(a) },
            else_branch = other () => (float16[B, 2] e) { z = EyeLike <dtype = 10> (a)  e = Mul(z, a) }
        >
        y = Cast <to = 1> (b)""",
        "float[B, 2] x, bool flag",
        "float[B, 2] y",
    )
    (filled,) = [node for node in model.graph if node.op_type == "ConstantOfShape"]
    filled.attributes["value"] = ir.AttrTensor("value", ir.serde.deserialize_tensor(half))
    x = np.array([[1, -1e-3], [3.0001, 70_000]], np.float32)
    for flag in (True, False):
        got = run(model, {"x": x, "flag": np.array(flag)})["y"]
        sums = stored(stored(x, "float16") + np.float32(0.5), "float16")
        wanted = np.maximum(sums, 0) if flag else np.eye(2, dtype=np.float32) * np.where(np.eye(2) > 0, sums, 0)
        finite = np.isfinite(wanted) & np.isfinite(got)
        np.testing.assert_array_equal(got[finite], wanted[finite])
        assert finite.sum() >= 2


def test_a_graph_without_half_types_is_left_as_it_is() -> None:
    model = make("y = Relu(x)", "float[B, 2] x", "float[B, 2] y")
    assert not is_half(model)
    assert [node.op_type for node in simulated(model).graph] == ["Relu"]
    assert is_half(make("h = Cast <to = 10> (x)  y = Cast <to = 1> (h)", "float[B, 2] x", "float[B, 2] y"))
