"""Linear layers in int8, quantized at run time: the numbers are the definition's, and ONNX Runtime fuses the form."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from graphwright.passes import lift, optimize, parse_job
from graphwright.passes.lower import lower, lowering_of
from graphwright.passes.quantize.dynamic_int8 import DynamicInt8, quantize_columns
from graphwright.runtimes.ort_cpu import optimized_ops
from graphwright.spec import PATH

Arrays = dict[str, np.ndarray]
Run = Callable[[ir.Model, Arrays], Arrays]
Spell = Callable[[ir.Model], str]

K, N = 17, 19
SHAPES = ((1, 1, K), (1, 7, K), (3, 5, K))


def weights(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.3, shape).astype(np.float32)


def make(body: str, inputs: str = "", rank: int = 3, y: str = "", **constants: np.ndarray) -> ir.Model:
    x = ", ".join([*"BS"[: rank - 1], str(K)])
    return ir.from_onnx_text(
        f"""<ir_version: 10, opset_import: ["": 23]>
            linear (float[{x}] x{inputs}) => (float[{x.replace(str(K), str(N))}] y{y}) {{ {body} }}""",
        initializers=[
            ir.tensor(array, name=name) for name, array in constants.items() if re.search(rf"\b{name}\b", body)
        ],
    )


def quantized(model: ir.Model) -> ir.Model:
    after = model.clone()
    assert DynamicInt8()(after).modified
    return after


def linear(x: np.ndarray, w: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """What the ONNX operator specification says of DynamicQuantizeLinear and MatMulInteger, in float64."""
    low, high = min(0.0, float(x.min())), max(0.0, float(x.max()))
    scale = np.float32((high - low) / 255) or np.float32(1)
    zero = np.clip(np.rint(-low / scale), 0, 255)
    integers = np.clip(np.rint(x / scale) + zero, 0, 255) - zero
    matrix, scales = quantize_columns(w)
    result: np.ndarray = (integers @ matrix.astype(np.float64)) * scale * scales
    return result if bias is None else result + bias


# the products are integers and exact; two float32 scales are multiplied with them, and a bias is added
RTOL, ATOL = 1e-6, 1e-6


def rounding(x: np.ndarray, w: np.ndarray) -> float:
    """The most that rounding x and w to 8 bits can change an element of x @ w."""
    step_x = (max(x.max(), 0) - min(x.min(), 0)) / 255
    step_w = np.abs(w).max() / 127
    return len(w) * float(step_x / 2 * np.abs(w).max() + step_w / 2 * np.abs(x).max() + step_x * step_w / 4)


def check(model: ir.Model, w: np.ndarray, run: Run, bias: np.ndarray | None = None, rank: int = 3) -> None:
    random, after = np.random.default_rng(1), quantized(model)
    for shape in SHAPES:
        x = random.normal(0.5, 1, shape[3 - rank :]).astype(np.float32)
        got = run(after, {"x": x})["y"]
        np.testing.assert_allclose(got, linear(x, w, bias), rtol=RTOL, atol=ATOL)
        np.testing.assert_allclose(got, run(model, {"x": x})["y"], rtol=0, atol=rounding(x, w))
    for x in (np.zeros(SHAPES[2][3 - rank :], np.float32), np.full(SHAPES[2][3 - rank :], -3, np.float32)):
        np.testing.assert_allclose(run(after, {"x": x})["y"], linear(x, w, bias), rtol=RTOL, atol=ATOL)


PRODUCT = (
    "Mul(Cast(MatMulInteger(DynamicQuantizeLinear(x), {0}.int8, DynamicQuantizeLinear(x)[2])), "
    "Mul(DynamicQuantizeLinear(x)[1], {0}.scale))"
)


def test_a_matmul_becomes_an_integer_product(run: Run, spell: Spell) -> None:
    w = weights(K, N)
    model = make("y = MatMul(x, w)", w=w)
    model.graph.node(0).metadata_props[PATH] = "encoder.dense"
    after = quantized(model)
    assert spell(after) == PRODUCT.format("w")
    assert all(node.metadata_props == {PATH: "encoder.dense"} for node in after.graph)
    matrix, scales = after.graph.initializers["w.int8"], after.graph.initializers["w.scale"]
    assert (matrix.dtype, str(matrix.shape)) == (ir.DataType.INT8, f"[{K},{N}]")
    assert (scales.dtype, str(scales.shape)) == (ir.DataType.FLOAT, f"[{N}]")
    check(model, w, run)


@pytest.mark.parametrize(
    ("body", "name", "added"),
    [
        ("y = Gemm(x, w)", "w", False),
        ("y = Gemm(x, w, b)", "w", True),
        ("y = Gemm <transB = 1> (x, wt)", "wt.T", False),
        ("y = Gemm <transB = 1, alpha = 1.0, beta = 1.0> (x, wt, b)", "wt.T", True),
        ("m = MatMul(x, w)  y = Add(m, b)", "w", True),
    ],
)
def test_a_linear_layer_with_a_bias(body: str, name: str, added: bool, run: Run, spell: Spell) -> None:
    w, bias = weights(K, N), weights(N, seed=1)
    model = make(body, rank=2, w=w, wt=w.T.copy(), b=bias)
    assert spell(quantized(model)) == (f"Add({PRODUCT}, b)" if added else PRODUCT).format(name)
    check(model, w, run, bias if added else None, rank=2)


def test_products_of_one_x_share_its_quantization(run: Run, spell: Spell) -> None:
    first, second = weights(K, N), weights(K, N, seed=1)
    model = make("a = MatMul(x, w)  b = MatMul(x, v)  y = Add(a, b)", w=first, v=second)
    after = quantized(model)
    assert spell(after) == f"Add({PRODUCT.format('w')}, {PRODUCT.format('v')})"
    assert [node.op_type for node in after.graph].count("DynamicQuantizeLinear") == 1
    x = weights(2, 3, K, seed=2)
    wanted = linear(x, first) + linear(x, second)
    np.testing.assert_allclose(run(after, {"x": x})["y"], wanted, rtol=RTOL, atol=ATOL)


def test_a_matrix_of_two_layers_is_kept_once(run: Run) -> None:
    w = weights(K, N)
    model = make("z = Neg(x)  a = MatMul(x, w)  b = MatMul(z, w)  y = Sub(a, b)", w=w)
    after = lower(quantized(model), lowering_of(parse_job("ort-cpu:int8-dynamic")))
    assert sorted(after.graph.initializers) == ["w.int8", "w.scale"]
    x = weights(2, 3, K, seed=2)
    np.testing.assert_allclose(run(after, {"x": x})["y"], linear(x, w) - linear(-x, w), rtol=RTOL, atol=2 * ATOL)


def test_a_layer_whose_output_is_the_graphs_keeps_its_name_and_type(run: Run) -> None:
    w = weights(K, N)
    model = make("y = MatMul(x, w)  z = Neg(y)", y=f", float[B, S, {N}] z", w=w)
    after = quantized(model)
    assert [(value.name, value.dtype) for value in after.graph.outputs] == [
        ("y", ir.DataType.FLOAT),
        ("z", ir.DataType.FLOAT),
    ]
    outputs = run(after, {"x": weights(2, 3, K, seed=2)})
    np.testing.assert_array_equal(outputs["y"], -outputs["z"])


def test_the_scales_are_exact_per_column() -> None:
    w = weights(64, 5) * np.array([1e-3, 1, 50, 0, 1e-44], np.float32)  # the last is too small to be divided by 127
    matrix, scales = quantize_columns(w)
    assert [str(array.dtype) for array in (matrix, scales)] == ["int8", "float32"]
    np.testing.assert_array_equal(scales[:3], (np.abs(w[:, :3]).max(axis=0) / np.float32(127)))
    assert scales[3] == 1
    np.testing.assert_array_equal(np.abs(matrix[:, :3]).max(axis=0), [127, 127, 127])
    np.testing.assert_array_equal(matrix[:, 3:], 0)
    error = np.abs(matrix * scales.astype(np.float64) - w)
    assert (error <= scales * 0.5000001).all()  # half a step, and the rounding of the scale itself


def test_a_column_of_zeros_gives_zeros(run: Run) -> None:
    w = weights(K, N)
    w[:, 3] = 0
    model = make("y = MatMul(x, w)", w=w)
    check(model, w, run)
    assert (run(quantized(model), {"x": weights(2, 3, K, seed=2)})["y"][..., 3] == 0).all()


def large(value: float) -> np.ndarray:
    w = weights(K, N)
    w[2, 3] = value
    return w


STAY: dict[str, tuple[str, str, int, np.ndarray]] = {
    "few inputs": ("s = Slice(x, zero, short, last)  y = MatMul(s, w)", "", 3, weights(15, N)),
    "few outputs": ("m = MatMul(x, w)  y = Pad(m, pads)", "", 3, weights(K, 15)),
    "computed matrix": ("y = MatMul(x, v)", f", float[{K}, {N}] v", 3, weights(K, N)),
    "rank 3": ("y = MatMul(x, w)", "", 3, weights(1, K, N)),
    "on the left": ("t = Transpose(x)  m = MatMul(w, t)  y = Transpose(m)", "", 2, weights(N, K)),
    "alpha": ("y = Gemm <alpha = 0.5> (x, w)", "", 2, weights(K, N)),
    "beta": ("y = Gemm <beta = 0.5> (x, w, b)", "", 2, weights(K, N)),
    "transA": ("t = Transpose(x)  y = Gemm <transA = 1> (t, w)", "", 2, weights(K, N)),
    "not a number": ("y = MatMul(x, w)", "", 3, large(np.nan)),
    "infinite": ("y = MatMul(x, w)", "", 3, large(np.inf)),
    "double": (
        "d = Cast <to = 11> (x)  m = MatMul(d, w)  y = Cast <to = 1> (m)",
        "",
        3,
        weights(K, N).astype(np.float64),
    ),
}


@pytest.mark.parametrize("name", STAY)
def test_what_is_no_linear_layer_or_too_small_stays(name: str, spell: Spell, run: Run) -> None:
    body, inputs, rank, w = STAY[name]
    lists = {"zero": [0], "short": [15], "last": [-1], "pads": [0, 0, 0, 0, 0, 4]}
    constants: Arrays = {key: np.array(value, np.int64) for key, value in lists.items()}
    model = make(body, inputs, rank, "", **constants, w=w, b=weights(N))
    after = model.clone()
    assert not DynamicInt8()(after).modified
    assert spell(after) == spell(model)
    feeds = {"x": weights(*(2, 3, K)[3 - rank :], seed=2)} | ({"v": w} if inputs else {})
    np.testing.assert_array_equal(run(after, feeds)["y"], run(model, feeds)["y"])


def test_smallest_sides_are_quantized() -> None:
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["": 23]> edge (float[B, 16] x) => (float[B, 16] y) { y = MatMul(x, w) }',
        initializers=[ir.tensor(weights(16, 16), name="w")],
    )
    assert DynamicInt8()(model).modified


def test_a_layer_in_the_body_of_an_if_is_quantized_there(run: Run) -> None:
    w = weights(K, N)
    model = make(
        f"""a = MatMul(x, w)
            y = If (flag) <then_branch = t () => (float[B, S, {N}] b) {{ m = MatMul(x, w)  b = Add(m, a) }},
                           else_branch = e () => (float[B, S, {N}] c) {{ c = Neg(a) }}>""",
        ", bool flag",
        w=w,
    )
    after = lower(quantized(model), lowering_of(parse_job("ort-cpu:int8-dynamic")))
    assert "MatMul" not in [node.op_type for node in after.graph.all_nodes()]
    assert "w" not in after.graph.initializers
    x = weights(2, 3, K, seed=2)
    for flag, factor in ((True, 2), (False, -1)):
        got = run(after, {"x": x, "flag": np.array(flag)})["y"]
        np.testing.assert_allclose(got, factor * linear(x, w), rtol=RTOL, atol=2 * ATOL)


def test_the_float_weights_are_gone_from_the_target_graph_but_where_another_op_reads_them() -> None:
    table, w, bias = weights(N, K), weights(K, N), weights(N)
    model = ir.from_onnx_text(
        f"""<ir_version: 10, opset_import: ["": 23]> embed (int64[B, S] ids) => (float[B, S, {N}] y) {{
            x = Gather(table, ids)  h = MatMul(x, w)  m = Add(h, b)  g = MatMul(m, table)  y = MatMul(g, w) }}""",
        initializers=[ir.tensor(array, name=name) for name, array in {"table": table, "w": w, "b": bias}.items()],
    )
    lifted = lift(model)
    before = ir.to_proto(lifted.model).SerializeToString(deterministic=True)
    done = optimize(lifted, "ort-cpu:int8-dynamic")
    assert sorted(done.model.graph.initializers) == ["b", "table", "table.int8", "table.scale", "w.int8", "w.scale"]
    # the lifted graph serves other targets too
    assert ir.to_proto(lifted.model).SerializeToString(deterministic=True) == before
    assert "MatMulInteger" not in [node.op_type for node in optimize(lifted, "ort-cpu").model.graph]


def test_onnx_runtime_fuses_the_form(tmp_path: Path) -> None:
    first, second = weights(K, N), weights(K, N, seed=1)
    alone = quantized(make("y = MatMul(x, w)", w=first))
    shared = quantized(
        make("a = MatMul(x, w)  b = MatMul(x, v)  c = Add(b, bias)  y = Sub(a, c)", w=first, v=second, bias=first[0])
    )
    for model, wanted in (
        (alone, {"com.microsoft.DynamicQuantizeMatMul": 1}),
        (shared, {"com.microsoft.MatMulIntegerToFloat": 2, "DynamicQuantizeLinear": 1, "Sub": 1}),
    ):
        ir.save(model, tmp_path / "model.onnx")
        assert optimized_ops(tmp_path / "model.onnx") == wanted
