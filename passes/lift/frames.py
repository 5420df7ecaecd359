"""How the axes of attention scores lie, from the product of Q and K to the product with V.

Scores have three groups of axes: `lead` (batch, heads, windows, ...), and the `rows` and `columns` of the product of Q
and K. On the way the axes are transposed, and reshaped within their groups: [batch * heads, S, T] is seen as [batch,
heads, S, T], a window's T keys as [height, width]. A Frame tells which axis is which.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import onnx_ir as ir

from ..base import MisfitError

Dim = int | str | None
Group = Literal["lead", "rows", "columns"]
GROUPS: tuple[Group, ...] = ("lead", "rows", "columns")


@dataclass(frozen=True)
class Axis:
    """One axis of a tensor of scores: the `place`-th of its group, of `size`."""

    group: Group
    place: int
    size: Dim


@dataclass(frozen=True)
class Frame:
    """The axes of a tensor of scores, in the tensor's own order."""

    axes: tuple[Axis, ...]

    @classmethod
    def of(cls, lead: Sequence[Dim], rows: Sequence[Dim], columns: Sequence[Dim]) -> Frame:
        """The axes of each group, one group after the other."""
        groups = zip(GROUPS, (lead, rows, columns), strict=True)
        return cls(tuple(Axis(group, place, size) for group, sizes in groups for place, size in enumerate(sizes)))

    def sizes(self, group: Group) -> tuple[Dim, ...]:
        """Sizes of a group's axes, outermost first."""
        return tuple(axis.size for axis in sorted(self.axes, key=lambda axis: axis.place) if axis.group == group)

    def where(self, group: Group) -> tuple[int, ...]:
        """Positions of a group's axes, outermost first."""
        found = [(axis.place, position) for position, axis in enumerate(self.axes) if axis.group == group]
        return tuple(position for _, position in sorted(found))

    def transposed(self, perm: Sequence[int]) -> Frame:
        """The frame behind a Transpose."""
        return Frame(tuple(self.axes[axis] for axis in perm))

    def reshaped(self, dims: Sequence[Dim]) -> Frame:
        """The frame behind a Reshape to `dims`. Raises MisfitError where that mixes the groups."""
        order = list(dict.fromkeys(axis.group for axis in self.axes))
        order += [group for group in GROUPS if group not in order]  # a group of no axes yet
        order.sort(key=lambda group: min(self.where(group), default=-1))
        tidy = [position for group in order for position in self.where(group)] == list(range(len(self.axes)))
        parts = split(dims, [self.sizes(group) for group in order]) if tidy else None
        if parts is None:
            own = [axis.size for axis in self.axes]
            raise MisfitError(f"a Reshape from {own} to {list(dims)} mixes queries, keys, heads or batch")
        sizes = dict(zip(order, parts, strict=True))
        return Frame(tuple(Axis(group, place, s) for group in order for place, s in enumerate(sizes[group])))


def split(dims: Sequence[Dim], groups: Sequence[Sequence[Dim]]) -> list[tuple[Dim, ...]] | None:
    """`dims` cut into as many runs as there are `groups`, each of the size of its group; None if that cannot be.

    An axis of size 1 belongs to the run before it, if that leaves no later one without an axis. A Reshape keeps the
    number of elements: where all groups but one are seen to have their size, the one that is left has it too, though
    its names may not tell.
    """
    cuts = sorted(itertools.combinations_with_replacement(range(len(dims) + 1), len(groups) - 1), reverse=True)
    for missing in (0, 1):
        for cut in cuts:
            ends = (0, *cut, len(dims))
            runs = [tuple(dims[start:end]) for start, end in itertools.pairwise(ends)]
            pairs = list(zip(runs, groups, strict=True))
            filled = all(bool(run) or not group for run, group in pairs)
            if filled and sum(not same_size(run, group) for run, group in pairs) <= missing:
                return runs
    return None


def same_size(one: Sequence[Dim], other: Sequence[Dim]) -> bool:
    """Whether both have the same number of elements, as far as names tell."""
    if tuple(one) == tuple(other):
        return None not in one
    product = times(tuple(one))
    return product is not None and product == times(tuple(other))


@lru_cache(maxsize=4096)
def times(dims: tuple[Dim, ...]) -> int | str | None:
    """The product of sizes and names, in one spelling; None if one is unknown."""
    number, names = 1, []
    for dim in dims:
        if dim is None:
            return None
        if isinstance(dim, int):
            number *= dim
        else:
            names.append(dim)
    if not names:
        return number
    if len(names) == 1 and number == 1 and names[0].isidentifier():
        return names[0]
    try:
        total = ir.SymbolicDim(names[0])
        for name in names[1:]:
            total = total * ir.SymbolicDim(name)
        return str((total * number).simplify())
    except (ValueError, TypeError, SyntaxError):  # a file's own name for a dim need be no expression
        return "*".join([*([str(number)] if number != 1 else []), *sorted(names)])
