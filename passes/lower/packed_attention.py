"""Self-attention with its three linear layers -> `com.microsoft.Attention` with their matrices side by side.

    Attention(Add(MatMul(x, Wq), bq), Add(MatMul(x, Wk), bk), Add(MatMul(x, Wv), bv), mask) of rank 3
        ->   com.microsoft.Attention(x, [Wq Wk Wv], [bq bk bv], attention_bias = Where(mask, 0, lowest))

Legal cases: 1. those of `multihead`; 2. Q, K and V are linear layers of one x, which nothing else reads: constant
matrices of rank 2, and biases for all of them or for none (then zeros).

Source: contrib operators of ONNX Runtime, Attention. Measured on 1.31: its product is twice as slow as MatMul's with a
matrix laid out at load (8 x 128, 384 wide: 15.9 ms against 7.1 ms in all). So it is chosen by measuring alone.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ...spec import SITE
from ..base import GraphPass
from ..lift.values import add_constant, constant, dim, only_consumer, producer
from ..sites import inherit
from .forms import Chosen, attention_class
from .multihead import CONTRIB, fits, to_add

Linear = tuple[ir.Value, np.ndarray, np.ndarray | None]  # x, matrix, bias


class UsePackedAttention(GraphPass):
    """Of the classes that `chosen` says."""

    def __init__(self, chosen: Chosen) -> None:
        super().__init__()
        self.chosen = chosen

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        added: dict[ir.Value, ir.Value] = {}
        modified = False
        for node in list(model.graph.all_nodes()):
            if self.chosen(attention_class(node)) == "packed" and fits(node):
                modified |= _replace(node, added)
        if modified:
            model.opset_imports.setdefault(CONTRIB, 1)
        return ir.passes.PassResult(model, modified)


def _replace(node: ir.Node, added: dict[ir.Value, ir.Value]) -> bool:
    found = [_linear(value) for value in node.inputs[:3]]
    layers = [layer for layer in found if layer is not None]
    if len(layers) < 3 or len({layer[0] for layer in layers}) > 1:
        return False
    biases = [bias for _, _, bias in layers if bias is not None]
    if len(biases) not in (0, 3):
        return False
    assert node.graph is not None
    weights = add_constant(node.graph, f"{node.name}.packed", np.concatenate([layer[1] for layer in layers], axis=1))
    # the kernel of 1.31 crashes without a bias, which its schema allows
    zeros = np.zeros(sum(layer[1].shape[1] for layer in layers), np.float32)
    bias = add_constant(node.graph, f"{node.name}.packed.bias", np.concatenate(biases) if biases else zeros)
    mask = to_add(node, node.inputs[3], added) if len(node.inputs) > 3 else None
    attributes: dict[str, int | float | list[int]] = {
        "num_heads": node.attributes.get_int("q_num_heads", 0),
        "qkv_hidden_sizes": [layer[1].shape[1] for layer in layers],
        "unidirectional": node.attributes.get_int("is_causal", 0),
    }
    if "scale" in node.attributes:
        attributes["scale"] = node.attributes.get_float("scale", 0.0)
    inputs = [layers[0][0], weights, bias, *([None, None, mask] if mask is not None else [])]
    new = inherit(ir.node("Attention", inputs, attributes, domain=CONTRIB), node)
    new.metadata_props[SITE] = node.metadata_props.get(SITE, "attention")
    old, made = node.outputs[0], new.outputs[0]
    made.type, made.shape = old.type, old.shape
    ir.convenience.replace_nodes_and_values(node.graph, node, [node], [new], [old], [made])
    return True


def _linear(value: ir.Value | None) -> Linear | None:
    """2: x, W and b where `value` is a linear layer that one node alone reads."""
    node, bias = producer(value, "Add", "MatMul"), None
    if value is None or only_consumer(value) is None:
        return None
    if node is not None and node.op_type == "Add":
        first, second = node.inputs
        index = 0 if producer(first, "MatMul") is not None else 1
        bias = constant((second, first)[index])
        node = producer((first, second)[index], "MatMul")
        if node is None or bias is None or bias.shape != (dim(value, -1),) or only_consumer(node.outputs[0]) is None:
            return None
    matrix = constant(node.inputs[1]) if node is not None else None
    if node is None or node.inputs[0] is None or matrix is None or matrix.ndim != 2:
        return None
    return node.inputs[0], matrix, bias
