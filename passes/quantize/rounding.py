"""Constants in half: what of them does not fit, and what gets lost where they are converted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from ..lift.values import constant

TINY = 1e-15  # the squares of smaller numbers leave float32
NUMPY: dict[ir.DataType, np.dtype[Any]] = {
    ir.DataType.FLOAT16: np.dtype(np.float16),
    ir.DataType.BFLOAT16: np.dtype(ml_dtypes.bfloat16),
}


@dataclass(frozen=True)
class HalfType:
    """float16 or bfloat16: its numbers."""

    dtype: ir.DataType

    @property
    def numpy(self) -> np.dtype[Any]:
        return NUMPY[self.dtype]

    @property
    def largest(self) -> float:
        """The largest finite number."""
        return float(ml_dtypes.finfo(self.numpy).max)  # type: ignore[no-untyped-call]

    @property
    def smallest(self) -> float:
        """The smallest number of full precision; below it the steps do not shrink any more."""
        return float(ml_dtypes.finfo(self.numpy).smallest_normal)  # type: ignore[no-untyped-call]

    @property
    def error(self) -> float:
        """The largest relative error of one rounding: 2**-11 or 2**-8."""
        return float(ml_dtypes.finfo(self.numpy).eps) / 2  # type: ignore[no-untyped-call]

    def __str__(self) -> str:
        return self.dtype.name.lower()


@dataclass(frozen=True)
class Weight:
    """What has to be known of a constant before it is converted."""

    peak: float  # the largest finite |entry|
    mean: float  # root of the mean square
    overflows: bool  # a finite entry would become infinite
    is_lost: bool  # it is one number, and half holds another one

    def is_faint(self, half: HalfType) -> bool:
        """Whether most of its size is below full precision: its entries lose four times what rounding costs."""
        return self.peak > 0 and self.mean < half.smallest / 4


@dataclass
class Tally:
    """What became of the numbers that were converted."""

    tensors: int = 0
    numbers: int = 0
    zeros: int = 0  # were none before
    clipped: int = 0  # of masks, whose lowest number may be the type's

    def __str__(self) -> str:
        lost = f", of which {self.zeros} became 0" if self.zeros else ", none of which became 0"
        clipped = f"; {self.clipped} of masks were clipped into the range" if self.clipped else ""
        return f"{self.numbers} numbers of {self.tensors} constants were converted{lost}{clipped}"


class Weights:
    """The constants of a graph, each looked at once."""

    def __init__(self, half: HalfType) -> None:
        self.half, self.tally = half, Tally()
        self._known: dict[ir.Value, Weight | None] = {}

    def look(self, value: ir.Value) -> Weight | None:
        """What is to be known of `value`; None if it is no constant."""
        if value not in self._known:
            array = constant(value)
            self._known[value] = None if array is None else self._weigh(array)
        return self._known[value]

    def convert(self, array: np.ndarray, clip: bool) -> np.ndarray:
        """float32 -> half, rounded to the nearest; with `clip` finite numbers stay finite. What got lost is counted."""
        inside = np.clip(array, -self.half.largest, self.half.largest) if clip else array
        with np.errstate(over="ignore", under="ignore"):
            made = inside.astype(self.half.numpy)
        self.tally.tensors += 1
        self.tally.numbers += array.size
        self.tally.zeros += int(np.count_nonzero(array) - np.count_nonzero(made))
        self.tally.clipped += int(np.count_nonzero(inside != array)) if clip else 0
        return made

    def _weigh(self, array: np.ndarray) -> Weight:
        if not array.size or array.dtype.kind != "f":
            return Weight(0.0, 0.0, overflows=False, is_lost=False)
        peak = float(max(array.max(), -array.min()))
        finite = array if np.isfinite(peak) else array[np.isfinite(array)]
        if finite is not array:
            peak = float(np.abs(finite).max(initial=0.0))
        flat = np.ascontiguousarray(finite).reshape(-1)
        unit = np.float32(peak if 0 < peak < TINY else 1.0)
        with np.errstate(over="ignore"):
            squares = np.dot(flat / unit, flat / unit) if unit < 1 else np.dot(flat, flat)
        mean = float(unit * np.sqrt(squares / max(1, flat.size)))
        with np.errstate(over="ignore", under="ignore"):
            rounded = np.array([peak, *([array.reshape(-1)[0]] if array.size == 1 else [])], np.float32)
            kept = rounded.astype(self.half.numpy).astype(np.float32)
        # one rounding loses at most the type's error; twice that is only lost below its range of normal numbers
        lost = array.size == 1 and not np.allclose(
            kept[-1], rounded[-1], rtol=2 * self.half.error, atol=0, equal_nan=True
        )
        return Weight(peak, mean, overflows=not np.isfinite(kept[0]), is_lost=bool(lost))
