"""Masks of a lifted Attention: the smallest equivalent one, its last two dims the query and key length, built once."""

from __future__ import annotations

import onnx_ir as ir

from .values import dim, insert, producer, scalar

LOW = -1e4  # a score plus this or less has no weight: exp(-1e4) is 0 in every float type
EXPANDED = "graphwright.mask"  # metadata of an Expand that gave a mask its (query, key) lengths


def simplify(mask: ir.Value) -> ir.Value:
    """Where(allowed, 0, low) -> allowed; Where(forbidden, low, 0) -> Not(forbidden); anything else as it is."""
    node = producer(mask, "Where", "Cast", "Identity")
    if node is None or node.inputs[0] is None:
        return mask
    if node.op_type != "Where":
        same_kind = node.inputs[0].dtype == mask.dtype
        return simplify(node.inputs[0]) if same_kind else mask
    then, other = scalar(node.inputs[1]), scalar(node.inputs[2])
    if then == 0 and other is not None and other <= LOW:
        return node.inputs[0]
    if other == 0 and then is not None and then <= LOW:
        return _once("Not", node.inputs[0], node)
    return mask


def expand(mask: ir.Value, site: ir.Node, query: ir.Value, key: ir.Value) -> ir.Value:
    """`mask` with last two dims (query length, key length), as every runtime takes it; shared by all sites of one mask.

    ONNX lets a mask broadcast over the queries; ONNX Runtime's kernels do not. Batch and heads stay as they are.
    """
    lengths = dim(query, 2), dim(key, 2)
    shape = mask.shape
    if shape is not None and len(shape) == 4 and None not in lengths and (dim(mask, 2), dim(mask, 3)) == lengths:
        return mask
    for node in mask.consumers():
        if (
            node.op_type == "Expand"
            and node.metadata_props.get("graphwright.mask") == f"{lengths}"
            and None not in lengths
        ):
            return node.outputs[0]
    # the Expand stands right behind the mask, so that later sites can share it
    sizes = [insert(site, "Shape", [query], start=2, end=3), insert(site, "Shape", [key], start=2, end=3)]
    ones = insert(site, "Constant", [], value=ir.tensor([1, 1], dtype=ir.DataType.INT64))
    full = insert(site, "Expand", [mask, insert(site, "Concat", [ones, *sizes], axis=0)])
    maker = full.producer()
    assert maker is not None
    maker.metadata_props[EXPANDED] = str(lengths)
    full.type = mask.type
    leading = [dim(mask, -4) if shape is not None and len(shape) > 3 else 1, dim(mask, -3)]
    if shape is not None and len(shape) < 3:
        leading[1] = 1
    full.shape = ir.Shape([*leading, *lengths])
    return full


def _once(op_type: str, value: ir.Value, near: ir.Node) -> ir.Value:
    """`op_type`(value), made once."""
    for node in value.consumers():
        if node.op_type == op_type:
            return node.outputs[0]
    made = insert(near, op_type, [value])
    made.type, made.shape = value.type, value.shape
    return made
