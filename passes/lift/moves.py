"""What ops that move columns about, and do nothing else to them, do to the symbols of columns (see columns.py).

Each function takes a node and a reading of its inputs, and gives the symbols of its output; None where the op does more
than to move, or moves axes that are not followed.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from .values import constant, dim, rank

Ids = np.ndarray  # symbols, of the shape of the last axes of a value: those that are followed
Reader = Callable[[ir.Value | None], "Ids | None"]

WIDEST = 4096  # more columns than this is no head
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


def moved(value: ir.Value | None, node: ir.Node, read: Reader, casts: bool = True) -> Ids | None:
    """The columns of a node that only moves (or negates) those of its inputs; None if it does more."""
    if node.op_type == "Split" and value is not None:
        return _split(node, node.outputs.index(value), read)
    move = _MOVES.get(node.op_type) if casts or node.op_type != "Cast" else None
    return move(node, read) if move is not None else None


def _same(node: ir.Node, read: Reader) -> Ids | None:
    return read(node.inputs[0])


def _cast(node: ir.Node, read: Reader) -> Ids | None:
    floats = node.inputs[0] is not None and {node.inputs[0].dtype, node.outputs[0].dtype} <= set(_FLOATS)
    return read(node.inputs[0]) if floats else None


def _neg(node: ir.Node, read: Reader) -> Ids | None:
    ids = read(node.inputs[0])
    return None if ids is None else -ids


def _signs(node: ir.Node, read: Reader) -> Ids | None:
    """A product with constant signs."""
    for value, other in (node.inputs, node.inputs[::-1]):
        signs = constant(other)
        if signs is None or signs.size > WIDEST or (np.abs(signs) != 1).any() or (ids := read(value)) is None:
            continue
        if signs.size == 1 or signs.shape == ids.shape:
            return np.asarray(ids * signs.reshape(ids.shape if signs.size > 1 else ()).astype(np.int64))
    return None


def _axis(value: ir.Value | None, axis: int, ids: Ids) -> int | None:
    """Which of the axes of `ids` the `axis` of `value` is; None if it is one that is not followed."""
    size = rank(value)
    if size is None:
        return None
    at = axis % size - (size - ids.ndim)
    return at if at >= 0 else None


def _slice(node: ir.Node, read: Reader) -> Ids | None:
    ids, bounds = read(node.inputs[0]), [constant(value) for value in node.inputs[1:]]
    if ids is None or len(bounds) < 2 or any(bound is None for bound in bounds):
        return None
    starts, ends, *rest = [bound.reshape(-1).tolist() for bound in bounds if bound is not None]
    axes = rest[0] if rest else range(len(starts))
    steps = rest[1] if len(rest) > 1 else [1] * len(starts)
    cut = [slice(None)] * ids.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if (at := _axis(node.inputs[0], axis, ids)) is None or step < 0:
            return None
        cut[at] = slice(start, end, step)
    taken = ids[tuple(cut)]
    return taken if taken.size else None


def _split(node: ir.Node, index: int, read: Reader) -> Ids | None:
    ids = read(node.inputs[0])
    at = _axis(node.inputs[0], node.attributes.get_int("axis", 0), ids) if ids is not None else None
    if ids is None or at is None:
        return None
    sizes, parts = constant(node.inputs[1]) if len(node.inputs) > 1 else None, len(node.outputs)
    each = -(-ids.shape[at] // parts)
    ends = np.cumsum(sizes) if sizes is not None else np.minimum(np.arange(1, parts + 1) * each, ids.shape[at])
    return np.split(ids, ends[:-1].tolist(), axis=at)[index]


def _gather(node: ir.Node, read: Reader) -> Ids | None:
    ids, index = read(node.inputs[0]), constant(node.inputs[1])
    if ids is None or index is None or index.ndim > 1:
        return None
    at = _axis(node.inputs[0], node.attributes.get_int("axis", 0), ids)
    if at is None or (index.ndim == 0 and ids.ndim == 1):
        return None
    return np.asarray(np.take(ids, index, axis=at))


def _concat(node: ir.Node, read: Reader) -> Ids | None:
    parts = [read(value) for value in node.inputs]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts) or len({part.ndim for part in known}) > 1:
        return None
    at = _axis(node.inputs[0], node.attributes.get_int("axis", 0), known[0])
    return None if at is None else np.concatenate(known, axis=at)


def _transpose(node: ir.Node, read: Reader) -> Ids | None:
    ids, size = read(node.inputs[0]), rank(node.inputs[0])
    if ids is None or size is None:
        return None
    perm, lead = list(node.attributes.get_ints("perm") or range(size)[::-1]), size - ids.ndim
    return np.transpose(ids, [axis - lead for axis in perm[lead:]]) if perm[:lead] == list(range(lead)) else None


def _unsqueeze(node: ir.Node, read: Reader) -> Ids | None:
    ids, axes, size = read(node.inputs[0]), constant(node.inputs[1]), rank(node.outputs[0])
    if ids is None or axes is None or size is None:
        return None
    lead = size - axes.size - ids.ndim
    for axis in sorted(int(axis) % size for axis in axes.reshape(-1)):
        if axis < lead:
            lead += 1
        else:
            ids = np.expand_dims(ids, axis - lead)
    return ids


def _squeeze(node: ir.Node, read: Reader) -> Ids | None:
    ids, axes = read(node.inputs[0]), constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if ids is None or axes is None:
        return None
    inside = [at for axis in axes.reshape(-1) if (at := _axis(node.inputs[0], int(axis), ids)) is not None]
    return np.squeeze(ids, tuple(inside)) if len(inside) < ids.ndim else None


def _reshape(node: ir.Node, read: Reader) -> Ids | None:
    """Columns made pairs or pairs columns, or axes of one added and left out in front of the columns."""
    source, made = node.inputs[0], node.outputs[0]
    ids, before, after = read(source), rank(source), rank(made)
    if ids is None or before is None or after is None:
        return None
    lead, old = before - ids.ndim, [dim(source, axis) for axis in range(before)]
    new = [dim(made, axis) for axis in range(after)]
    tail = [size for size in new[lead:] if isinstance(size, int)]
    if (
        None not in (known := new[:lead])
        and known == old[:lead]
        and len(tail) == after - lead
        and np.prod(tail) == ids.size
        and tail
    ):
        # a head is taken apart in pairs; but where a hidden size is taken apart in heads, columns begin
        pairs = len(tail) == 2 and 2 in tail and after >= 5
        return ids.reshape(tail) if pairs or len(tail) <= ids.ndim else None
    same = ids.ndim == 1 and new[-1:] == old[-1:] and None not in (*old, *new)
    return ids if same and [size for size in new if size != 1] == [size for size in old if size != 1] else None


def _expand(node: ir.Node, read: Reader) -> Ids | None:
    ids, size = read(node.inputs[0]), rank(node.outputs[0])
    if ids is None or size is None or size < ids.ndim:
        return None
    shape = [dim(node.outputs[0], axis) for axis in range(size - ids.ndim, size)]
    sizes = [size for size in shape if isinstance(size, int)]
    return np.broadcast_to(ids, sizes) if len(sizes) == ids.ndim else None


def _tile(node: ir.Node, read: Reader) -> Ids | None:
    ids, repeats = read(node.inputs[0]), constant(node.inputs[1])
    if ids is None or repeats is None or repeats.size < ids.ndim:
        return None
    return np.tile(ids, repeats[-ids.ndim :]) if (repeats[: -ids.ndim] == 1).all() else None


_MOVES: dict[str, Callable[[ir.Node, Reader], Ids | None]] = {
    "Identity": _same,
    "Cast": _cast,
    "Neg": _neg,
    "Mul": _signs,
    "Slice": _slice,
    "Gather": _gather,
    "Concat": _concat,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Reshape": _reshape,
    "Expand": _expand,
    "Tile": _tile,
}
MOVED = frozenset({*_MOVES, "Split"})
