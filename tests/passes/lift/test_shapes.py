"""Shapes computed at run time: what is resolved is what ONNX Runtime makes."""

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
    int64[5] deep = {3, 1, 1, 1, 4}, int64[1] count = {4}, int64 unit = {1}, int64[1] far = {9223372036854775807},
    int64[1] three = {3}, int64[2] thirds = {1, 3}, int64[2, 2] rows = {0, 1, 2, 3}, int64[2] pair = {-1, 8},
    float[8, 2] square = {1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8}
"""


def make(body: str, x: str = "float[B, S, 2, 4]") -> ir.Model:
    """`body` makes y of x and s, the shape of x; types and ranks are inferred, dims are not."""
    kind = "int64" if "y = Range" in body or "NonZero" in body else "float"
    model = ir.from_onnx_text(f"""
        <ir_version: 10, opset_import: ["": 23]>
        shapes ({x} x, float[B, S, 1, 4] z, float[16, 4] table) => ({kind}[] y) <{CONSTANTS}>
        {{ s = Shape(x)  {body} }}""")
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
    "Reshape to constants and copies": ("y = Reshape(x, flat)", "[B,S,8]"),
    "Reshape by Shape with bounds": (
        """n = Shape <start = 0, end = 1> (x)  l = Shape <start = -3, end = -2> (x)
           t = Concat <axis = 0> (n, l, eight)  y = Reshape(x, t)""",
        "[B,S,8]",
    ),
    "Reshape by Slice": (
        """n = Slice(s, zero, one)  l = Slice(s, one, two, zero)
           t = Concat <axis = 0> (l, n, none)  y = Reshape(x, t)""",
        "[S,B,8]",
    ),
    "Reshape by Slice backwards": (
        """r = Slice(s, none, lowest, zero, none)  h = Slice(r, two, four)
           t = Concat <axis = 0> (h, eight)  y = Reshape(x, t)""",
        "[S,B,8]",
    ),
    "Reshape by Gather of one": (
        """n = Gather(s, first)  u = Unsqueeze(n, zero)  l = Gather(s, one)
           t = Concat <axis = 0> (u, l, none)  y = Reshape(x, t)""",
        "[B,S,8]",
    ),
    "Reshape by Gather of several": (
        "g = Gather(s, some)  t = Concat <axis = 0> (g, none)  y = Reshape(x, t)",
        "[S,4,2*B]",
    ),
    "Reshape by Squeeze, Reshape, Cast, Identity": (
        """n = Gather(s, zero)  q = Squeeze(n)  r = Reshape(q, none)  c = Cast <to = 6> (r)  d = Cast <to = 7> (c)
           i = Identity(d)  t = Concat <axis = 0> (i, four, none)  y = Reshape(x, t)""",
        "[B,4,2*S]",
    ),
    "Reshape by a product": (
        "l = Gather(s, one)  m = Mul(l, two)  t = Concat <axis = 0> (zero, m, four)  y = Reshape(x, t)",
        "[B,2*S,4]",
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
    "a size halved": (
        "l = Gather(s, one)  h = Div(l, two)  t = Concat <axis = 0> (h, two)  c = ConstantOfShape(t)  y = Identity(c)",
        "[floor(S/2),2]",
    ),
    "sizes added and taken away": (
        "l = Gather(s, one)  m = Add(l, two)  n = Sub(m, one)  t = Concat <axis = 0> (n, two)  y = ConstantOfShape(t)",
        "[S + 1,2]",
    ),
    "a product of sizes": (
        "g = Slice(s, zero, two)  p = ReduceProd(g)  t = Concat <axis = 0> (p, eight)  y = Reshape(x, t)",
        "[B*S,8]",
    ),
    "merged and parted": (
        """g = Concat <axis = 0> (none, eight)  f = Reshape(x, g)  n = Gather(s, zero)
           t = Concat <axis = 0> (n, none, eight)  y = Reshape(f, t)""",
        "[B,S,8]",
    ),
    "an Expand as TorchScript spells it": (
        """o = ConstantOfShape <value = int64[1] {1}> (count)  t = Concat <axis = 0> (l, none, two, four)
           m = Mul(o, none)  e = Equal(t, m)  w = Where(e, o, t)  y = Expand(z, w)
           """.replace("t = Con", "l = Gather(s, zero)  t = Con"),
        "[B,S,2,4]",
    ),
    "Range": ("l = Gather(s, one)  q = Squeeze(l)  y = Range(first, q, unit)", "[S]"),
    "Range from 1": ("l = Gather(s, one)  q = Squeeze(l)  y = Range(unit, q, unit)", "[S - 1]"),
    "Slice to a size": ("l = Gather(s, one)  y = Slice(table, zero, l, zero)", "[Min(16, S),4]"),
    "Slice to its end": ("l = Gather(s, one)  y = Slice(x, zero, l, one)", "[B,S,2,4]"),
    "Slice from its end": ("y = Slice(x, none, far, one)", "[B,1,2,4]"),
    "Slice without the last": ("y = Slice(x, zero, none, one)", "[B,S - 1,2,4]"),
    "Slice with steps": ("y = Slice(x, one, far, three, two)", "[B,S,2,2]"),
    "Split of a number": ("u, v = Split <axis = 3, num_outputs = 2> (x)  y = Neg(v)", "[B,S,2,2]"),
    "Split by sizes": ("u, y = Split <axis = -1> (x, thirds)", "[B,S,2,3]"),
    "Concat of sizes": ("y = Concat <axis = 1> (x, x)", "[B,2*S,2,4]"),
    "Tile": ("y = Tile(x, wide)", "[B,S,4,16]"),
    "Unsqueeze and Squeeze": ("u = Unsqueeze(z, none)  y = Squeeze(u, two)", "[B,S,4,1]"),
    "MatMul and a mean": (
        "t = Transpose <perm = [0, 1, 3, 2]> (x)  m = MatMul(x, t)  y = ReduceMean <keepdims = 0> (m, one)",
        "[B,2,2]",
    ),
    "Einsum": ("""y = Einsum <equation = "bshd, bthd -> bhst"> (x, x)""", "[B,2,S,S]"),
    "Einsum that broadcasts": ("""y = Einsum <equation = "bshd,bshd->bhs"> (z, x)""", "[B,2,S]"),
    "a broadcast": ("l = Less(x, z)  y = Where(l, x, z)", "[B,S,2,4]"),
    "Gather of rows": (
        "g = Slice(s, zero, two)  y = Gather <axis = 3> (x, g)".replace("g = S", "h = S").replace("x, g", "x, rows"),
        "[B,S,2,2,2]",
    ),
    "Gemm": ("f = Reshape(x, pair)  t = Transpose(f)  y = Gemm <transA = 1> (t, square)", "[B*S,2]"),
    "two steps": (
        "t = Concat <axis = 0> (zero, none, eight)  r = Reshape(x, t)  y = Transpose <perm = [2, 0, 1]> (r)",
        "[8,B,S]",
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
    for batch, length in ((3, 5), (1, 1), (2, 20)):
        made = run(model, feeds(model, batch, length))["y"].shape
        named = {"B": batch, "S": length}
        wanted = [dim if isinstance(dim, int) or dim.value is None else dim.evaluate(named) for dim in shape]
        assert len(made) == len(wanted)
        for size, dim in zip(made, wanted, strict=True):
            assert size == dim or (isinstance(dim, ir.SymbolicDim) and dim.value is None)
    assert not ResolveShapes()(model).modified


@pytest.mark.parametrize(
    "body",
    [
        "m = Mod(s, wide)  y = Reshape(x, m)",
        "l = Gather(s, one)  n = Slice(s, zero, l)  y = Reshape(x, n)",  # a bound that is computed
        "y = NonZero(x)",
    ],
)
def test_other_arithmetic_stays_unknown(body: str) -> None:
    model = make(body)
    ResolveShapes()(model)
    assert "B" not in str(model.graph.outputs[0].shape)


def test_a_name_from_the_graph_is_better_than_one_made_up() -> None:
    model = make(SHAPES["Reshape by Slice"][0])
    model.graph.outputs[0].shape = ir.Shape(["unk__0", 3, "unk__1"])
    ResolveShapes()(model)
    assert str(model.graph.outputs[0].shape) == "[S,3,8]"


def test_a_zero_of_allowzero_is_no_copy() -> None:
    model = make("y = Reshape <allowzero = 1> (x, empty)", x="float[B, 0, 2, 4]")
    ResolveShapes()(model)
    assert str(model.graph.outputs[0].shape) == "[0,3,2]"


def test_sizes_of_what_is_no_list() -> None:
    model = make("y = Relu(x)")
    matrix = ir.Value(name="m", const_value=ir.tensor(np.ones((2, 2), np.int64)))
    assert sizes(matrix) is None
    assert sizes(model.graph.inputs[0]) is None
    assert sizes(None) is None
