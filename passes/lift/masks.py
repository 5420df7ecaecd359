"""Masks of a lifted Attention: the smallest equivalent one, its last two dims the query and key length, built once.

An additive mask that only says which keys are allowed becomes that: Where(allowed, 0, low), (1 - Cast(allowed)) * low,
sums and views of such. For every row with an allowed key both are the same.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from ..prover import root
from ..region import LOWEST
from .values import add_constant, constant, dim, insert, once, producer, rank

LOW = LOWEST  # exp of it is 0 in every float type
EXPANDED = "graphwright.mask"  # metadata of an Expand that gave a mask its (query, key) lengths
DEPTH = 16  # ops between a mask and what it says; spellings of today have up to six
VIEWS = frozenset({"Unsqueeze", "Squeeze", "Reshape", "Transpose", "Slice", "Gather", "Expand", "Identity"})


def uniform(value: ir.Value | None) -> float | None:
    """The one number that all elements of `value` are, if the graph tells."""
    array = constant(value)
    if array is not None:
        first = array.reshape(-1)[:1]
        return float(first[0]) if array.size and bool((array == first).all()) else None
    node = producer(value, "Expand", "ConstantOfShape", "Cast", "CastLike", "Unsqueeze", "Reshape", "Identity")
    if node is None:
        return None
    if node.op_type == "ConstantOfShape":
        filled = node.attributes.get("value")
        return 0.0 if filled is None else float(filled.as_tensor().numpy().reshape(-1)[0])
    return uniform(node.inputs[0])


def simplify(mask: ir.Value) -> ir.Value:
    """The boolean mask, True where a key is allowed, that the additive `mask` stands for; else `mask` itself."""
    if mask.dtype == ir.DataType.BOOL:
        return mask
    allowed = _allowed(mask, DEPTH)
    return narrow(mask if allowed is None else allowed)


def _allowed(mask: ir.Value, depth: int) -> ir.Value | None:
    """What `mask` allows, if it is 0 there and low elsewhere."""
    node = producer(mask)
    if node is None or depth == 0 or node.op_type not in _READERS:
        return None
    return _READERS[node.op_type](node, depth - 1)


def _of_where(node: ir.Node, depth: int) -> ir.Value | None:
    condition, then, other = node.inputs
    assert condition is not None
    for kept, given, flip in ((then, other, False), (other, then, True)):
        low = uniform(given)
        if low is None or low > LOW or kept is None:
            continue
        allowed = negate(node, condition) if flip else condition
        if uniform(kept) == 0:
            return allowed
        inner = _allowed(kept, depth)
        return None if inner is None else once(node, "And", [allowed, inner])
    return None


def _of_view(node: ir.Node, depth: int) -> ir.Value | None:
    inner = _allowed(node.inputs[0], depth) if node.inputs[0] is not None else None
    if inner is None or node.op_type == "Identity":
        return inner
    return _viewed(node, inner)


def _viewed(node: ir.Node, source: ir.Value) -> ir.Value:
    """The same view of another tensor; made once."""
    for reader in source.consumers():
        same = reader.op_type == node.op_type and list(reader.inputs[1:]) == list(node.inputs[1:])
        if same and dict(reader.attributes) == dict(node.attributes) and reader.graph is node.graph:
            return reader.outputs[0]
    made = insert(node, node.op_type, [source, *node.inputs[1:]])
    maker = made.producer()
    assert maker is not None
    for attribute in node.attributes.values():
        maker.attributes.add(attribute)
    made.shape, made.type = node.outputs[0].shape, source.type
    return made


def _of_sum(node: ir.Node, depth: int) -> ir.Value | None:
    parts = [None if value is None else _allowed(value, depth) for value in node.inputs]
    if any(part is None for part in parts):
        return None
    return once(node, "And", [part for part in parts if part is not None])


def _of_product(node: ir.Node, _: int) -> ir.Value | None:
    """(1 - Cast(allowed)) * low, Cast(forbidden) * low."""
    for flags, low in (node.inputs, node.inputs[::-1]):
        number = uniform(low)
        if number is None or number > LOW:
            continue
        forbidden = _flags(flags)
        return None if forbidden is None else negate(node, forbidden[0]) if forbidden[1] else forbidden[0]
    return None


def _flags(value: ir.Value | None) -> tuple[ir.Value, bool] | None:
    """(b, True) of a tensor that is Cast(b), (b, False) of one that is 1 - Cast(b), for a boolean b."""
    node = producer(value, "Cast", "Sub", "Unsqueeze", "Reshape", "Identity")
    if node is None:
        return None
    if node.op_type == "Cast":
        source = node.inputs[0]
        if source is not None and source.dtype == ir.DataType.BOOL:
            return source, True
        return _flags(source)
    if node.op_type == "Sub":
        inner = _flags(node.inputs[1]) if uniform(node.inputs[0]) == 1 else None
        return None if inner is None else (inner[0], not inner[1])
    inner = _flags(node.inputs[0])
    return inner if inner is None or node.op_type == "Identity" else (_viewed(node, inner[0]), inner[1])


def _of_cast(node: ir.Node, depth: int) -> ir.Value | None:
    return None if node.inputs[0] is None else _allowed(node.inputs[0], depth)


_READERS: dict[str, Callable[[ir.Node, int], ir.Value | None]] = {
    **dict.fromkeys(VIEWS, _of_view),
    "Where": _of_where,
    "Add": _of_sum,
    "Mul": _of_product,
    "Cast": _of_cast,
}


def conjuncts(mask: ir.Value) -> list[ir.Value]:
    """What `mask` is the And of, seen through views: of a simplified mask that are tensors of the graph as it was."""
    node = producer(root(mask), "And", "Cast")
    if node is None or (node.op_type == "Cast" and not _is_flags(node.inputs[0])):
        return [root(mask)]
    return [part for value in node.inputs if value for part in conjuncts(value)]


def _is_flags(value: ir.Value | None) -> bool:
    return value is not None and value.dtype == ir.DataType.BOOL


def negate(before: ir.Node, mask: ir.Value) -> ir.Value:
    """Not(mask), made in front of `before` if the graph has none yet; of Not(x) it is x."""
    node = producer(mask, "Not")
    if node is not None and node.inputs[0] is not None:
        return node.inputs[0]
    return once(before, "Not", [mask])


def narrow(mask: ir.Value) -> ir.Value:
    """`mask` without an Expand that only repeats it: a mask broadcasts."""
    node = producer(mask, "Expand", "Identity")
    source = node.inputs[0] if node is not None and EXPANDED not in node.metadata_props else None
    return narrow(source) if source is not None and rank(source) == rank(mask) is not None else mask


def join(site: ir.Node, masks: list[ir.Value]) -> ir.Value | None:
    """One mask of all, boolean if they all are."""
    allowed = _fold(site, "And", [mask for mask in masks if mask.dtype == ir.DataType.BOOL])
    added = _fold(site, "Add", [mask for mask in masks if mask.dtype != ir.DataType.BOOL])
    if allowed is None or added is None:
        return added if allowed is None else allowed
    assert site.graph is not None
    assert added.dtype is not None
    dtype = added.dtype.numpy()
    low = add_constant(site.graph, f"lowest.{added.dtype.name.lower()}", np.array(added.dtype.min, dtype))
    total = once(site, "Where", [allowed, added, low])
    total.type = added.type
    return total


def _fold(site: ir.Node, op_type: str, masks: list[ir.Value]) -> ir.Value | None:
    """All masks joined by And (boolean) or Add (additive)."""
    total = masks[0] if masks else None
    for mask in masks[1:]:
        assert total is not None
        total = once(site, op_type, [total, mask])
    return total


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
