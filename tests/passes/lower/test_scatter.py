"""What is scattered by adding is summed instead, to the same numbers; what the rewrite does not cover stays."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import onnx_ir as ir
import pytest

from graphwright.passes.lower.scatter import SumScattered

Arrays = dict[str, np.ndarray]
Compare = Callable[[ir.Model, ir.Model, Iterable[Arrays], float, float], None]


def make(
    data: str, wide: str, axis: int = 0, reduction: str = "add", indices: str = "int64", dtype: str = "float"
) -> ir.Model:
    return ir.from_onnx_text(f"""
        <ir_version: 10, opset_import: ["": 20]>
        g ({dtype}[{data}] d, {indices}[{wide}] i, {dtype}[{wide}] u) => ({dtype}[{data}] y)
        {{ y = ScatterElements <axis = {axis}, reduction = "{reduction}"> (d, i, u) }}""")


def cases(model: ir.Model) -> Iterable[Arrays]:
    """Indices count from both ends and fall on the same places more than once."""
    random = np.random.default_rng(0)
    data, wide = (model.graph.inputs[index].shape for index in (0, 1))
    assert data is not None
    assert wide is not None
    axis = model.graph.node(0).attributes.get_int("axis", 0)
    for sizes in ({"N": 1, "M": 1}, {"N": 9, "M": 2}, {"N": 40, "M": 3}):
        shapes = [[dim if isinstance(dim, int) else sizes[str(dim.value)] for dim in shape] for shape in (data, wide)]
        places = shapes[0][axis]
        indices = random.integers(-places, places, shapes[1])
        kind, whole = ((value.dtype or ir.DataType.FLOAT).numpy() for value in model.graph.inputs[:2])
        made = [(10 * random.standard_normal(shape)).astype(kind) for shape in shapes]
        yield {"d": made[0], "i": indices.astype(whole), "u": made[1]}


@pytest.mark.parametrize(
    "model",
    [
        make("4", "N"),
        make("4", "N", axis=-1),
        make("M, 5", "M, N", axis=1),
        make("5, M", "N, M"),
        make("M, 3, 2", "M, N, 2", axis=1),
        make("4", "N", indices="int32"),
        make("4", "N", dtype="int64"),
    ],
    ids=["histogram", "axis from the end", "rows", "columns", "between", "int32 indices", "whole numbers"],
)
def test_it_computes_the_same(model: ir.Model, compare: Compare) -> None:
    after = model.clone()
    assert SumScattered()(after).modified
    assert [node.op_type for node in after.graph] == [
        "Mod",
        "Unsqueeze",
        "Unsqueeze",
        "Equal",
        "Where",
        "ReduceSum",
        "Add",
    ]
    assert not SumScattered()(after).modified
    compare(model, after, cases(model), 1e-6, 1e-5)  # at most 41 terms of size 10, in another order


def test_infinity_stays_where_it_falls(run: Callable[[ir.Model, Arrays], Arrays]) -> None:
    model = make("3", "N")
    assert SumScattered()(model).modified
    feeds = {"d": np.zeros(3, np.float32), "i": np.array([1, 2]), "u": np.array([np.inf, 1], np.float32)}
    np.testing.assert_array_equal(run(model, feeds)["y"], np.array([0, np.inf, 1], np.float32))


@pytest.mark.parametrize(
    "model",
    [
        make("4", "N", reduction="none"),
        make("4", "N", reduction="mul"),
        make("N", "N"),
        make("5000", "N"),
        make("M, 5", "K, N", axis=1),
        make("4, 5", "3, N", axis=1),
    ],
    ids=["no reduction", "product", "places unknown", "too many places", "other rows", "fewer rows"],
)
def test_what_it_does_not_cover_stays(model: ir.Model) -> None:
    assert not SumScattered()(model).modified
