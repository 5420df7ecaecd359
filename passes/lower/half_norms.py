"""Norms of half precision in half precision, where the kernel itself adds up in float32.

    Cast(float32, X) -> LayerNormalization -> Cast(half)   =>   LayerNormalization(X), scale and bias rounded to half

Legal cases: 1. LayerNormalization or RMSNormalization over X cast up from float16 or bfloat16, its scale and bias
constants; 2. every reader of its one output casts it back to that type; 3. sums in float32 (stash_type 1, the default),
and no number of scale and bias leaves the range of half. X may be a graph's input, and is never a residual sum kept in
float32: that would be rounded by this.
ONNX Runtime's kernels compute mean and variance in float32 (ONNX says so with stash_type), so of the numbers scale and
bias alone are rounded; two casts go, and a residual sum in front can be fused with the norm.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir

from ..base import GraphPass
from ..lift.values import add_constant, constant, producer

HALVES = {ir.DataType.FLOAT16: np.dtype(np.float16), ir.DataType.BFLOAT16: np.dtype(ml_dtypes.bfloat16)}


class NormInHalf(GraphPass):
    """Norms between casts of half precision -> norms in half precision."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in list(model.graph.all_nodes()):
            half = _half_of(node)
            if half is not None:
                _narrow(node, half)
                modified = True
        return ir.passes.PassResult(model, modified)


def _half_of(node: ir.Node) -> ir.DataType | None:
    """The type that a norm can be computed in; None if it must stay."""
    if node.domain != "" or node.op_type not in ("LayerNormalization", "RMSNormalization"):
        return None
    up = producer(node.inputs[0], "Cast")
    source = None if up is None else up.inputs[0]
    half = source.dtype if up is not None and source is not None and _cast_to(up) == ir.DataType.FLOAT else None
    readers = [reader for reader, _ in node.outputs[0].uses()]
    if half is None or half not in HALVES or node.outputs[0].is_graph_output() or not readers:
        return None
    back = all(reader.op_type == "Cast" and _cast_to(reader) == half for reader in readers)
    alone = all(not value.uses() and not value.is_graph_output() for value in node.outputs[1:])
    plain = node.attributes.get_int("stash_type", 1) == int(ir.DataType.FLOAT)
    fits = all(value is None or _fits(constant(value), HALVES[half]) for value in node.inputs[1:])
    return half if back and alone and plain and fits else None


def _cast_to(cast: ir.Node) -> ir.DataType:
    return ir.DataType(cast.attributes.get_int("to", 0))


def _fits(array: np.ndarray | None, dtype: np.dtype) -> bool:
    if array is None:
        return False
    with np.errstate(over="ignore"):
        return bool(np.isfinite(array.astype(dtype)).all())


def _narrow(node: ir.Node, half: ir.DataType) -> None:
    up = producer(node.inputs[0], "Cast")
    assert up is not None
    assert node.graph is not None
    node.replace_input_with(0, up.inputs[0])
    for index, value in enumerate(node.inputs[1:], 1):
        array = constant(value)
        if value is not None and array is not None:
            made = add_constant(node.graph, f"{value.name}.{half.name.lower()}", array.astype(HALVES[half]))
            node.replace_input_with(index, made)
    node.outputs[0].type = ir.TensorType(half)
    for reader in list(node.outputs[0].consumers()):
        old = reader.outputs[0]
        if old.is_graph_output():
            continue  # a cast to the type that it has already: kept for its name
        ir.convenience.replace_all_uses_with(old, node.outputs[0])
        assert reader.graph is not None
        reader.graph.remove(reader, safe=True)
