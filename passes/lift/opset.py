"""One opset for all that follows: graphs of opset 1 to 22 become opset 23, newer ones too where 23 can say them.

1. Functions of the file are inlined; each node is read by the opset of where it stood.
2. Below opset 7 onnx's own converter takes the graph to 7, where broadcasting became what it is today.
3. From 7 on each node goes through its adapters (adapters.py), in bodies of If, Loop and Scan too: linear in the
   graph's size, no weight is touched, module paths stay.
4. A graph that is newer is stamped 23 if none of its nodes needs more; else it keeps its opset, and what the rules
   make is legal in it as well.
5. Every node is then checked against the operator's schema: nothing is stamped that is still an old operator.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, ShapeInferencePass
from onnxscript import version_converter

from ...errors import BuildError
from ..schemas import misfit, schema_of
from ..sites import path_of
from .adapters import ADAPTERS
from .values import rank

OPSET = 23
IR_VERSION = 10  # what the oldest runtime of today takes; opset 23 needs nothing newer in it
ADAPTED = 7  # the oldest opset that the adapters read
NEWER_TYPES = frozenset({ir.DataType.FLOAT8E8M0, ir.DataType.INT2, ir.DataType.UINT2})
SOFTMAX = frozenset({"Softmax", "LogSoftmax", "Hardmax"})
# whose versions between 24 and 26 only take more types, or inputs and attributes that 23's schema refuses
SAME = frozenset(
    {"Attention", "Cast", "CastLike", "Constant", "ConstantOfShape", "DequantizeLinear", "Flatten", "Identity", "If"}
    | {"Loop", "Pad", "QuantizeLinear", "Reshape", "Scan", "Shape", "Size", "Squeeze", "Transpose", "Unsqueeze"}
)


class ConvertOpset(ir.passes.InPlacePass):
    """Any opset -> 23, IR version 10; a newer one that 23 cannot say stays."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        imports = model.opset_imports
        version = imports[""] = imports.pop("ai.onnx", imports.get("", OPSET))
        inlined = _inline(model)
        if version < ADAPTED:
            _convert_with_onnx(model, version)
            imports = model.opset_imports  # of a new graph
        nodes = [node for node in model.graph.all_nodes() if node.domain == ""]
        versions = {node: node.version or imports[""] for node in nodes}
        newest = max(versions.values(), default=version)
        imports[""] = OPSET if newest <= OPSET or all(map(_is_sayable, nodes)) else newest
        old = [node for node in nodes if node.op_type in SOFTMAX and versions[node] < 13]
        for node in nodes:
            if node.op_type not in SOFTMAX:
                _adapt(node, versions[node])
        changed = version != imports[""] or any(own != imports[""] for own in versions.values())
        if changed:
            _check(model, version)
        if any(rank(node.inputs[0]) is None for node in old):
            ShapeInferencePass()(model)  # an old Softmax is one of today if its axis is the last
        for node in old:
            _adapt(node, versions[node])
        model.ir_version = IR_VERSION if imports[""] == OPSET else max(IR_VERSION, model.ir_version or 0)
        return ir.passes.PassResult(model, changed or inlined)


def _inline(model: ir.Model) -> bool:
    """Functions of another opset than the model's by their bodies, each node marked with the opset that it is of."""
    version = model.opset_imports[""]
    strangers = [function for function in model.functions.values() if _opset(function, version) != version]
    if not strangers and version == OPSET:
        return False
    for node in model.graph.all_nodes():
        node.version = version
    for function in model.functions.values():
        for node in function.all_nodes():
            node.version = _opset(function, version)
        function.opset_imports.pop("ai.onnx", None)
        function.opset_imports[""] = version
    return InlinePass()(model).modified


def _opset(function: ir.Function, default: int) -> int:
    return function.opset_imports.get("", function.opset_imports.get("ai.onnx", default))


def _convert_with_onnx(model: ir.Model, version: int) -> None:
    # without the fallback a graph of such an opset is stamped but keeps its old operators
    version_converter.convert_version(model, ADAPTED, fallback=True)
    if model.opset_imports.get("") != ADAPTED:
        raise BuildError(f"The graph of opset {version} could not be converted to {ADAPTED}. Export it anew.")


def _is_sayable(node: ir.Node) -> bool:
    """Whether a node of a newer opset means the same at 23."""
    own = node.version
    if own is None or own <= OPSET:
        return True
    newer, schema = schema_of(node.op_type, own), schema_of(node.op_type, OPSET)
    if newer is None or schema is None:
        return False
    if newer.since_version <= OPSET:
        return True
    values = [*node.inputs, *node.outputs]
    plain = all(value is None or value.dtype not in NEWER_TYPES for value in values)
    return node.op_type in SAME and own <= 26 and plain and not misfit(node, OPSET)


def _adapt(node: ir.Node, version: int) -> None:
    for since, adapt in ADAPTERS.get(node.op_type, ()):
        if version < since:
            adapt(node)
    node.version = None


def _check(model: ir.Model, version: int) -> None:
    """Every node legal in the model's opset. Raises BuildError naming the first three that are not."""
    target = model.opset_imports[""]
    wrong = []
    for node in model.graph.all_nodes():
        if node.domain == "" and (reason := misfit(node, target)):
            wrong.append(f"{node.op_type} at {path_of(node)} ({reason})")
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise BuildError(
            f"The graph of opset {version} could not be converted to {target}: {'; '.join(wrong[:3])}{more}. Export "
            f"the model at opset {OPSET}."
        )
