"""Forms of `Attention` that TensorRT's parser refuses, said before the parser is asked."""

from __future__ import annotations

import onnx_ir as ir

from ...errors import BuildError
from ..base import GraphPass
from ..sites import path_of


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
    if node.attributes.get_float("softcap", 0.0):
        return "a soft-cap"
    if node.attributes.get_int("is_causal", 0) and inputs[3]:
        return "is_causal together with a mask"
    return ""
