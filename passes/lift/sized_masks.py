"""Masks that follow from sizes alone, and what they say: that every key is allowed, or the causal ones.

A proof at small sizes would take a sliding window of 128 for a causal mask. So the mask is computed by itself, also at
sizes beyond every number that stands in its making.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import onnx_ir as ir

from ..region import LOWEST, Functions, evaluate
from .values import constant, dims

SMALL = (1, 2, 5, 17)
LARGEST = 4096  # keys; a mask of as many queries has 16 million entries

Says = Literal["all", "causal", ""]


def says(mask: ir.Value, functions: Functions) -> Says:
    """What `mask` allows at every size that was tried; "" if it is neither, cannot be computed, or has larger numbers.

    `mask`: [..., queries, keys], boolean or added, computed from constants and sizes alone.
    """
    own = dims(mask)
    if own is None or len(own) < 2:
        return ""
    numbers = set(_numbers(mask))
    if any(number >= LARGEST for number in numbers):
        return ""
    lengths = sorted({*SMALL, *(number + 1 for number in numbers), 2 * max(numbers, default=0) + 1})
    wide = {name for size in own[-2:] if isinstance(size, str) for name in ir.SymbolicDim(size).free_symbols()}
    sizes = [dict.fromkeys(wide, length) for length in lengths] if wide else [{}]
    found = [_read(array) for array in evaluate(mask, sizes, functions)]
    # of one row both are the same
    telling: set[Says] = {what for what in found if what != "both"}
    return telling.pop() if len(telling) == 1 else ""


def _read(array: np.ndarray) -> Says | Literal["both"]:
    allowed = array if array.dtype == np.bool_ else array > LOWEST
    added = array.dtype != np.bool_ and bool((array[allowed] != 0).any())
    causal = np.tri(*allowed.shape[-2:], dtype=np.bool_)
    every, is_causal = bool(allowed.all()), bool((allowed == causal).all())
    if added or not (every or is_causal):
        return ""
    return "both" if every and is_causal else "all" if every else "causal"


def _numbers(value: ir.Value) -> Iterator[int]:
    """The whole numbers that stand in the making of a value, but for those that mean "to the end"."""
    ahead, seen = [value], set[ir.Value]()
    while ahead:
        value = ahead.pop()
        if value in seen:
            continue
        seen.add(value)
        array = constant(value)
        if array is not None and array.size <= 8 and array.dtype.kind in "iuf":
            yield from (abs(int(x)) for x in array.reshape(-1) if np.isfinite(x) and abs(x) < 1 << 31)
        node = value.producer()
        if node is not None and node.op_type not in ("Shape", "Size"):
            ahead += [operand for operand in node.inputs if operand is not None]
