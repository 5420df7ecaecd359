"""Views and the arithmetic of their shapes are folded to constants; what is not the same stays."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import RemoveUnusedNodesPass, ShapeInferencePass

from graphwright.passes.lift.reshapes import FoldReshapes
from graphwright.passes.lift.shapes import ResolveShapes

Arrays = dict[str, np.ndarray]
Compare = Callable[[ir.Model, ir.Model, Iterable[Arrays], float, float], None]

CONSTANTS = """
    int64[1] none = {-1}, int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, int64[1] four = {4},
    int64[1] eight = {8}, int64[1] three = {3}, int64[1] far = {9223372036854775807},
    int64[1] low = {-9223372036854775807}, int64[2] flat = {-1, 8}, int64[3] merged = {-1, 2, 4},
    int64[2] axes = {1, 2},
    int64[4] plain = {0, 0, 2, 4}, int64[4] parted = {0, -1, 2, 4}
"""
SIZES = "n = Shape <start = 0, end = 1> (x)  l = Shape <start = 1, end = 2> (x)"


def make(body: str, x: str = "float[B, S, 8]", kind: str = "float") -> ir.Model:
    """`body` makes y of x [B, S, 8] and z [B, S, 2, 4]."""
    model = ir.from_onnx_text(f"""
        <ir_version: 10, opset_import: ["": 23]>
        views ({x} x, float[B, S, 2, 4] z) => ({kind}[] y) <{CONSTANTS}> {{ {body} }}""")
    model.graph.outputs[0].shape = None
    ShapeInferencePass()(model)
    ResolveShapes()(model)
    return model


def folded(model: ir.Model) -> ir.Model:
    after = model.clone()
    FoldReshapes()(after)
    RemoveUnusedNodesPass()(after)
    return after


def spelled(value: ir.Value | None) -> str:
    """Of every op its operands: constants as lists."""
    node = value.producer() if value is not None else None
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    if value is None or tensor is not None:
        return "_" if tensor is None else str(tensor.numpy().tolist())
    if node is None:
        return str(value.name)
    more = [str(list(node.attributes.get_ints("perm")))] if "perm" in node.attributes else []
    return f"{node.op_type}({', '.join([*map(spelled, node.inputs), *more])})"


def feeds(model: ir.Model) -> list[Arrays]:
    cases = []
    for batch, length in ((1, 1), (1, 7), (3, 5)):
        named, made = {"B": batch, "S": length}, {}
        for value in model.graph.inputs:
            shape = [dim if isinstance(dim, int) else named[str(dim.value)] for dim in value.shape or ()]
            made[str(value.name)] = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
        cases.append(made)
    return cases


FOLDED = {
    "a Reshape that splits": (
        f"{SIZES} t = Concat <axis = 0> (n, l, none, four) y = Reshape <allowzero = 1> (x, t)",
        "Reshape(x, [0, 0, 2, 4])",
    ),
    "a Reshape that moves a name": (
        f"{SIZES} t = Concat <axis = 0> (n, two, l, four) y = Reshape(x, t)",
        "Reshape(x, [0, 2, -1, 4])",
    ),
    "a Reshape that merges names": (
        f"{SIZES} m = Mul(n, l) t = Concat <axis = 0> (m, eight) y = Reshape(x, t)",
        "Reshape(x, [-1, 8])",
    ),
    "an Expand": (
        f"{SIZES} u = Unsqueeze(x, two) t = Concat <axis = 0> (n, l, four, eight) y = Expand(u, t)",
        "Expand(Unsqueeze(x, [2]), [1, 1, 4, 1])",
    ),
    "an Expand to more dims": (
        f"{SIZES} t = Concat <axis = 0> (three, n, l, eight) y = Expand(x, t)",
        "Expand(x, [3, 1, 1, 1])",
    ),
    "numbers worked out": (
        """s = Shape(z) a = Gather(s, two) b = Gather(s, three) m = Mul(a, b) t = Concat <axis = 0> (none, m)
           y = Reshape(z, t)""",
        "Reshape(z, [-1, 8])",
    ),
    "a scalar worked out": (
        "s = Shape(z) d = Cast <to = 6> (s) a = Gather(d, two) b = Cast <to = 7> (a) y = ConstantOfShape(b)",
        "ConstantOfShape([2])",
    ),
    "a bound worked out": (
        "s = Shape(z) a = Gather(s, two) h = Div(a, two) y = Slice(z, h, far, two)",
        "Slice(z, [1], [9223372036854775807], [2])",
    ),
    "a Reshape of a Reshape": ("r = Reshape(z, flat) y = Reshape(r, merged)", "Reshape(z, [-1, 2, 4])"),
    "there and back": (
        f"{SIZES} r = Reshape(x, flat) t = Concat <axis = 0> (n, l, eight) q = Reshape(r, t) y = Relu(q)",
        "Relu(x)",
    ),
    "back by another way": (
        f"{SIZES} r = Reshape(x, flat) t = Concat <axis = 0> (n, l, two, four) y = Reshape(r, t)",
        "Reshape(x, [0, 0, 2, 4])",
    ),
    "an idle Reshape": (f"{SIZES} t = Concat <axis = 0> (n, none, eight) r = Reshape(x, t) y = Relu(r)", "Relu(x)"),
    "a flattened view": ("f = Flatten <axis = 2> (x) t = Shape(x) r = Reshape(f, t) y = Relu(r)", "Relu(x)"),
    "axes put in and taken out": ("u = Unsqueeze(x, one) q = Squeeze(u, one) y = Relu(q)", "Relu(x)"),
    "axes taken out and put in": (
        "u = Slice(x, zero, one, two) q = Squeeze(u, two) v = Unsqueeze(q, none) y = Relu(v)",
        "Relu(Slice(x, [0], [1], [2]))",
    ),
    "axes put in twice": ("u = Unsqueeze(x, axes) v = Unsqueeze(u, zero) y = Relu(v)", "Relu(Unsqueeze(x, [0, 2, 3]))"),
    "axes moved": (
        "u = Unsqueeze(x, one) q = Squeeze(u, one) v = Unsqueeze(q, none) y = Relu(v)",
        "Relu(Unsqueeze(x, [-1]))",
    ),
    "an idle Expand": (f"{SIZES} t = Concat <axis = 0> (n, l, one) e = Expand(x, t) y = Relu(e)", "Relu(x)"),
    "an idle Slice": ("e = Slice(x, zero, far, one) y = Relu(e)", "Relu(x)"),
    "an idle Slice to a size": (f"{SIZES} e = Slice(x, zero, l, one, one) y = Relu(e)", "Relu(x)"),
    "an idle Split": ("e = Split <axis = 2, num_outputs = 1> (x) y = Relu(e)", "Relu(x)"),
    "what was split joined": (
        "a, b = Split <axis = 2, num_outputs = 2> (x) c = Concat <axis = -1> (a, b) y = Relu(c)",
        "Relu(x)",
    ),
    "one part joined": ("c = Concat <axis = 1> (x) y = Relu(c)", "Relu(x)"),
    "an idle Transpose": ("t = Transpose <perm = [0, 1, 2]> (x) y = Relu(t)", "Relu(x)"),
    "a Transpose of a Transpose": (
        "t = Transpose <perm = [0, 2, 1, 3]> (z) y = Transpose <perm = [0, 1, 3, 2]> (t)",
        "Transpose(z, [0, 2, 3, 1])",
    ),
    "a Transpose and back": (
        "t = Transpose <perm = [1, 2, 0]> (x) u = Transpose <perm = [2, 0, 1]> (t) y = Relu(u)",
        "Relu(x)",
    ),
    "reversed twice": ("t = Transpose(x) u = Transpose(t) y = Relu(u)", "Relu(x)"),
    "a Transpose between Reshapes": (
        f"""{SIZES} r = Reshape(z, merged) t = Transpose <perm = [0, 2, 1]> (r)
            s = Concat <axis = 0> (n, l, four, two) y = Reshape(t, s)""",
        "Transpose(z, [0, 1, 3, 2])",
    ),
    "a size asked twice": (
        f"""{SIZES} k = Shape <start = 1, end = 2> (z) m = Mul(l, two) t = Concat <axis = 0> (m, k)
            y = ConstantOfShape(t)""",
        "ConstantOfShape(Concat(Mul(Shape(x), [2]), Shape(x)))",
    ),
}


@pytest.mark.parametrize("name", FOLDED)
def test_a_view_is_folded(name: str, compare: Compare) -> None:
    body, expected = FOLDED[name]
    model = make(body)
    after = folded(model)
    assert spelled(after.graph.outputs[0]) == expected
    compare(model, after, feeds(model), 0, 0)
    assert not FoldReshapes()(after).modified


LEFT = {
    "a name that is not the input's": f"{SIZES} t = Concat <axis = 0> (l, n, eight) y = Reshape(x, t)",
    "an Expand to a name": "l = Shape <start = 1, end = 2> (x) t = Concat <axis = 0> (l, l) y = Expand(l, t)",
    "an Expand of a name": f"{SIZES} v = Slice(x, zero, one, one) t = Concat <axis = 0> (n, l, eight) y = Expand(v, t)",
    "a Slice with a negative step": "e = Slice(x, none, low, one, none) y = Relu(e)",
    "a Slice that is short": "e = Slice(x, zero, four, two) y = Relu(e)",
    "parts in another order": "a, b = Split <axis = 2, num_outputs = 2> (x) c = Concat <axis = 2> (b, a) y = Relu(c)",
    "parts on another axis": "a, b = Split <axis = 2, num_outputs = 2> (x) c = Concat <axis = 1> (a, b) y = Relu(c)",
    "a part left out": "a, b = Split <axis = 2, num_outputs = 2> (x) c = Concat <axis = 2> (a, a) y = Relu(c)",
    "a Transpose": "t = Transpose <perm = [0, 2, 1]> (x) y = Relu(t)",
}


@pytest.mark.parametrize("name", LEFT)
def test_what_is_not_the_same_stays(name: str, compare: Compare) -> None:
    model = make(LEFT[name], kind="int64" if name == "an Expand to a name" else "float")
    after = folded(model)
    assert [node.op_type for node in after.graph] == [node.op_type for node in model.graph]
    compare(model, after, feeds(model), 0, 0)


def test_a_transpose_between_reshapes_that_mix_the_axes_stays(compare: Compare) -> None:
    """[B, S, 2, 4] -> [B * S, 2, 4] -> [B * S, 4, 2] -> [S, B, 4, 2]."""
    body = f"""{SIZES} r = Reshape(z, merged) t = Transpose <perm = [0, 2, 1]> (r)
        s = Concat <axis = 0> (l, n, four, two) y = Reshape(t, s)"""
    model = make(body)
    after = folded(model)
    assert [node.op_type for node in after.graph][-3:] != ["Transpose"]
    assert "Reshape" in [node.op_type for node in after.graph]
    compare(model, after, feeds(model), 0, 0)


def test_equal_sizes_under_other_names_are_not_the_same() -> None:
    model = make("s = Shape(w) r = Reshape(x, s) y = Relu(r)".replace("w", "x"), x="float[B, S, 8]")
    assert [node.op_type for node in folded(model).graph] == ["Relu"]
    other = ir.from_onnx_text("""
        <ir_version: 10, opset_import: ["": 23]>
        views (float[B, S, 8] x, float[C, T, 8] w) => (float[C, T, 8] y) {
            s = Shape(w) r = Reshape(x, s) y = Relu(r)
        }""")
    ShapeInferencePass()(other)
    ResolveShapes()(other)
    assert [node.op_type for node in folded(other).graph] == ["Shape", "Reshape", "Relu"]


def test_unknown_dims_are_left_alone() -> None:
    model = ir.from_onnx_text("""
        <ir_version: 10, opset_import: ["": 23]>
        views (float[?, ?, 8] x, int64[3] s) => (float[?, ?, ?] y) {
            r = Reshape(x, s) t = Expand(r, s) y = Relu(t)
        }""")
    assert not FoldReshapes()(model).modified


def test_an_output_keeps_its_name(compare: Compare) -> None:
    model = make(f"{SIZES} t = Concat <axis = 0> (n, l, eight) y = Reshape(x, t)")
    after = folded(model)
    assert spelled(after.graph.outputs[0]) == "Reshape(x, [0, 0, 8])"
    compare(model, after, feeds(model), 0, 0)


def test_a_zero_of_allowzero_stays(compare: Compare) -> None:
    model = make(
        "t = Concat <axis = 0> (zero, n, four) y = Reshape <allowzero = 1> (x, t)".replace("t =", f"{SIZES} t ="),
        x="float[B, S, 0]",
    )
    after = folded(model)
    assert spelled(after.graph.outputs[0]).startswith("Reshape(x, Concat([0], ")
    compare(model, after, feeds(model), 0, 0)


def test_what_else_reads_a_view_reads_it_still(compare: Compare) -> None:
    model = make(
        f"""{SIZES} r = Reshape(x, flat) t = Concat <axis = 0> (n, l, eight) q = Reshape(r, t) m = ReduceSum(r)
            y = Add(q, m)"""
    )
    after = folded(model)
    assert spelled(after.graph.outputs[0]) == "Add(x, ReduceSum(Reshape(x, [-1, 8])))"
    compare(model, after, feeds(model), 1e-6, 0)  # one sum in another order of loops
