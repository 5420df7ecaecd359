"""Masks that follow from sizes alone, and what they say: that every key is allowed, or the causal ones.

A proof at small sizes would take a sliding window of 128 for a causal mask. So the mask is computed by itself, also at
a length where every number that stands in its making shows: beyond their product, and at the end of each table that it
is read from. Where that length cannot be had, nothing is said.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import cycle
from typing import Literal

import numpy as np
import onnx_ir as ir

from ..region import LOWEST, Functions, evaluate, names_in, size_of
from .values import constant, dims

SMALL = (1, 2, 5, 17)
LARGEST = 4097  # keys; a mask of as many queries has 16 million entries
FEW = 8  # more elements than this are a table
# ops of which only the first operands bear on the numbers; the others are shapes and axes
SHAPED = {
    **dict.fromkeys(("Reshape", "Expand", "Unsqueeze", "Squeeze"), 1),
    **dict.fromkeys(("ReduceMax", "ReduceMin", "ReduceSum", "ReduceProd"), 1),
    "Slice": 3,
}

Says = Literal["all", "causal", ""]


def says(mask: ir.Value, functions: Functions) -> Says:
    """What `mask` allows at every legal size; "" if it is neither, or cannot be told.

    `mask`: [..., queries, keys], boolean or added, computed from constants and sizes alone.
    """
    own = dims(mask)
    if own is None or len(own) < 2 or None in own[-2:]:
        return ""
    needed, tables = _lengths(mask)
    last = [size if isinstance(size, int) else ir.SymbolicDim(size) for size in own[-2:]]
    names = sorted({name for size in last if not isinstance(size, int) for name in names_in(size)})
    lengths = sorted({*SMALL, *needed, *(table + 1 for table in tables)} if names else {1})
    equal = [(3, dict.fromkeys(names, length)) for length in lengths if length <= LARGEST]
    # and where the other dims have other sizes, or where queries and keys do
    others = [(length, dict.fromkeys(names, length)) for length in SMALL]
    others += [(3, dict(zip(order, cycle((n, 2 * n + 1))))) for n in SMALL for order in (names, names[::-1])]
    left: set[Says] = {"all"} if 1 in own[-2:] else {"all", "causal"}  # what is broadcast is not causal
    ran: set[int] = set()
    for (_, bound), array in zip([*equal, *others], evaluate(mask, [*equal, *others], functions), strict=False):
        if array is None or list(array.shape[-2:]) != [size_of(size, bound) for size in last]:
            continue  # no legal size
        left &= _read(array)
        ran |= set(bound.values()) or needed
        if not left:
            return ""
    ends = any(table in ran and table + 1 not in ran for table in tables)
    told = bool(ran) and (ends or max(ran) >= max(needed))
    return min(left) if told else ""


def _read(array: np.ndarray) -> set[Says]:
    allowed = array if array.dtype == np.bool_ else array > LOWEST
    if array.dtype != np.bool_ and (array[allowed] != 0).any():
        return set()
    found: set[Says] = {"all"} if allowed.all() else set()
    return found | ({"causal"} if (allowed == np.tri(*allowed.shape[-2:], dtype=np.bool_)).all() else set())


def _lengths(mask: ir.Value) -> tuple[set[int], set[int]]:
    """Lengths at which all that stands in the making of a mask shows, and those of tables among them."""
    numbers, tables = list[int](), set[int]()
    for array in _constants(mask):
        if array.size > FEW:
            tables |= {size for size in array.shape if size > 1}
        if array.dtype.kind in "iuf":
            known = np.abs(array[np.isfinite(array) & (array != 0) & (array > LOWEST)].astype(np.float64))
            known = known[known < 1 << 31]  # more means "to the end"; and low is low
            known = known if known.size <= FEW else np.array([known.min(), known.max()])
            numbers += [math.ceil(max(x, 1 / x)) for x in known]
    return {2 * math.prod(numbers) + 1, *tables}, tables


def _constants(value: ir.Value) -> Iterator[np.ndarray]:
    """The constants that stand in the making of a value, as often as they are read there."""
    ahead, seen = [value], set[ir.Value]()
    while ahead:
        value = ahead.pop()
        array, node = constant(value), value.producer()
        if array is not None:
            yield array
        elif node is not None and value not in seen and node.op_type not in ("Shape", "Size"):
            seen.add(value)
            yield from (a.as_tensor().numpy() for a in node.attributes.values() if a.type == ir.AttributeType.TENSOR)
            ahead += [v for v in node.inputs[: SHAPED.get(node.op_type)] if v is not None]
