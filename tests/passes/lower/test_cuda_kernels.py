"""What CUDA has no kernel for in one type computes in another; what it has none for at all is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import ShapeInferencePass

from graphwright.errors import BuildError
from graphwright.passes import optimize
from graphwright.passes.lower import ort_cuda
from graphwright.passes.lower.cuda_kernels import BF16, BODIES, F16, F32, KERNELS, UseCudaKernels
from graphwright.runtimes.ort_cuda import SHAPE_OPS

Run = Callable[[ir.Model, dict[str, np.ndarray]], dict[str, np.ndarray]]
Spell = Callable[[ir.Model], str]


def make(body: str, inputs: str, outputs: str, opset: int = 23) -> ir.Model:
    model = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["": {opset}]> g ({inputs}) => ({outputs}) {{ {body} }}')
    return ShapeInferencePass()(model).model


def fit(model: ir.Model) -> tuple[ir.Model, bool]:
    result = UseCudaKernels()(model)
    onnx.checker.check_model(ir.to_proto(result.model), full_check=True)
    return result.model, result.modified


# --- 1. half precision without a kernel


def test_bfloat16_without_a_kernel_computes_in_float32(spell: Spell) -> None:
    made, modified = fit(make("r = ReduceMax(x)  y = Add(r, x)", "bfloat16[N, 4] x", "bfloat16[N, 4] y"))
    assert modified
    assert spell(made) == "Add(Cast(ReduceMax(Cast(x))), x)"
    types = [node.outputs[0].dtype for node in made.graph]
    assert types == [F32, F32, BF16, BF16]


@pytest.mark.parametrize("op_type", ["Greater", "Equal", "LessOrEqual"])
def test_a_comparison_gives_booleans_still(op_type: str) -> None:
    made, _ = fit(make(f"y = {op_type}(x, z)", "bfloat16[N] x, bfloat16[N] z", "bool[N] y"))
    assert [node.op_type for node in made.graph] == ["Cast", "Cast", op_type]
    assert made.graph.outputs[0].dtype == ir.DataType.BOOL


def test_an_output_of_the_graph_keeps_its_name_and_type(spell: Spell) -> None:
    made, _ = fit(make('y = Einsum <equation = "ij->i"> (x)', "bfloat16[2, 4] x", "bfloat16[2] y"))
    assert [(value.name, value.dtype) for value in made.graph.outputs] == [("y", BF16)]
    assert spell(made) == "Cast(Einsum(Cast(x)))"


def test_the_numbers_are_those_of_float32_rounded(run: Run) -> None:
    body = "h = Cast <to = 10> (x)  p = Mish(h)  y = Cast <to = 1> (p)"
    model = make(body, "float[N, 4] x", "float[N, 4] y")
    made, modified = fit(model.clone())
    assert modified
    x = np.linspace(-4, 4, 12, dtype=np.float32).reshape(3, 4)
    half = x.astype(np.float16).astype(np.float32)
    wanted = half * np.tanh(np.log1p(np.exp(half)))
    np.testing.assert_allclose(run(made, {"x": x})["y"], wanted, rtol=1e-3, atol=1e-4)  # one rounding to 11 bits


@pytest.mark.parametrize("dtype", ["float", "float16", "bfloat16"])
def test_what_has_a_kernel_stays(dtype: str) -> None:
    body = """
        s = Softmax(x)  m = MatMul(s, x)  g = Gelu(m)  n = LayerNormalization(g, w)  t = Transpose(n)
        a = Attention <q_num_heads = 2, kv_num_heads = 2> (q, q, q)  r = Reshape(t, shape)  y = Add(r, r)
        z = Identity(a)"""
    inputs = f"{dtype}[4, 4] x, {dtype}[4] w, {dtype}[B, S, 8] q, int64[2] shape"
    assert not fit(make(body, inputs, f"{dtype}[N, M] y, {dtype}[B, S, 8] z"))[1]


# --- 2. booleans


def test_a_choice_between_booleans_is_made_in_int32(run: Run, spell: Spell) -> None:
    body = "c = Greater(x, z)  w = Where(c, a, b)  y = Tile(w, n)"
    inputs = "float[N] x, float[N] z, bool[N] a, bool[N] b, int64[1] n"
    model = make(body, inputs, "bool[M] y")
    made, modified = fit(model)
    assert modified
    assert spell(made) == "Cast(Tile(Cast(Cast(Where(Greater(x, z), Cast(a), Cast(b)))), n))"
    feeds = {
        "x": np.array([1, 2, 3, 4], np.float32),
        "z": np.array([2, 1, 4, 3], np.float32),
        "a": np.array([True, True, False, False]),
        "b": np.array([True, False, True, False]),
        "n": np.array([2]),
    }
    # not held against the graph as it was: ONNX Runtime's CPU has no kernel for it either
    wanted = np.tile(np.where(feeds["x"] > feeds["z"], feeds["a"], feeds["b"]), 2)
    np.testing.assert_array_equal(run(made, feeds)["y"], wanted)


def test_a_choice_between_numbers_stays() -> None:
    assert not fit(make("y = Where(c, a, b)", "bool[N] c, int64[N] a, int64[N] b", "int64[N] y"))[1]


# --- 3. masks


def test_a_mask_gets_the_querys_type(spell: Spell) -> None:
    body = "y = Attention(q, q, q, m)"
    made, _ = fit(make(body, "float16[B, 2, S, 8] q, float[1, 1, S, S] m", "float16[B, 2, S, 8] y"))
    assert spell(made) == "Attention(q, q, q, Cast(m))"
    assert made.graph.node(0).outputs[0].dtype == F16
    for kind in ("float16", "bool"):
        assert not fit(make(body, f"float16[B, 2, S, 8] q, {kind}[1, 1, S, S] m", "float16[B, 2, S, 8] y"))[1]


# --- 4. no kernel at all


@pytest.mark.parametrize(
    ("body", "inputs", "named"),
    [
        ("y = Tan(x)", "float[N] x", r"Tan in float, at Tan"),
        ("y = Hardmax(x)", "float[N] x", r"Hardmax in float, at"),
        ("y = GridSample(x, g)", "double[1, 1, 4, 4] x, double[1, 4, 4, 2] g", r"GridSample in double, at"),
        ("y = Det(x)", "float[N, 3, 3] x", r"Det in float, at"),
        ("t = Unique(i)  c = Cast <to = 1> (t)  y = Acos(c)", "int64[N] i", r"Acos in float, at"),
    ],
)
def test_what_would_run_on_the_cpu_is_refused_by_name(body: str, inputs: str, named: str) -> None:
    outputs = "double[A, B, C, D] y" if "double" in inputs else "float[N] y"
    with pytest.raises(BuildError, match=rf"^ort-cuda has no kernel for {named}.* Take ort-cpu, or a model without it"):
        UseCudaKernels()(make(body, inputs, outputs))


def test_the_refusal_reaches_the_user() -> None:
    with pytest.raises(BuildError, match="ort-cuda has no kernel for Tan in float"):
        optimize(make("y = Tan(x)", "float[N] x", "float[N] y"), "ort-cuda")


def test_what_is_computed_from_shapes_may_lack_a_kernel() -> None:
    body = """
        s = Shape(x)  p = ReduceProd(s)  f = Cast <to = 16> (p)  c = Ceil(f)  i = Cast <to = 7> (c)
        y = Expand(x, i)"""
    assert not fit(make(body, "float[4] x", "float[N] y"))[1]
    data = body.replace("s = Shape(x)", "s = Cast <to = 7> (x)")
    assert fit(make(data, "float[4] x", "float[N] y"))[1], "the same of data: Ceil has no bfloat16 kernel"


def test_indices_that_have_no_kernel_are_left_to_the_cpu() -> None:
    assert not fit(make("p = ReduceProd(x)  y = BitwiseAnd(p, p)", "int64[N] x", "int64[1] y"))[1]


# --- the table


def test_the_table_names_operators_of_onnx() -> None:
    for op in KERNELS:
        assert onnx.defs.has(op, 23, ""), op
    for op in BODIES:
        schema: Any = onnx.defs.get_schema(op, 23, "")
        assert schema.has_function or schema.has_context_dependent_function, op


def test_what_shapes_are_computed_with_has_kernels_for_floats_or_takes_none() -> None:
    """So that a node of theirs on the CPU computes no float data: it is of shapes, or of whole numbers."""
    whole = {"BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "And", "Or", "Xor", "Not", "Constant"}
    lacking = {op for op in SHAPE_OPS - whole if not {F32, F16} <= KERNELS.get(op, frozenset())}
    assert lacking == {"Unique", "Range"}, (
        "Unique of floats is refused by the pass; Range is only of float32 and double"
    )


def test_a_target_without_a_cuda_graph_takes_any_shape() -> None:
    model = make("y = Relu(x)", "float[N] x", "float[N] y")
    assert optimize(model, "ort-cuda").model.graph.node(0).op_type == "Relu"
    assert ort_cuda.TARGET.precisions == ("fp16", "bf16", "fp32")
