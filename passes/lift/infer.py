"""Shapes in terms of the names of the inputs' dims, by ONNX Runtime's symbolic shape inference.

ONNX's own inference makes up a name for each dim that it cannot work out, so that equal sizes bear different names
(`unk__7`, `unk__9`) and a rule cannot see that a Reshape only splits an axis. ONNX Runtime's tool computes with the
names (`4*batch`). It runs where a graph has such dims or lacks shapes at all; it sees no large weights.
"""

from __future__ import annotations

import logging

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import NameFixPass, TopologicalSortPass

SMALL = 1024  # elements of a tensor that may be a shape; larger ones are weights, of which only the shape counts
INFINITE = 2**31 - 1  # a size that Slice takes for "to the end"

_log = logging.getLogger(__name__)


class InferSymbols(ir.passes.InPlacePass):
    """Write the dims that can be said in the inputs' names; sizes that are known stay."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        TopologicalSortPass()(model)
        names = {d.value for value in model.graph.inputs for d in value.shape or () if not isinstance(d, int)}
        values = [value for node in model.graph for value in node.outputs]
        if all(_is_said(value, names) for value in values):
            return ir.passes.PassResult(model, False)
        light = _without_weights(model)
        named = {
            value.name: old for old, value in zip(values, (v for n in light.graph for v in n.outputs), strict=True)
        }
        modified = False
        found, equal = _infer(ir.to_proto(light))
        for info in found:
            value = named.get(info.name)
            if value is not None and info.type.HasField("tensor_type") and info.type.tensor_type.HasField("shape"):
                modified |= _write(value, info.type.tensor_type.shape, names - equal)
        return ir.passes.PassResult(model, modified)


def _is_said(value: ir.Value, names: set[str | None]) -> bool:
    return value.shape is not None and all(isinstance(d, int) or _in_names(d, names) for d in value.shape)


def _in_names(dim: ir.SymbolicDim, names: set[str | None]) -> bool:
    if dim.value is None or dim.value in names:
        return dim.value is not None
    try:
        return dim.free_symbols() <= names
    except ValueError:  # no expression
        return False


def _write(value: ir.Value, shape: onnx.TensorShapeProto, names: set[str | None]) -> bool:
    """Take over each inferred dim that is a size or said in the inputs' names, but for sizes that are known."""
    found = [d.dim_value if d.HasField("dim_value") else ir.SymbolicDim(d.dim_param or None) for d in shape.dim]
    old = list(value.shape) if value.shape is not None and len(value.shape) == len(found) else [None] * len(found)
    made = [
        new if not isinstance(known, int) and (isinstance(new, int) or _in_names(new, names)) else known
        for known, new in zip(old, found, strict=True)
    ]
    if value.shape is not None and made == list(value.shape):
        return False
    value.shape = ir.Shape(made)
    return True


def _infer(proto: onnx.ModelProto) -> tuple[list[onnx.ValueInfoProto], set[str]]:
    """What ONNX Runtime's tool finds, nothing where it cannot read the graph; and names that it took for others.

    Where dims of other names meet it stops at first; then it takes them for equal, as they are but for sizes of 1. Of
    names of the inputs that is not known: what is said in these says nothing.
    """
    from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference

    found, equal = list[onnx.ValueInfoProto](), set[str]()
    for merge in (False, True):
        # the entry point of the tool writes a file into the working folder where something is left unknown
        tool = SymbolicShapeInference(INFINITE, auto_merge=merge, guess_output_rank=False, verbose=0)
        merged: dict[str, str | int] = {}
        try:
            tool._preprocess(proto)
            while tool.run_:
                done = tool._infer_impl()
                merged |= {name: other for name, other in tool.suggested_merge_.items() if name in tool.input_symbols_}
        except Exception as error:  # noqa: BLE001 - a graph whose shapes stay as they are is a legal one
            _log.info("ONNX Runtime's symbolic shape inference failed: %s: %s", type(error).__name__, error)
            continue
        if any(isinstance(other, int) for other in merged.values()):
            continue  # a name that was taken for a number is found no more
        found, equal = list(tool.out_mp_.graph.value_info), {str(name) for name in (*merged, *merged.values())}
        if done:
            break
    return found, equal


def _without_weights(model: ir.Model) -> ir.Model:
    """A copy with a name for each value, its large weights turned into inputs of their shape."""
    light = model.clone()
    NameFixPass()(light)
    for graph in (light.graph, *light.graph.subgraphs()):
        for name, value in list(graph.initializers.items()):
            tensor = value.const_value
            if tensor is not None and tensor.size > SMALL:
                del graph.initializers[name]
                value.const_value = None
                value.type, value.shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy())
                if value not in light.graph.inputs:
                    light.graph.inputs.append(value)
    for index, value in enumerate(light.graph.inputs):  # those of two bodies may have had one name
        value.name = f"input{index}"
    return light
