"""`Attention` in the forms that TensorRT's parser takes.

The parser of TensorRT 11 takes one output, no cache, no soft-cap, no `softmax_precision`, and a mask or the causal flag
but not both. A soft-cap becomes products, Tanh and Softmax; `softmax_precision` is left out, because the fused kernels
add up in float32 whatever the type; the rest is refused before the parser is asked.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from ...errors import BuildError
from ...spec import SITE
from ..base import GraphPass
from ..lift.values import add_constant, dim, insert, rank
from ..sites import path_of


class DecomposeAttention(GraphPass):
    """softmax(cap * tanh(scale * Q Kt / cap) + mask) V in primitives; grouped heads get an axis of their own."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in list(model.graph.all_nodes()):
            if node.domain != "" or node.op_type != "Attention":
                continue
            modified |= node.attributes.pop("softmax_precision", None) is not None
            if node.attributes.get_float("softcap", 0.0):
                _decompose(node)
                modified = True
        return ir.passes.PassResult(model, modified)


def _decompose(node: ir.Node) -> None:
    if reason := _unsaid(node):
        raise BuildError(f"The soft-capped Attention at {path_of(node)} cannot be said in primitives: {reason}.")
    query, key, value, mask = [*node.inputs, None][:4]
    assert query is not None
    kind = None if mask is None else mask.dtype
    heads, fewer = dim(query, 1), dim(key, 1)
    groups = heads // fewer if isinstance(heads, int) and isinstance(fewer, int) else 1
    if groups > 1:  # [batch, heads of K, groups, length, size]
        query = insert(node, "Reshape", [query, _list(node, [0, fewer, groups, -1, dim(query, 3)])])
        key, value, mask = (
            None if v is None else insert(node, "Unsqueeze", [v, _list(node, [2])]) for v in (key, value, mask)
        )
    # the root of the scale at Q and at K each, as the parser itself has it: half precision does not overflow there
    root = _number(node, math.sqrt(node.attributes.get_float("scale", 1.0)))  # never negative: no kernel takes that
    perm = [0, 1, 2, 4, 3] if groups > 1 else [0, 1, 3, 2]
    kt = insert(node, "Transpose", [insert(node, "Mul", [key, root])], perm=perm)
    scores = insert(node, "MatMul", [insert(node, "Mul", [query, root]), kt])
    cap = _number(node, node.attributes.get_float("softcap", 0.0))
    scores = insert(node, "Mul", [insert(node, "Tanh", [insert(node, "Div", [scores, cap])]), cap])
    if mask is not None and kind == ir.DataType.BOOL:
        scores = insert(node, "Where", [mask, scores, _number(node, _lowest(node))])
    elif mask is not None:
        scores = insert(node, "Add", [scores, mask])
    weights = insert(node, "Softmax", [scores], axis=-1)
    core = weights.producer()
    assert core is not None
    core.metadata_props[SITE] = node.metadata_props.get(SITE, "attention")
    made = insert(node, "MatMul", [weights, value])
    if groups > 1:
        made = insert(node, "Reshape", [made, _list(node, [0, heads, -1, dim(node.inputs[2], 3)])])
    old = node.outputs[0]
    made.type, made.shape, made.name = old.type, old.shape, old.name if old.is_graph_output() else None
    ir.convenience.replace_all_uses_with(old, made, replace_graph_outputs=True)
    assert node.graph is not None
    node.graph.remove(node, safe=True)


def _unsaid(node: ir.Node) -> str:
    inputs = [*node.inputs, None, None, None][:5]
    if len(node.outputs) > 1 or inputs[4] is not None or bool(node.attributes.get_int("is_causal", 0)):
        return "it has a cache, a second output, or the causal flag"
    if any(rank(value) != 4 for value in inputs[:3]):
        return "its inputs are not of rank 4"
    same = dim(inputs[0], 1) == dim(inputs[1], 1)
    sizes = [dim(value, axis) for value in inputs[:3] for axis in (1, 3)]
    known = all(isinstance(size, int) for size in sizes)
    if not same and not known:
        return "its heads or sizes are not known as numbers"
    if not same and inputs[3] is not None and dim(inputs[3], 1) != 1:
        return "its mask differs between heads that share K and V"
    return ""


def _list(node: ir.Node, numbers: list[int | str | None]) -> ir.Value:
    assert node.graph is not None
    name = f"shape.{'.'.join(map(str, numbers))}"
    return add_constant(node.graph, name, np.array(numbers, np.int64))


def _number(node: ir.Node, number: float) -> ir.Value:
    assert node.graph is not None
    dtype = node.outputs[0].dtype or ir.DataType.FLOAT
    return add_constant(node.graph, f"number.{number:g}.{dtype.name.lower()}", np.array(number, dtype.numpy()))


def _lowest(node: ir.Node) -> float:
    return float((node.outputs[0].dtype or ir.DataType.FLOAT).min)


class CheckAttention(GraphPass):
    """One output, no soft-cap, and a mask or the causal flag but not both: what the parser of TensorRT 11 takes."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        for node in model.graph.all_nodes():
            if node.domain == "" and node.op_type == "Attention" and (reason := _refused(node)):
                raise BuildError(f"TensorRT's parser does not take the Attention at {path_of(node)}: {reason}.")
        return ir.passes.PassResult(model, False)


def _refused(node: ir.Node) -> str:
    inputs = [value is not None for value in node.inputs] + [False] * 6
    if len(node.outputs) > 1 or inputs[4]:
        return "a key/value cache or a second output"
    if node.attributes.get_int("is_causal", 0) and inputs[3]:
        return "is_causal together with a mask"
    return ""
