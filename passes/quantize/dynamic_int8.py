"""Linear layers in int8 without calibration: x is quantized at run time, per tensor; weights ahead, per output channel.

    MatMul(x, W) -> Mul(Cast(MatMulInteger(DynamicQuantizeLinear(x), Wq)), x_scale * w_scale)

Legal cases: 1. MatMul whose second input is a constant float32 matrix; 2. Gemm with such a B, transA 0, alpha 1 and
beta 1, its C added behind; 3. both sides of the matrix at least 16: below that quantizing costs more than it saves;
4. all of its numbers finite.
One DynamicQuantizeLinear serves all products of the same x. ONNX Runtime fuses the form into MatMulIntegerToFloat.
Activations are uint8 and weights int8, the pair that x86 has fast kernels for.

Source of the semantics: ONNX operator specification, DynamicQuantizeLinear-11, MatMulInteger-10.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..base import GraphPass
from ..lift.values import add_constant, constant, insert
from ..sites import inherit

SMALLEST = 16


class DynamicInt8(GraphPass):
    """Products with constant matrices -> int8 products with dynamically quantized activations."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for graph in model.graphs():  # the bodies of If and Loop too
            quantized: dict[ir.Value, tuple[ir.Value, ir.Value, ir.Value]] = {}
            for node in list(graph):
                weight = _weight(node)
                if weight is not None:
                    _replace(graph, node, weight, quantized)
                    modified = True
        return ir.passes.PassResult(model, modified)


def quantize_columns(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32 [K, N] -> int8 [K, N] and float32 scales [N], symmetric; a column of zeros gets the scale 1."""
    scale = np.abs(weight).max(axis=0) / np.float32(127)
    scale = np.where(scale > 0, scale, np.float32(1))  # below 127 of float32's smallest numbers the scale is 0 too
    return np.clip(np.rint(weight / scale), -127, 127).astype(np.int8), scale


def _is_transposed(node: ir.Node) -> bool:
    return node.op_type == "Gemm" and bool(node.attributes.get_int("transB", False))


def _weight(node: ir.Node) -> np.ndarray | None:
    """The constant matrix [K, N] of a linear layer, or None."""
    if node.domain != "" or node.op_type not in ("MatMul", "Gemm") or constant(node.inputs[0]) is not None:
        return None
    weight = constant(node.inputs[1])
    if weight is None or weight.ndim != 2 or weight.dtype != np.float32:
        return None
    if node.op_type == "Gemm":
        plain = [node.attributes.get_float("alpha", 1.0), node.attributes.get_float("beta", 1.0)] == [1.0, 1.0]
        if not plain or node.attributes.get_int("transA", False):
            return None
        weight = weight.T if _is_transposed(node) else weight
    return weight if min(weight.shape) >= SMALLEST and np.isfinite(weight).all() else None


def _replace(
    graph: ir.Graph, node: ir.Node, weight: np.ndarray, quantized: dict[ir.Value, tuple[ir.Value, ir.Value, ir.Value]]
) -> None:
    x, source = node.inputs[0], node.inputs[1]
    assert x is not None
    assert source is not None
    if x not in quantized:
        dynamic = inherit(ir.node("DynamicQuantizeLinear", [x], num_outputs=3), node)
        graph.insert_before(node, dynamic)
        quantized[x] = (dynamic.outputs[0], dynamic.outputs[1], dynamic.outputs[2])
    integers, scale, zero = quantized[x]
    matrix, scales = quantize_columns(weight)
    name = f"{source.name}.T" if _is_transposed(node) else source.name
    w = add_constant(graph, f"{name}.int8", matrix)
    w_scale = add_constant(graph, f"{name}.scale", scales)
    product = inherit(ir.node("MatMulInteger", [integers, w, zero]), node)
    graph.insert_before(node, product)
    floats = insert(node, "Cast", product.outputs, to=int(ir.DataType.FLOAT))
    result = insert(node, "Mul", [floats, insert(node, "Mul", [scale, w_scale])])
    if node.op_type == "Gemm" and len(node.inputs) > 2 and node.inputs[2] is not None:
        result = insert(node, "Add", [result, node.inputs[2]])
    old = node.outputs[0]
    result.shape, result.type = old.shape, old.type
    last = result.producer()
    assert last is not None
    ir.convenience.replace_nodes_and_values(graph, node, [node], [], [old], [result])
