"""What standard operators of older opsets are in opset 23, one operator a function.

Each adapter changes its node in place: attributes that have become inputs, defaults that have changed, an operator that
has another name. `ADAPTERS` tells from which opset on the new form is the legal one. Source: the operator
specifications of ONNX, version by version. onnx's own converter has most of these too, but it takes Resize-10 for
Resize-11 (whose default samples other points) and RoiAlign-10 for RoiAlign-16, gives a float16 Pad a float32 value,
and cannot see the rank that keeps Softmax one node.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from ...errors import BuildError
from ..sites import path_of
from .values import constant, insert, rank

Adapter = Callable[[ir.Node], None]


def set_attribute(node: ir.Node, name: str, value: int | str) -> None:
    """Give `node` the attribute."""
    node.attributes[name] = ir.AttrInt64(name, value) if isinstance(value, int) else ir.AttrString(name, value)


def set_input(node: ir.Node, index: int, value: ir.Value | None) -> None:
    """Give `node` the input; those before it that it does not have stay empty."""
    if len(node.inputs) <= index:
        node.resize_inputs(index + 1)
    node.replace_input_with(index, value)


def _constant(before: ir.Node, array: np.ndarray) -> ir.Value:
    value = insert(before, "Constant", [], value=ir.tensor(array))
    value.type, value.shape = ir.TensorType(ir.DataType.from_numpy(array.dtype)), ir.Shape(array.shape)
    return value


def _ints(name: str, index: int) -> Adapter:
    """The attribute `name` becomes the input `index`, a list of int64."""

    def adapt(node: ir.Node) -> None:
        attribute = node.attributes.pop(name, None)
        if attribute is not None:
            values = [attribute.as_int()] if attribute.type == ir.AttributeType.INT else list(attribute.as_ints())
            if values:  # an empty list meant what leaving it out means
                set_input(node, index, _constant(node, np.array(values, np.int64)))

    return adapt


def _number(name: str, index: int) -> Adapter:
    """The attribute `name` becomes the input `index`, a scalar of the type of the first input."""

    def adapt(node: ir.Node) -> None:
        attribute, data = node.attributes.pop(name, None), node.inputs[0]
        if attribute is None or data is None:
            return
        number = np.array(attribute.as_float(), np.float32)
        if data.dtype is None:
            value = insert(node, "CastLike", [_constant(node, number), data])
        else:
            value = _constant(node, number.astype(data.dtype.numpy()))
        set_input(node, index, value)

    return adapt


def _name(op_type: str) -> Adapter:
    def adapt(node: ir.Node) -> None:
        node.op_type = op_type

    return adapt


def _all(*adapters: Adapter) -> Adapter:
    def adapt(node: ir.Node) -> None:
        for each in adapters:
            each(node)

    return adapt


def _split(node: ir.Node) -> None:
    """Equal parts are no longer the default: their number is said."""
    if len(node.inputs) < 2 or node.inputs[1] is None:
        set_attribute(node, "num_outputs", len(node.outputs))


def _dropout(node: ir.Node) -> None:
    """Before opset 12 it is always the identity: its ratio plays no part."""
    node.attributes.pop("ratio", None)


def _spatial(node: ir.Node) -> None:
    attribute = node.attributes.pop("spatial", None)
    if attribute is not None and attribute.as_int() != 1:
        raise BuildError(f"BatchNormalization at {path_of(node)} has spatial=0, which no later opset can say.")


def _running(node: ir.Node) -> None:
    """Of five outputs three are left, and those of training have an attribute of their own."""
    if any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
        raise BuildError(f"BatchNormalization at {path_of(node)} is in training mode. Export the model for inference.")
    node.resize_outputs(1)


def _softmax(node: ir.Node) -> None:
    """Over the one axis, no longer over all axes from it on: if it is not the last, the node becomes the Reshape of
    `Reshape(Softmax(Flatten(x)), Shape(x))`.
    """
    data, axis = node.inputs[0], node.attributes.get_int("axis", 1)
    assert data is not None
    assert axis is not None
    set_attribute(node, "axis", -1)
    count = rank(data)
    if axis == -1 or (count is not None and axis % max(count, 1) == count - 1):
        return
    flat = insert(node, node.op_type, [insert(node, "Flatten", [data], axis=axis)], axis=-1)
    flat.type = node.outputs[0].type
    node.op_type = "Reshape"
    node.attributes.clear()
    node.replace_input_with(0, flat)
    set_input(node, 1, insert(node, "Shape", [data]))


def _scales(node: ir.Node) -> None:
    """Upsample-7 has its scales as an attribute."""
    scales = node.attributes.pop("scales").as_floats()
    set_input(node, 1, _constant(node, np.array(scales, np.float32)))


def _resize(node: ir.Node) -> None:
    """Points are sampled from the origin on; the nearest is the one below, or above where the image gets smaller."""
    scales = node.inputs[1]
    known = constant(scales)
    smaller = known is not None and bool((known < 1).any())
    set_input(node, 2, scales)
    node.replace_input_with(1, None)
    set_attribute(node, "coordinate_transformation_mode", "asymmetric")
    set_attribute(node, "nearest_mode", "ceil" if smaller else "floor")


def _roi_align(node: ir.Node) -> None:
    set_attribute(node, "coordinate_transformation_mode", "output_half_pixel")


def _grid_sample(node: ir.Node) -> None:
    mode = node.attributes.get_string("mode", "bilinear") or ""
    set_attribute(node, "mode", {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode))


def _dft(node: ir.Node) -> None:
    attribute = node.attributes.pop("axis", None)
    set_input(node, 2, _constant(node, np.array(1 if attribute is None else attribute.as_int(), np.int64)))


def _group_norm(node: ir.Node) -> None:
    """Scale and bias [groups] -> [channels]: each is repeated for the channels of its group."""
    groups = node.attributes["num_groups"].as_int()
    ints = [_constant(node, np.array([number], np.int64)) for number in (groups, 1, -1)]
    channels = insert(node, "Shape", node.inputs[:1], start=1, end=2)
    size = insert(node, "Concat", [ints[0], insert(node, "Div", [channels, ints[0]])], axis=0)
    for index in (1, 2):
        column = insert(node, "Unsqueeze", [node.inputs[index], ints[1]])
        node.replace_input_with(index, insert(node, "Reshape", [insert(node, "Expand", [column, size]), ints[2]]))


def _scan(node: ir.Node) -> None:
    """A batch of sequences becomes a Scan over the batch, whose body is the Scan over the sequence."""
    if node.inputs[0] is not None:
        raise BuildError(f"Scan at {path_of(node)} has lengths of its sequences, which no later opset can say.")
    read = [value for value in node.inputs[1:] if value is not None]
    inner = {name: node.attributes.pop(name) for name in ("body", "num_scan_inputs")}
    if "directions" in node.attributes:
        directions = node.attributes.pop("directions").as_ints()
        inner["scan_input_directions"] = ir.AttrInt64s("scan_input_directions", directions)
    items = [ir.Value(name=f"item_{index}", type=value.type) for index, value in enumerate(read)]
    for item, value in zip(items, read, strict=True):
        item.shape = None if value.shape is None else ir.Shape(value.shape[1:])
    step = ir.Node("", "Scan", items, inner.values(), num_outputs=len(node.outputs), name="scan")
    for index, (made, value) in enumerate(zip(step.outputs, node.outputs, strict=True)):
        made.name, made.type = f"result_{index}", value.type
        made.shape = None if value.shape is None else ir.Shape(value.shape[1:])
    body = ir.Graph(items, step.outputs, nodes=[step], name="batch")
    node.resize_inputs(len(read))
    for index, value in enumerate(read):
        node.replace_input_with(index, value)
    node.attributes["body"] = ir.AttrGraph("body", body)
    set_attribute(node, "num_scan_inputs", len(read))


REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")

# op -> (opset from which on the new form is legal, what makes it of the old one), in order
ADAPTERS: dict[str, list[tuple[int, Adapter]]] = {
    "BatchNormalization": [(9, _spatial), (14, _running)],
    "Clip": [(11, _all(_number("min", 1), _number("max", 2)))],
    "DFT": [(20, _dft)],
    "Dropout": [(12, _dropout)],
    "GridSample": [(20, _grid_sample)],
    "GroupNormalization": [(21, _group_norm)],
    "Hardmax": [(13, _softmax)],
    "LogSoftmax": [(13, _softmax)],
    "Pad": [(11, _all(_ints("pads", 1), _number("value", 2)))],
    "ReduceSum": [(13, _ints("axes", 1))],
    **{f"Reduce{name}": [(18, _ints("axes", 1))] for name in REDUCTIONS},
    "Resize": [(11, _resize)],
    "RoiAlign": [(16, _roi_align)],
    "Scan": [(9, _scan)],
    "Scatter": [(11, _name("ScatterElements"))],
    "Slice": [(10, _all(_ints("starts", 1), _ints("ends", 2), _ints("axes", 3)))],
    "Softmax": [(13, _softmax)],
    "Split": [(13, _ints("split", 1)), (18, _split)],
    "Squeeze": [(13, _ints("axes", 1))],
    "TopK": [(10, _ints("k", 1))],
    "Unsqueeze": [(13, _ints("axes", 1))],
    "Upsample": [(9, _scales), (10, _name("Resize")), (11, _resize)],
}
