"""Q, K, V and masks brought to [batch, heads, length, size]: every mask shape of every frame, by its numbers."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np
import onnx_ir as ir
import pytest

from graphwright.passes.base import MisfitError
from graphwright.passes.lift.frames import Dim, Frame, Group
from graphwright.passes.lift.operands import Heads, Sizes, bring, bring_mask, restore, swapped, unrepeated
from graphwright.passes.lift.scores import Mask
from graphwright.passes.lift.values import dims, insert
from graphwright.runtimes.ort_cpu import PROVIDER, OrtSession

Arrays = dict[str, np.ndarray]
FLOAT = ir.TensorType(ir.DataType.FLOAT)
SIZE = {"B": 3, "S": 4, "T": 5, "W": 2, "2*B": 6, "2*W": 4, "4*B": 12, "a b": 3}


def value(name: str, shape: Iterable[Dim]) -> ir.Value:
    return ir.Value(name=name, type=FLOAT, shape=ir.Shape(list(shape)))


def numbers(shape: Iterable[Dim]) -> list[int]:
    return [dim if isinstance(dim, int) else SIZE[str(dim)] for dim in shape]


class Bench:
    """A graph in which values are made in front of its last node, and run."""

    def __init__(self, **inputs: list[Dim]) -> None:
        self.inputs = {name: value(name, shape) for name, shape in inputs.items()}
        self.end = ir.node("Identity", [next(iter(self.inputs.values()))])
        self.end.outputs[0].type = FLOAT
        self.graph = ir.Graph(list(self.inputs.values()), [], nodes=[self.end], opset_imports={"": 23}, name="bench")

    def run(self, made: list[ir.Value]) -> tuple[Arrays, list[np.ndarray]]:
        """The inputs, and what became of them; each result has the shape that the graph is told."""
        random = np.random.default_rng(0)
        feeds: Arrays = {
            name: random.standard_normal(numbers(dims(value) or [])).astype(np.float32)
            for name, value in self.inputs.items()
        }
        for index, old in enumerate(made):
            node = ir.node("Identity", [old])
            node.outputs[0].name, node.outputs[0].type = f"made{index}", FLOAT
            self.graph.append(node)
            self.graph.outputs.append(node.outputs[0])
        with OrtSession(ir.to_proto(ir.Model(self.graph, ir_version=10)).SerializeToString(), [PROVIDER]) as session:
            results = list(session.run(feeds).values())
        for old, result in zip(made, results, strict=True):
            told = dims(old) or []
            assert len(told) == result.ndim
            assert all(dim is None or numbers([dim]) == [size] for dim, size in zip(told, result.shape, strict=True))
        return feeds, results


# name -> lead, rows and columns of the scores, the order that they were transposed to, what the heads are, and whose
# axis is that of the keys
FRAMES: dict[str, tuple[list[Dim], list[Dim], list[Dim], tuple[int, ...] | None, Heads, Group]] = {
    "standard": (["B", 2], ["S"], ["T"], None, Heads(("B",), (2,)), "columns"),
    "queries in the columns": (["B", 2], ["T"], ["S"], None, Heads(("B",), (2,)), "rows"),
    "one name for both lengths": (["B", 2], ["S"], ["S"], None, Heads(("B",), (2,)), "columns"),
    "no batch": ([], ["S"], ["T"], None, Heads((1,), (1,)), "columns"),
    "no heads": (["B"], ["S"], ["T"], None, Heads(("B",), (1,)), "columns"),
    "merged": (["2*B"], ["S"], ["T"], None, Heads(("B",), (2,)), "columns"),
    "windows": (["B", 4, 2], ["S"], ["T"], None, Heads(("B", 4), (2,)), "columns"),
    "merged windows": (["2*W", 2], ["S"], ["T"], None, Heads(("2*W",), (2,)), "columns"),
    "heads in front": (["B", 2], ["S"], ["T"], (1, 0, 2, 3), Heads(("B",), (2,)), "columns"),
    "lengths in front": (["B", 2], ["S"], ["T"], (2, 3, 0, 1), Heads(("B",), (2,)), "columns"),
    "heads behind the queries": (["B", 2], ["S"], ["T"], (0, 2, 1, 3), Heads(("B",), (2,)), "columns"),
    "queries and keys as grids": (["B", 2], [2, 2], [3, 2], None, Heads(("B",), (2,)), "columns"),
    "one query": (["B", 2], [1], ["T"], None, Heads(("B",), (2,)), "columns"),
    "a name that is no expression": (["a b", 2], ["S"], ["T"], None, Heads(("a b",), (2,)), "columns"),
}


def masks_of(frame: Frame) -> list[list[Dim]]:
    """Every shape that broadcasts to the scores in a frame: each axis whole or 1, and without those in front."""
    full = [axis.size for axis in frame.axes]
    whole = [list(shape) for shape in itertools.product(*(dict.fromkeys((size, 1)) for size in full))]
    return whole + [full[cut:] for cut in range(1, len(full))]


@pytest.mark.parametrize("name", FRAMES)
def test_a_mask_of_any_shape_keeps_its_meaning(name: str) -> None:
    lead, rows, columns, perm, heads, keys = FRAMES[name]
    frame = Frame.of(lead, rows, columns)
    frame = frame if perm is None else frame.transposed(perm)
    full = numbers(axis.size for axis in frame.axes)
    shapes = masks_of(frame)
    batch, head = (int(np.prod(numbers(part))) for part in (heads.batch, heads.heads))
    queries, length = (rows, columns) if keys == "columns" else (columns, rows)
    inputs: dict[str, list[Dim]] = {"q": [*lead, *rows, 8], "k": [*lead, *columns, 8]}
    bench = Bench(**inputs, **{f"m{index}": shape for index, shape in enumerate(shapes)})
    sizes = Sizes(bench.end, [bench.inputs["q"], bench.inputs["k"]])
    made = [
        bring_mask(Mask(mask, "added", frame), mask, heads, keys, sizes)
        for mask in (bench.inputs[f"m{index}"] for index in range(len(shapes)))
    ]
    feeds, results = bench.run(made)
    groups: list[Group] = ["lead", "rows", "columns"] if keys == "columns" else ["lead", "columns", "rows"]
    order = [position for group in groups for position in frame.where(group)]
    standard = [batch, head, int(np.prod(numbers(queries))), int(np.prod(numbers(length)))]
    for index, (shape, result) in enumerate(zip(shapes, results, strict=True)):
        wanted = np.broadcast_to(feeds[f"m{index}"], full).transpose(order).reshape(standard)
        assert np.array_equal(np.broadcast_to(result, standard), wanted), shape


MISFITS: dict[str, tuple[list[Dim], list[Dim]]] = {
    "more axes than the scores": (["B", 2, "S", "T"], [1, "B", 2, "S", "T"]),
    "an axis that broadcasts the scores": (["B", 1, "S", "T"], ["B", 2, "S", "T"]),
}


@pytest.mark.parametrize("name", MISFITS)
def test_a_mask_that_is_larger_than_the_scores_does_not_fit(name: str) -> None:
    scores, shape = MISFITS[name]
    frame = Frame.of(scores[:2], scores[2:3], scores[3:])
    bench = Bench(q=[*scores[:3], 8], m=shape)
    mask = bench.inputs["m"]
    with pytest.raises(MisfitError, match="broadcasts the scores"):
        bring_mask(Mask(mask, "added", frame), mask, Heads(("B",), (2,)), "columns", Sizes(bench.end))


# name -> the shape of an operand, lead of the product, what the heads are, and whether one head may stay one
OPERANDS: dict[str, tuple[list[Dim], list[Dim], Heads, bool]] = {
    "standard": (["B", 2, "S", 8], ["B", 2], Heads(("B",), (2,)), False),
    "one for the batch": ([1, 2, "S", 8], ["B", 2], Heads(("B",), (2,)), False),
    "one head": (["B", 1, "S", 8], ["B", 2], Heads(("B",), (2,)), False),
    "one head that stays": (["B", 1, "S", 8], ["B", 2], Heads(("B",), (2,)), True),
    "one of each, of which the head stays": ([1, 1, "S", 8], ["B", 2], Heads(("B",), (2,)), True),
    "without a batch": ([2, "S", 8], ["B", 2], Heads(("B",), (2,)), False),
    "a matrix": (["S", 8], ["B", 2], Heads(("B",), (2,)), False),
    "a matrix by itself": (["S", 8], [], Heads((1,), (1,)), False),
    "rank 3": (["B", "S", 8], ["B"], Heads(("B",), (1,)), False),
    "rank 3, one for the batch": ([1, "S", 8], ["B"], Heads(("B",), (1,)), False),
    "rank 3, merged": (["2*B", "S", 8], ["2*B"], Heads(("B",), (2,)), False),
    "rank 5": (["B", 4, 2, "S", 8], ["B", 4, 2], Heads(("B", 4), (2,)), False),
    "rank 5, one window": (["B", 1, 2, "S", 8], ["B", 4, 2], Heads(("B", 4), (2,)), False),
}


@pytest.mark.parametrize("name", OPERANDS)
def test_an_operand_is_brought_and_its_like_restored(name: str) -> None:
    shape, lead, heads, one = OPERANDS[name]
    bench = Bench(x=shape, like=[*lead, 7, 8], batch=[*heads.batch, 1])
    sizes = Sizes(bench.end, [bench.inputs["like"], bench.inputs["batch"]])
    made = bring(bench.inputs["x"], tuple(lead), heads, sizes, one_head=one)
    back = restore(made, tuple(lead), heads, sizes)
    feeds, (result, restored) = bench.run([made, back] if not one else [made, made])
    wide = np.broadcast_to(feeds["x"], [*numbers(lead), 4, 8])
    batch, head = (int(np.prod(numbers(part))) for part in (heads.batch, heads.heads))
    assert result.shape == (batch, 1 if one else head, 4, 8)
    assert np.array_equal(np.broadcast_to(result, (batch, head, 4, 8)), wide.reshape(batch, head, 4, 8))
    assert one or np.array_equal(restored, wide)


def test_an_operand_that_was_merged_is_taken_as_it_was_before() -> None:
    bench = Bench(x=["B", 2, "S", 8])
    flat = insert(bench.end, "Reshape", [bench.inputs["x"], Sizes(bench.end)._constant([-1, 4, 8])])
    flat.shape, flat.type = ir.Shape([None, "S", 8]), FLOAT
    heads = Heads.of([(None,)], flat)
    assert heads == Heads(("B",), (2,))
    assert bring(flat, (None,), heads, Sizes(bench.end)) is bench.inputs["x"]


SWAPPED = {
    "by itself": ([], 1.0, False),
    "of a Transpose of the last two": ([0, 1, 3, 2], 1.0, True),
    "of a Transpose of all": ([0, 3, 1, 2], 1.0, False),
}


@pytest.mark.parametrize("name", SWAPPED)
def test_the_last_two_axes_are_swapped(name: str) -> None:
    perm, scale, same = SWAPPED[name]
    bench = Bench(x=["B", 2, "S", 8])
    x = bench.inputs["x"]
    if perm:
        made = insert(bench.end, "Transpose", [x], perm=perm)
        made.type, made.shape = FLOAT, ir.Shape([(dims(x) or [])[axis] for axis in perm])
    else:
        made = x
    result, factor = swapped(made, bench.end)
    assert (factor, result is x) == (scale, same)
    assert swapped(made, bench.end)[0] is result  # made once
    feeds, (before, after) = bench.run([made, result])
    assert np.array_equal(after, before.swapaxes(-1, -2))
    assert feeds


def repeat(bench: Bench, axis: int, shape: list[Dim]) -> ir.Value:
    """x with a new axis, repeated there, in another shape."""
    own = dims(bench.inputs["x"]) or []
    maker = Sizes(bench.end, [bench.inputs["x"]])
    thin = insert(bench.end, "Unsqueeze", [bench.inputs["x"], maker._constant([axis])])
    wide = insert(bench.end, "Expand", [thin, maker.vector([(1,)] * axis + [(3,)] + [(1,)] * (4 - axis), infer=False)])
    made = insert(bench.end, "Reshape", [wide, maker.vector([(size,) for size in shape])])
    thin.shape, wide.shape = (ir.Shape([*own[:axis], count, *own[axis:]]) for count in (1, 3))
    made.shape = ir.Shape(shape)
    for value in (thin, wide, made):
        value.type = FLOAT
    return made


REPEATED: dict[str, tuple[int, list[Dim], int]] = {
    "each head three times": (2, ["B", 6, "S", 8], 3),
    "all heads three times": (1, ["B", 6, "S", 8], 1),
    "each token three times": (3, ["B", 2, 12, 8], 1),
    "other axes behind it": (2, ["B", 6, 8, "S"], 1),
}


@pytest.mark.parametrize("name", REPEATED)
def test_repeated_heads_are_told_from_other_repetitions(name: str) -> None:
    axis, shape, times = REPEATED[name]
    bench = Bench(x=["B", 2, "S", 8])
    made = repeat(bench, axis, shape)
    few, count = unrepeated(made)
    assert count == times
    assert few is (bench.inputs["x"] if times > 1 else made)
    feeds, (result,) = bench.run([made])
    assert (times > 1) == np.array_equal(result, np.repeat(feeds["x"], 3, 1))


@pytest.mark.parametrize(("index", "times"), [([0, 0, 1, 1], 2), ([0, 1, 0, 1], 1), ([1, 1, 0, 0], 1), ([0, 0, 1], 1)])
def test_heads_repeated_by_a_gather(index: list[int], times: int) -> None:
    bench = Bench(x=["B", 2, "S", 8])
    made = insert(bench.end, "Gather", [bench.inputs["x"], Sizes(bench.end)._constant(index)], axis=1)
    made.type, made.shape = FLOAT, ir.Shape(["B", len(index), "S", 8])
    assert unrepeated(made) == ((bench.inputs["x"], times) if times > 1 else (made, 1))


# name -> parts of a shape and what they are; None where it cannot be had
VECTORS: dict[str, tuple[list[tuple[Dim, ...]], bool, list[int] | None]] = {
    "numbers": ([(2,), (3, 4)], True, [2, 12]),
    "one name is inferred": ([("B",), (2,), (8,)], True, [-1, 2, 8]),
    "names are read": ([("B",), ("S",), (8,)], True, [3, 4, 8]),
    "a product of names": ([("B", 2), ("S",), (8,)], True, [6, 4, 8]),
    "a whole part": ([("floor(S/3)",), ("S",)], True, [1, 4]),
    "one unknown is inferred": ([("B",), ("U",), (8,)], True, [3, -1, 8]),
    "two unknowns": ([("V",), ("U",), (8,)], True, None),
    "an unknown of a shape to expand to": ([("B",), ("U",)], False, None),
    "an unknown size": ([(None,), (8,)], False, None),
}


@pytest.mark.parametrize("name", VECTORS)
def test_shapes_are_made_of_sizes_that_can_be_read(name: str) -> None:
    parts, infer, expected = VECTORS[name]
    bench = Bench(x=["B", "S", 8])
    sizes = Sizes(bench.end, [bench.inputs["x"]])
    if expected is None:
        with pytest.raises(MisfitError, match="is not that of an axis"):
            sizes.vector(parts, infer)
        return
    node = ir.node("Identity", [sizes.vector(parts, infer)])
    node.outputs[0].name, node.outputs[0].type = "shape", ir.TensorType(ir.DataType.INT64)
    bench.graph.append(node)
    bench.graph.outputs.append(node.outputs[0])
    with OrtSession(ir.to_proto(ir.Model(bench.graph, ir_version=10)).SerializeToString(), [PROVIDER]) as session:
        assert session.run({"x": np.zeros((3, 4, 8), np.float32)})["shape"].tolist() == expected
