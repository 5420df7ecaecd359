"""Functions of domain graphwright: declared once, run as they are, the same when inlined; the core bears the mark."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from graphwright.passes import lowered_to
from graphwright.passes.lift.functions import Definition, inline
from graphwright.passes.prover import Prover
from graphwright.spec import PATH, SITE

Run = Callable[[ir.Model, dict[str, np.ndarray]], dict[str, np.ndarray]]

SCALED = Definition("""
Scaled <factor: float = 1.0> (x) => (y) {
    a = Constant <value_float: float = @factor> ()
    b = CastLike(a, x)
    [core] s = Sigmoid(x)
    y = Mul(s, b)
}""")


@pytest.fixture
def model() -> ir.Model:
    """Two calls in a row, the second with the attribute's default."""
    made = ir.from_onnx_text("""
        <ir_version: 10, opset_import: ["": 23]>
        g (float[N, 4] x) => (float[N, 4] y) { y = Relu(x) }""")
    first = SCALED.call(made, made.graph.outputs, factor=1.5)
    second = SCALED.call(made, first.outputs)
    for node in (first, second):
        node.metadata_props.update({SITE: "scaled", PATH: "a.b"})
        node.outputs[0].type, node.outputs[0].shape = made.graph.inputs[0].type, made.graph.inputs[0].shape
        made.graph.append(node)
    second.outputs[0].name = "z"
    made.graph.outputs[0] = second.outputs[0]
    return made


def test_a_function_is_declared_once_and_runs_inlined_or_not(model: ir.Model, run: Run) -> None:
    assert [key[:2] for key in model.functions] == [("graphwright", "Scaled")]
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    called = run(model, {"x": x})["z"]
    expected = 1 / (1 + np.exp(-1.5 / (1 + np.exp(-np.maximum(x, 0)))))
    np.testing.assert_allclose(called, expected, rtol=1e-6)
    assert inline(model)
    assert not model.functions
    assert "graphwright" not in model.opset_imports
    np.testing.assert_array_equal(run(model, {"x": x})["z"], called)


def test_only_the_core_bears_the_mark_of_the_site(model: ir.Model) -> None:
    inline(model)
    assert lowered_to(model, "scaled") == {"Sigmoid": 2}
    assert {node.metadata_props.get(PATH) for node in model.graph if node.op_type == "Sigmoid"} == {"a.b"}
    assert not inline(model)


def test_a_call_is_proved_with_its_function(model: ir.Model) -> None:
    x, call = model.graph.inputs[0], SCALED.call(model, model.graph.inputs, factor=2.0)
    call.outputs[0].type = x.type
    half = ir.Value(name="two", const_value=ir.tensor(np.float32(2)), type=ir.TensorType(ir.DataType.FLOAT))
    sigmoid = ir.node("Sigmoid", [x])
    sigmoid.outputs[0].type = x.type
    old = ir.node("Mul", [sigmoid.outputs[0], half])
    old.outputs[0].type = x.type
    prover = Prover(model.functions)
    assert prover.prove(old.outputs[0], call.outputs[0], [x]).equal
    assert not prover.prove(sigmoid.outputs[0], call.outputs[0], [x]).equal


def test_a_site_inside_of_a_function_bears_its_own_mark() -> None:
    made = ir.from_onnx_text("""
        <ir_version: 10, opset_import: ["": 23]>
        g (float[N, 4] x) => (float[N, 4] y) { y = Relu(x) }""")
    pair = Definition("Pair (x) => (y) { [core] s = Neg(x)  [core_scaled] y = Sigmoid(s) }")
    call = pair.call(made, made.graph.outputs)
    call.metadata_props[SITE] = "pair"
    call.outputs[0].type, call.outputs[0].shape = made.graph.inputs[0].type, made.graph.inputs[0].shape
    made.graph.append(call)
    made.graph.outputs[0] = call.outputs[0]
    inline(made)
    assert (lowered_to(made, "pair"), lowered_to(made, "scaled")) == ({"Neg": 1}, {"Sigmoid": 1})


def test_the_constants_of_a_body_are_settled_in_the_type_of_its_input(model: ir.Model, run: Run) -> None:
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    called = run(model, {"x": x})["z"]
    inline(model)
    assert [node.op_type for node in model.graph] == ["Relu", "Sigmoid", "Mul", "Sigmoid", "Mul"]
    settled = [value.const_value for value in model.graph.initializers.values()]
    assert sorted(float(tensor.numpy()) for tensor in settled if tensor is not None) == [1.0, 1.5]
    np.testing.assert_array_equal(run(model, {"x": x})["z"], called)
