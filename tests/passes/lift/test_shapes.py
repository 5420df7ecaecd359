"""Shapes computed at run time: what is resolved is what ONNX Runtime makes; an Expand that changes nothing goes."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import ShapeInferencePass

from graphwright.passes.lift.shapes import ResolveShapes, sizes

Arrays = dict[str, np.ndarray]
Run = Callable[[ir.Model, Arrays], Arrays]
Compare = Callable[[ir.Model, ir.Model, Iterable[Arrays], float, float], None]
Spell = Callable[[ir.Model], str]

CONSTANTS = """
    int64[1] none = {-1}, int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, int64[1] four = {4},
    int64[1] eight = {8}, int64[1] lowest = {-9223372036854775807}, int64[3] flat = {0, 0, -1},
    int64[3] empty = {0, 3, 2}, int64 first = {0}, int64[2] some = {1, 3}, int64[4] wide = {1, 1, 2, 4},
    int64[5] deep = {3, 1, 1, 1, 4}
"""


def make(body: str, x: str = "float[B, S, 2, 4]") -> ir.Model:
    """`body` makes y of x and s, the shape of x; types and ranks are inferred, dims are not."""
    model = ir.from_onnx_text(f"""
        <ir_version: 10, opset_import: ["": 23]>
        shapes ({x} x, float[B, S, 1, 4] z) => (float[] y) <{CONSTANTS}> {{ s = Shape(x)  {body} }}""")
    ShapeInferencePass(data_prop=False)(model)
    for node in model.graph:
        for value in node.outputs:
            integers = value.dtype in (ir.DataType.INT64, ir.DataType.INT32)  # the length of a list of sizes is known
            value.shape = value.shape if integers else ir.Shape([None] * len(value.shape or ()))
    return model


def feeds(model: ir.Model, batch: int = 3, length: int = 5) -> Arrays:
    named, made = {"B": batch, "S": length}, {}
    for value in model.graph.inputs:
        shape = [dim if isinstance(dim, int) else named[str(dim.value)] for dim in value.shape or ()]
        made[str(value.name)] = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    return made


SHAPES = {
    "Reshape to constants and copies": ("y = Reshape(x, flat)", "[B,S,None]"),
    "Reshape by Shape with bounds": (
        """n = Shape <start = 0, end = 1> (x)  l = Shape <start = -3, end = -2> (x)
           t = Concat <axis = 0> (n, l, eight)  y = Reshape(x, t)""",
        "[B,S,8]",
    ),
    "Reshape by Slice": (
        """n = Slice(s, zero, one)  l = Slice(s, one, two, zero)
           t = Concat <axis = 0> (l, n, none)  y = Reshape(x, t)""",
        "[S,B,None]",
    ),
    "Reshape by Slice backwards": (
        """r = Slice(s, none, lowest, zero, none)  h = Slice(r, two, four)
           t = Concat <axis = 0> (h, eight)  y = Reshape(x, t)""",
        "[S,B,8]",
    ),
    "Reshape by Gather of one": (
        """n = Gather(s, first)  u = Unsqueeze(n, zero)  l = Gather(s, one)
           t = Concat <axis = 0> (u, l, none)  y = Reshape(x, t)""",
        "[B,S,None]",
    ),
    "Reshape by Gather of several": (
        "g = Gather(s, some)  t = Concat <axis = 0> (g, none)  y = Reshape(x, t)",
        "[S,4,None]",
    ),
    "Reshape by Squeeze, Reshape, Cast, Identity": (
        """n = Gather(s, zero)  q = Squeeze(n)  r = Reshape(q, none)  c = Cast <to = 6> (r)  d = Cast <to = 7> (c)
           i = Identity(d)  t = Concat <axis = 0> (i, four, none)  y = Reshape(x, t)""",
        "[B,4,None]",
    ),
    "Reshape by one unknown size": (
        "l = Gather(s, one)  m = Mul(l, two)  t = Concat <axis = 0> (zero, m, four)  y = Reshape(x, t)",
        "[B,None,4]",
    ),
    "Reshape by a truth": (
        """n = Gather(s, one)  c = Cast <to = 9> (n)  d = Cast <to = 7> (c)
           t = Concat <axis = 0> (d, zero, none)  y = Reshape(x, t)""",
        "[None,S,None]",
    ),
    "Transpose": ("y = Transpose <perm = [0, 2, 3, 1]> (x)", "[B,2,4,S]"),
    "Transpose without perm": ("y = Transpose(x)", "[4,2,S,B]"),
    "Expand of the input's ones": ("t = Identity(s)  y = Expand(z, t)", "[B,S,2,4]"),
    "Expand by ones": ("y = Expand(x, wide)", "[B,S,2,4]"),
    "Expand to more dims": ("y = Expand(z, deep)", "[3,B,S,1,4]"),
    "two steps": (
        "t = Concat <axis = 0> (zero, none, eight)  r = Reshape(x, t)  y = Transpose <perm = [2, 0, 1]> (r)",
        "[8,B,None]",
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_what_is_resolved_is_what_is_made(name: str, run: Run) -> None:
    body, expected = SHAPES[name]
    model = make(body)
    assert ResolveShapes()(model).modified
    shape = model.graph.outputs[0].shape
    assert shape is not None
    assert str(shape) == expected
    case = feeds(model)
    made = run(model, case)["y"].shape
    named = {"B": 3, "S": 5}
    assert len(made) == len(shape)
    for dim, size in zip(shape, made, strict=True):
        assert size == (dim if isinstance(dim, int) else named.get(str(dim.value), size))
    assert not ResolveShapes()(model).modified


@pytest.mark.parametrize(
    "body",
    [
        "g = Gather(s, some)  m = Mul(g, one)  t = Concat <axis = 0> (zero, m)  y = Reshape(x, t)",  # of several sizes
        "m = Mul(s, wide)  y = Reshape(x, m)",
        "l = Gather(s, one)  n = Slice(s, zero, l)  y = Reshape(x, n)",  # a bound that is computed
        "y = Relu(x)",
    ],
)
def test_other_arithmetic_stays_unknown(body: str) -> None:
    model = make(body)
    before = [value.shape for node in model.graph for value in node.outputs]
    assert not ResolveShapes()(model).modified
    assert [value.shape for node in model.graph for value in node.outputs] == before


def test_a_name_from_the_graph_is_better_than_one_made_up() -> None:
    model = make(SHAPES["Reshape by Slice"][0])
    model.graph.outputs[0].shape = ir.Shape(["unk__0", 3, "unk__1"])
    ResolveShapes()(model)
    assert str(model.graph.outputs[0].shape) == "[S,3,unk__1]"


def test_a_zero_of_allowzero_is_no_copy() -> None:
    model = make("y = Reshape <allowzero = 1> (x, empty)", x="float[0, S, 2, 4]")
    ResolveShapes()(model)
    assert str(model.graph.outputs[0].shape) == "[0,3,2]"


def test_sizes_of_what_is_no_list() -> None:
    model = make("y = Relu(x)")
    matrix = ir.Value(name="m", const_value=ir.tensor(np.ones((2, 2), np.int64)))
    assert sizes(matrix) is None
    assert sizes(model.graph.inputs[0]) is None
    assert sizes(None) is None


IDLE = "t = Concat <axis = 0> (n, l, two, four)  e = Expand(x, t)"
BOUNDS = "n = Gather(s, zero)  l = Gather(s, one)"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (f"{BOUNDS}  {IDLE}  y = Relu(e)", "Relu(x)"),
        (f"{BOUNDS}  {IDLE.replace('two', 'one')}  y = Relu(e)", "Relu(x)"),
        (f"{BOUNDS}  {IDLE.replace('(x', '(z')}  y = Relu(e)", "Relu(Expand(z))"),  # from 1 to 2
        (f"{BOUNDS}  {IDLE.replace('(n, l', '(l, n')}  y = Relu(e)", "Relu(Expand(x))"),  # named otherwise
        (f"{BOUNDS}  {IDLE.replace('e =', 'y =')}", "Expand(x)"),  # it names an output
    ],
)
def test_an_expand_to_the_same_shape_goes(body: str, expected: str, spell: Spell, compare: Compare) -> None:
    model = make(body)
    after = model.clone()
    ResolveShapes()(after)
    assert spell(after) == expected
    assert ("Concat" in [node.op_type for node in after.graph]) == ("Expand" in expected)
    compare(model, after, [feeds(model, 3, 3), feeds(model, 1, 1)], 0, 0)
