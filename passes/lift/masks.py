"""Masks of a lifted Attention: the smallest equivalent one, its last two dims the query and key length, built once."""

from __future__ import annotations

import onnx_ir as ir

from .values import dim, insert, once, producer, rank, scalar

LOW = -1e4  # a score plus this or less has no weight: exp(-1e4) is 0 in every float type
EXPANDED = "graphwright.mask"  # metadata of an Expand that gave a mask its (query, key) lengths


def simplify(mask: ir.Value) -> ir.Value:
    """Where(allowed, 0, low) -> allowed; Where(forbidden, low, 0) -> Not(forbidden); anything else as it is."""
    node = producer(mask, "Where", "Cast", "Identity")
    if node is None or node.inputs[0] is None:
        return mask
    if node.op_type != "Where":
        same_kind = node.inputs[0].dtype == mask.dtype is not None
        return simplify(node.inputs[0]) if same_kind else mask
    then, other = scalar(node.inputs[1]), scalar(node.inputs[2])
    if then == 0 and other is not None and other <= LOW:
        return node.inputs[0]
    if other == 0 and then is not None and then <= LOW:
        return negate(node, node.inputs[0])
    return mask


def negate(before: ir.Node, mask: ir.Value) -> ir.Value:
    """Not(mask), made in front of `before` if the graph has none yet; of Not(x) it is x."""
    node = producer(mask, "Not")
    if node is not None and node.inputs[0] is not None:
        return node.inputs[0]
    return once(before, "Not", [mask])


def expand(mask: ir.Value, site: ir.Node, query: ir.Value, key: ir.Value, past: bool = False) -> ir.Value:
    """`mask` with last two dims (query length, key length), as every runtime takes it; shared by all sites of one mask.

    ONNX lets a mask broadcast over the queries; ONNX Runtime's kernels do not. Batch and heads stay as they are.
    With `past` keys the key length is not the length of `key`: the mask's own stays.
    """
    lengths = dim(query, -2), dim(mask, -1) if past else dim(key, -2)
    if rank(mask) == 4 and None not in lengths and (dim(mask, 2), dim(mask, 3)) == lengths:
        return mask
    maker = producer(mask, "Expand")
    if maker is not None and EXPANDED in maker.metadata_props:
        return mask
    for node in mask.consumers():
        same = node.metadata_props.get(EXPANDED) == str(lengths) and node.graph is site.graph
        if node.op_type == "Expand" and same and None not in lengths:
            return node.outputs[0]
    one = insert(site, "Constant", [], value=ir.tensor([1], dtype=ir.DataType.INT64))
    keys = one if past else insert(site, "Shape", [key], start=-2, end=-1)
    queries = insert(site, "Shape", [query], start=-2, end=-1)
    full = insert(site, "Expand", [mask, insert(site, "Concat", [one, one, queries, keys], axis=0)])
    maker = full.producer()
    assert maker is not None
    maker.metadata_props[EXPANDED] = str(lengths)
    full.type = mask.type
    own = rank(mask)
    leading = [None if own is None else dim(mask, axis) if own >= -axis else 1 for axis in (-4, -3)]
    full.shape = ir.Shape([*leading, *lengths])
    return full
