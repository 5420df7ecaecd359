"""Linear layers with dynamic int8 in the form that OpenVINO computes in int8.

    Mul(Cast(MatMulInteger(DynamicQuantizeLinear(x), W, x_zero)), Mul(x_scale, w_scale))
        -> MatMul(x, DequantizeLinear(W, w_scale, axis=1))

OpenVINO has no integer kernel for MatMulInteger: it computes it in float32, slower than the float32 model. Of a product
with dequantized weights it keeps the integers, and quantizes x itself, in groups along the inner axis: on CPUs with
int8 dot products (VNNI) that is faster than float32, and closer to it than one scale for all of x.

Legal cases: 1. the form above, as `DynamicInt8` makes it: W int8 [K, N] and w_scale [N] constant, no zero point of W;
2. each value in between has no other reader.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ..base import GraphPass
from ..lift.values import constant, insert, is_constant, only_consumer, producer


class KeepIntegerWeights(GraphPass):
    """A product of dynamically quantized x with int8 weights -> a product of x with dequantized weights."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in list(model.graph.all_nodes()):
            modified |= node.op_type == "MatMulInteger" and _replace(node)
        if modified:
            RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified)


def _replace(node: ir.Node) -> bool:
    quantize = producer(node.inputs[0], "DynamicQuantizeLinear")
    weight = constant(node.inputs[1])
    cast = only_consumer(node.outputs[0], "Cast")
    product = only_consumer(cast.outputs[0], "Mul") if cast is not None else None
    if quantize is None or weight is None or cast is None or product is None or weight.ndim != 2:
        return False
    if list(node.inputs[2:]) != [quantize.outputs[2]]:
        return False
    scales = producer(next(value for value in product.inputs if value is not cast.outputs[0]), "Mul")
    if scales is None or quantize.outputs[1] not in scales.inputs:
        return False
    scale = next(value for value in scales.inputs if value is not quantize.outputs[1])
    if not is_constant(scale):
        return False
    dequantized = insert(product, "DequantizeLinear", [node.inputs[1], scale], axis=1)
    made, old = insert(product, "MatMul", [quantize.inputs[0], dequantized]), product.outputs[0]
    made.type, made.shape = old.type, old.shape
    assert product.graph is not None
    ir.convenience.replace_nodes_and_values(product.graph, product, [product], [], [old], [made])
    return True
