"""Axes of scores on their way: Transposes, Reshapes within a group, and those that mix groups."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from graphwright.passes.base import MisfitError
from graphwright.passes.lift.frames import Dim, Frame, same_size, split, times

Dims = list[Dim]
Case = tuple[Dims, list[Dims], list[Dims] | None]

# name -> the dims of a Reshape, the groups before it, and the runs that these have become
SPLITS: dict[str, Case] = {
    "the same": (["B", 2, "S", "T"], [["B", 2], ["S"], ["T"]], [["B", 2], ["S"], ["T"]]),
    "merged": (["2*B", "S", "T"], [["B", 2], ["S"], ["T"]], [["2*B"], ["S"], ["T"]]),
    "merged to a name of its own": (["N", "S", "T"], [["B", 2], ["S"], ["T"]], [["N"], ["S"], ["T"]]),
    "merged to an unknown": ([None, "S", "T"], [["B", 2], ["S"], ["T"]], [[None], ["S"], ["T"]]),
    "split": (["B", 4, 2, "S", "T"], [["8*B"], ["S"], ["T"]], [["B", 4, 2], ["S"], ["T"]]),
    "keys as a grid": (["B", "S", 3, 4], [["B"], ["S"], [12]], [["B"], ["S"], [3, 4]]),
    "one name for queries and keys": (["B", "S", "S"], [["B"], ["S"], ["S"]], [["B"], ["S"], ["S"]]),
    "one name for all": (["S", "S", "S"], [["S"], ["S"], ["S"]], [["S"], ["S"], ["S"]]),
    "one size for all": ([2, 2, 2, 2], [[4], [2], [2]], [[2, 2], [2], [2]]),
    "a one behind the queries": (["B", "S", 1, "T"], [["B"], ["S"], ["T"]], [["B"], ["S", 1], ["T"]]),
    "a one in front": ([1, "B", "S", "T"], [["B"], ["S"], ["T"]], [[1, "B"], ["S"], ["T"]]),
    "a one for a query of one": (["B", 1, "T"], [["B"], [1], ["T"]], [["B"], [1], ["T"]]),
    "a one for each": ([1, 1, 1], [[1], [1], [1]], [[1], [1], [1]]),
    "ones for no axes": ([1, 1, "S", "T"], [[], ["S"], ["T"]], [[1, 1], ["S"], ["T"]]),
    "no axes": ([], [[], [], []], [[], [], []]),
    "names in another spelling": (["B*2", "T*S", 8], [["2*B"], ["S*T"], [8]], [["B*2"], ["T*S"], [8]]),
    "names that are no expressions": (["a b", "S", "T"], [["a b"], ["S"], ["T"]], [["a b"], ["S"], ["T"]]),
    # near misses
    "queries and keys merged": (["B", "S*T"], [["B"], ["S"], ["T"]], None),
    "queries and batch merged": (["B*S", 1, "T"], [["B"], ["S"], ["T"]], None),
    "an axis moved from group to group": (["B", "2*S", "T"], [["B", 2], ["S"], ["T"]], None),
    "an axis between its neighbours": (["S", 2, "S"], [[2], ["S"], ["S"]], None),
    "sizes that fit in another order": ([2, 2, 4], [[4], [2], [2]], None),
    "two groups that nothing tells": ([None, None, "T"], [["B"], ["S"], ["T"]], None),
    "nothing known": ([None, None, None], [[None], [None], [None]], None),
}


@pytest.mark.parametrize("name", SPLITS)
def test_dims_are_cut_into_their_groups(name: str) -> None:
    dims, groups, expected = SPLITS[name]
    assert split(dims, groups) == (None if expected is None else [tuple(run) for run in expected])


def factors(number: int, most: int) -> list[tuple[int, ...]]:
    """All ways to write a number as a product of up to `most` sizes."""
    sizes = [size for size in range(1, number + 1) if number % size == 0]
    found = [way for count in range(1, most + 1) for way in itertools.product(sizes, repeat=count)]
    return [way for way in found if math.prod(way) == number]


def test_a_cut_never_mixes_elements_of_two_groups() -> None:
    """Each element must stay at its own place of each group, for every Reshape of small scores."""
    lead, rows, columns = 4, 2, 6
    places = np.stack(np.meshgrid(*map(np.arange, (lead, rows, columns)), indexing="ij"))
    cut = 0
    for shape in factors(lead * rows * columns, 5):
        runs = split(shape, [(lead,), (rows,), (columns,)])
        moved = places.reshape(3, *shape)
        if runs is None:
            continue
        cut += 1
        ends = np.cumsum([0, *map(len, runs)])
        for group, (start, end) in enumerate(itertools.pairwise(ends)):
            others = tuple(axis for axis in range(len(shape)) if not start <= axis < end)
            assert (moved[group].max(axis=others) == moved[group].min(axis=others)).all(), (shape, runs)
    assert cut > 10


def test_a_frame_follows_its_axes() -> None:
    frame = Frame.of(["B", 2], ["S"], ["T"])
    assert frame.sizes("lead") == ("B", 2)
    moved = frame.transposed([1, 3, 0, 2])
    assert [axis.size for axis in moved.axes] == [2, "T", "B", "S"]
    assert (moved.sizes("lead"), moved.where("lead"), moved.where("columns")) == (("B", 2), (2, 0), (1,))
    assert moved.transposed([2, 0, 3, 1]) == frame


def test_a_frame_is_reshaped_in_the_order_that_its_groups_stand_in() -> None:
    frame = Frame.of(["B", 2], ["S"], ["T"]).transposed([3, 2, 0, 1]).reshaped(["T", 1, "S", "2*B"])
    assert frame.sizes("columns") == ("T", 1)
    assert (frame.sizes("rows"), frame.sizes("lead")) == (("S",), ("2*B",))
    assert Frame.of([], ["S"], ["T"]).reshaped([1, 1, "S", "T"]).sizes("lead") == (1, 1)


MIXED: dict[str, tuple[list[int], Dims]] = {
    "queries and keys merged": ([0, 1, 2, 3], ["B", 2, "S*T"]),
    "another order of batch and heads": ([1, 0, 2, 3], ["B", 2, "S", "T"]),
    "heads between queries and keys": ([0, 2, 1, 3], ["B", "S", 2, "T"]),
}


@pytest.mark.parametrize("name", MIXED)
def test_a_reshape_that_mixes_groups_is_a_misfit(name: str) -> None:
    perm, dims = MIXED[name]
    with pytest.raises(MisfitError, match="mixes queries, keys, heads or batch"):
        Frame.of(["B", 2], ["S"], ["T"]).transposed(perm).reshaped(dims)


@pytest.mark.parametrize(
    ("dims", "expected"),
    [
        ((), 1),
        ((2, 3), 6),
        (("S",), "S"),
        (("B", 2), "2*B"),
        ((2, "B"), "2*B"),
        (("2*B", "S"), "2*B*S"),
        (("S", "2*B"), "2*B*S"),
        (("2*B + 2",), "2*B + 2"),
        ((None, 2), None),
        (("a b",), "a b"),
        (("x[0]", "a b", 2), "2*a b*x[0]"),
        (("unk__1",), "unk__1"),
    ],
)
def test_products_have_one_spelling(dims: tuple[Dim, ...], expected: Dim) -> None:
    assert times(dims) == expected


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (["B", 2], ["2*B"], True),
        (["B", "S"], ["S", "B"], True),
        ([2, 3], [6], True),
        ([1, "S"], ["S"], True),
        ([], [1], True),
        (["B"], ["S"], False),
        ([2], [3], False),
        ([None], [None], False),
        ([None, 2], [None, 2], False),
    ],
)
def test_sizes_are_equal_as_far_as_names_tell(one: Dims, other: Dims, expected: bool) -> None:
    assert same_size(one, other) == expected
