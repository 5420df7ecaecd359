"""Graphs of any opset become opset 23 and compute the same; what 23 cannot say is refused, or keeps its opset."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphwright.errors import BuildError
from graphwright.passes import lift
from graphwright.passes.lift.opset import ConvertOpset
from graphwright.spec import PATH

Arrays = dict[str, np.ndarray]
Compare = Callable[[ir.Model, ir.Model, Iterable[Arrays], float, float], None]

IMAGE = "float[2, 4, 5, 6] x"
X = "float[2, 4, 6] x"


def make(opset: int, inputs: str, outputs: str, body: str, ir_version: int = 8) -> ir.Model:
    text = f'<ir_version: {ir_version}, opset_import: ["": {opset}]> old ({inputs}) => ({outputs}) {{ {body} }}'
    return ir.from_onnx_text(text)


def convert(model: ir.Model) -> ir.Model:
    after = model.clone()
    ConvertOpset()(after)
    onnx.checker.check_model(ir.to_proto(after), full_check=True)
    return after


def feeds(model: ir.Model) -> Arrays:
    """Random inputs in [0.1, 1): every op below is defined on them; integers are 1."""
    random, made = np.random.default_rng(0), {}
    for value in model.graph.inputs:
        assert value.shape is not None
        assert value.dtype is not None
        shape = [int(dim) if isinstance(dim, int) else 3 for dim in value.shape]
        dtype = value.dtype.numpy()
        made[str(value.name)] = (
            np.ones(shape, dtype) if dtype.kind in "ib" else random.uniform(0.1, 1, shape).astype(dtype)
        )
    return made


# (opsets, inputs, outputs, body): the operators whose form changed
OLD: dict[str, tuple[tuple[int, ...], str, str, str]] = {
    "BatchNormalization": (
        (7, 8, 9, 13),
        f"{IMAGE}, float[4] s, float[4] b, float[4] m, float[4] v",
        "float[2, 4, 5, 6] y",
        "y = BatchNormalization <epsilon = 0.01> (x, s, b, m, v)",
    ),
    "Clip": ((7, 10), X, "float[2, 4, 6] y", "y = Clip <min = 0.3, max = 0.6> (x)"),
    "Clip of one end": ((7, 10), X, "float[2, 4, 6] y", "y = Clip <max = 0.6> (x)"),
    "Dropout": ((7, 10, 11), X, "float[2, 4, 6] y", "y = Dropout <ratio = 0.3> (x)"),
    "GridSample": (
        (16, 19),
        f"{IMAGE}, float[2, 3, 3, 2] g",
        "float[2, 4, 3, 3] y",
        'y = GridSample <mode = "bicubic"> (x, g)',
    ),
    "GridSample by default": ((16,), f"{IMAGE}, float[2, 3, 3, 2] g", "float[2, 4, 3, 3] y", "y = GridSample(x, g)"),
    "GroupNormalization": (
        (18, 20),
        "float[2, 4, N] x, float[2] s, float[2] b",
        "float[2, 4, N] y",
        "y = GroupNormalization <num_groups = 2> (x, s, b)",
    ),
    "Hardmax": ((7, 11, 12), X, "float[2, 4, 6] y", "y = Hardmax(x)"),
    "LogSoftmax": ((7, 12), X, "float[2, 4, 6] y", "y = LogSoftmax <axis = 2> (x)"),
    "Pad": ((7, 10), X, "float[2, 5, 6] y", "y = Pad <pads = [0, 1, 0, 0, 0, 0], value = 2.5> (x)"),
    "Pad of doubles": ((7, 10), "double[2, 4] x", "double[2, 5] y", "y = Pad <pads = [0, 1, 0, 0], value = 2.5> (x)"),
    "ReduceMean": ((7, 12, 17), X, "float[2, 6] y", "y = ReduceMean <axes = [1], keepdims = 0> (x)"),
    "ReduceL2 of all": ((7, 12, 17), X, "float[1, 1, 1] y", "y = ReduceL2(x)"),
    "ReduceSum": ((7, 12), X, "float[2, 4, 1] y", "y = ReduceSum <axes = [2]> (x)"),
    "Resize down": (
        (10,),
        IMAGE,
        "float[2, 4, 2, 3] y",
        's = Constant <value = float[4] {1.0, 1.0, 0.4, 0.5}> ()  y = Resize <mode = "nearest"> (x, s)',
    ),
    "Resize linear": (
        (10,),
        IMAGE,
        "float[2, 4, 10, 15] y",
        's = Constant <value = float[4] {1.0, 1.0, 2.0, 2.5}> ()  y = Resize <mode = "linear"> (x, s)',
    ),
    "Scatter": (
        (9, 10),
        "float[3, 4] x, int64[1, 4] i, float[1, 4] u",
        "float[3, 4] y",
        "y = Scatter(x, i, u)",
    ),
    "Slice": ((7, 9), X, "float[1, 4, 4] y", "y = Slice <starts = [1, -5], ends = [2, -1], axes = [0, 2]> (x)"),
    "Slice of the first axes": ((7, 9), X, "float[1, 2, 6] y", "y = Slice <starts = [1, 2], ends = [9, 9]> (x)"),
    "Softmax of all axes": ((7, 12), X, "float[2, 4, 6] y", "y = Softmax(x)"),
    "Softmax of the last axis": ((7, 12), X, "float[2, 4, 6] y", "y = Softmax <axis = 2> (x)"),
    "Split": ((7, 12), X, "float[2, 1, 6] y, float[2, 3, 6] z", "y, z = Split <axis = 1, split = [1, 3]> (x)"),
    "Split evenly": ((7, 12, 17), X, "float[2, 2, 6] y, float[2, 2, 6] z", "y, z = Split <axis = 1> (x)"),
    "Squeeze": ((7, 11, 12), "float[2, 1, 3, 1] x", "float[2, 3, 1] y", "y = Squeeze <axes = [1]> (x)"),
    "Squeeze of all": ((7, 11, 12), "float[2, 1, 3, 1] x", "float[2, 3] y", "y = Squeeze(x)"),
    "TopK": ((7, 9), X, "float[2, 4, 2] y, int64[2, 4, 2] z", "y, z = TopK <k = 2> (x)"),
    "Unsqueeze": ((7, 11, 12), X, "float[1, 2, 4, 1, 6] y", "y = Unsqueeze <axes = [0, 3]> (x)"),
    "Upsample": ((7, 8), IMAGE, "float[2, 4, 10, 18] y", "y = Upsample <scales = [1.0, 1.0, 2.0, 3.0]> (x)"),
    "Upsample linear": (
        (9,),
        IMAGE,
        "float[2, 4, 10, 12] y",
        's = Constant <value = float[4] {1.0, 1.0, 2.0, 2.0}> ()  y = Upsample <mode = "linear"> (x, s)',
    ),
    "AveragePool": (
        (7, 10, 11, 18),
        IMAGE,
        "float[2, 4, 6, 7] y",
        "y = AveragePool <kernel_shape = [2, 2], pads = [1, 1, 1, 1], count_include_pad = 1> (x)",
    ),
    "Scan over a batch": (
        (8,),
        "float[2, 6] s, float[2, 5, 6] x",
        "float[2, 6] t, float[2, 5, 6] y",
        """t, y = Scan <num_scan_inputs = 1, body = step (float[6] a, float[6] b) => (float[6] c, float[6] d) {
             c = Add(a, b)  d = Mul(c, b) }> ("", s, x)""",
    ),
    "in bodies": (
        (11, 12),
        f"bool flag, {X}",
        "float[2, 4, 6] y",
        """y = If (flag) <then_branch = one () => (float[2, 4, 6] a) { q = ReduceSum <axes = [1]> (x) a = Sub(x, q) },
             else_branch = two () => (float[2, 4, 6] b) { b = Softmax(x) }>""",
    ),
}
PAIRS = [(name, opset) for name, (opsets, *_) in OLD.items() for opset in opsets]


@pytest.mark.parametrize(("name", "opset"), PAIRS, ids=[f"{name}-{opset}" for name, opset in PAIRS])
def test_an_older_operator_computes_the_same(name: str, opset: int, compare: Compare) -> None:
    model = make(opset, *OLD[name][1:])
    after = convert(model)
    assert after.opset_imports[""] == 23
    assert after.ir_version == 10
    compare(model, after, [feeds(model)], 1e-5, 1e-6)  # float32; a mean may be summed in another order


@pytest.mark.parametrize("opset", range(7, 23))
def test_every_opset_from_7_on(opset: int, compare: Compare) -> None:
    mean = (
        "m = ReduceMean <axes = [-1]> (x)"
        if opset < 18
        else "c = Constant <value = int64[1] {-1}> ()  m = ReduceMean(x, c)"
    )
    body = f"{mean}  d = Sub(x, m)  w = Transpose <perm = [0, 2, 1]> (d)  z = MatMul(d, w)  y = Softmax <axis = 2> (z)"
    model = make(opset, "float[B, 4, 6] x", "float[B, 4, 4] y", body)
    after = convert(model)
    assert after.opset_imports[""] == 23
    assert {node.op_type for node in after.graph} <= {
        "ReduceMean",
        "Constant",
        "Sub",
        "Transpose",
        "MatMul",
        "Softmax",
    }
    compare(model, after, [feeds(model)], 1e-6, 1e-7)


def test_softmax_over_the_last_axis_stays_one_node() -> None:
    # the file does not tell the rank of r: it is inferred
    after = convert(make(11, "float[B, N, 6] x", "float[B, N, 6] y", "r = Relu(x)  y = Softmax <axis = 2> (r)"))
    assert [(node.op_type, node.attributes.get_int("axis")) for node in after.graph] == [
        ("Relu", None),
        ("Softmax", -1),
    ]


def test_roi_align_keeps_where_it_samples() -> None:  # compared as text: ONNX Runtime has kernels for the old one alone
    body = "y = RoiAlign <output_height = 2, output_width = 2> (x, r, i)"
    after = convert(make(10, f"{IMAGE}, float[1, 4] r, int64[1] i", "float[1, 4, 2, 2] y", body))
    assert after.graph.node(0).attributes.get_string("coordinate_transformation_mode") == "output_half_pixel"


def test_a_constant_has_the_type_of_what_it_goes_with() -> None:
    after = convert(make(9, "float16[2, 4] x", "float16[2, 5] y", "y = Pad <pads = [0, 1, 0, 0], value = 2.5> (x)"))
    values = [node.outputs[0].dtype for node in after.graph if node.op_type == "Constant"]
    assert values == [ir.DataType.INT64, ir.DataType.FLOAT16]


def test_a_graph_of_opset_23_stays() -> None:
    model = make(23, X, "float[2, 4, 6] y", "y = Relu(x)")
    assert not ConvertOpset()(model).modified
    assert model.ir_version == 10  # the oldest runtime reads no newer one
    assert [node.op_type for node in model.graph] == ["Relu"]


@pytest.mark.parametrize("opset", [9, 20])
def test_paths_survive_a_conversion(opset: int) -> None:
    model = make(
        opset,
        X,
        "float[2, 4, 1] y",
        "r = Relu(x)  y = ReduceMax <axes = [2]> (r)" if opset == 9 else "r = Relu(x)  y = Abs(r)",
    )
    for node in model.graph:
        node.metadata_props[PATH] = f"block.{node.op_type}"
    ConvertOpset()(model)
    assert [node.metadata_props[PATH] for node in model.graph] == [
        "block.Relu",
        *(["block.ReduceMax"] * 2 if opset == 9 else ["block.Abs"]),
    ]


def test_what_is_below_opset_7_goes_through_onnx(compare: Compare) -> None:
    model = make(
        6,
        "float[2, 3, 4] x, float[3, 4] b",
        "float[2, 3, 4] y",
        "s = Softmax(x)  y = Add <broadcast = 1, axis = 1> (s, b)",
        3,
    )
    after = convert(model)
    assert after.opset_imports[""] == 23
    newer = make(7, "float[2, 3, 4] x, float[3, 4] b", "float[2, 3, 4] y", "s = Softmax(x)  y = Add(s, b)")
    compare(newer, after, [feeds(newer)], 1e-6, 1e-7)


def test_functions_of_another_opset_than_the_model(compare: Compare) -> None:
    text = """
        <ir_version: 8, opset_import: ["": {opset}, "local": 1]>
        outer (float[2, 4] x) => (float[2, 4] y) {{ d = local.centred <k = 1> (x)  y = Relu(d) }}
        <domain: "local", opset_import: ["": 11]> centred <k> (a) => (b) {{
            m = ReduceMean <axes = [1], keepdims = @k> (a)  b = Sub(a, m) }}"""
    model = ir.from_onnx_text(text.format(opset=20))
    after = convert(model)
    assert not after.functions
    assert [node.op_type for node in after.graph] == ["Constant", "ReduceMean", "Sub", "Relu"]
    flat = make(17, "float[2, 4] x", "float[2, 4] y", "m = ReduceMean <axes = [1]> (x)  d = Sub(x, m)  y = Relu(d)")
    compare(flat, after, [feeds(flat)], 1e-6, 1e-7)


def test_the_default_of_an_input_is_taken_for_good(compare: Compare) -> None:
    model = make(13, f"{X}, float[6] w", "float[2, 4, 6] y", "v = Neg(w)  y = Add(x, v)")
    weight = model.graph.inputs[1]
    weight.const_value = ir.tensor(np.arange(6, dtype=np.float32), name="w")
    model.graph.register_initializer(weight)
    after = lift(model).model
    assert [value.name for value in after.graph.inputs] == ["x"]
    assert [node.op_type for node in after.graph] == ["Add"]
    compare(model, after, [{"x": feeds(model)["x"]}], 0, 0)


# --- what cannot be converted


@pytest.mark.parametrize(
    ("opset", "inputs", "body", "match"),
    [
        (
            9,
            X,
            "y = Imaginary(x)",
            r"of opset 9 could not be converted to 23: Imaginary at .*\(opset 23 has no such op\)",
        ),
        (9, X, "y = Relu <slope = 1.0> (x)", r"Relu at .*\(it has no attribute 'slope' there\)"),
        (9, X, "y = Relu(x, x)", r"Relu at .*\(it takes 1 to 1 inputs there, not 2\)"),
        (9, X, "y, z = Relu(x)", r"Relu at .*\(it has at most 1 outputs there, not 2\)"),
        (9, X, "y = Cast(x)", r"Cast at .*\(it needs the attribute 'to' there\)"),
        (
            8,
            f"{IMAGE}, float[4] s",
            "y = BatchNormalization <spatial = 0> (x, s, s, s, s)",
            "BatchNormalization at .* has spatial=0, which no later opset can say",
        ),
        (
            9,
            f"{IMAGE}, float[4] s",
            "y, m, v = BatchNormalization(x, s, s, s, s)  z = Relu(m)",
            "BatchNormalization at .* is in training mode. Export the model for inference",
        ),
        (5, "float[2] x", "y = Imaginary(x)", "The graph of opset 5 could not be converted to 7. Export it anew"),
    ],
)
def test_what_cannot_be_said_is_refused(opset: int, inputs: str, body: str, match: str) -> None:
    with pytest.raises(BuildError, match=match):
        lift(make(opset, inputs, "float[N] y", body))


# --- newer opsets


def test_a_newer_graph_that_needs_nothing_newer_is_stamped_23(compare: Compare) -> None:
    model = make(25, X, "float[2, 24] y", "s = Shape(x)  r = Reshape(x, s)  y = Flatten(r)", 11)
    after = lift(model).model
    assert after.opset_imports[""] == 23
    assert after.ir_version == 10
    compare(model, after, [feeds(model)], 0, 0)


def test_a_newer_graph_that_needs_its_opset_keeps_it(compare: Compare) -> None:
    model = make(24, X, "float[2, 4, 6] y", "h = Gelu(x)  y = Swish(h)", 11)
    after = lift(model).model
    assert after.opset_imports[""] == 24
    assert after.ir_version == 11
    compare(model, after, [feeds(model)], 1e-6, 1e-7)


def test_a_newer_operator_that_only_shares_its_name_keeps_its_opset() -> None:
    model = make(25, "int2[4] x", "int2[2, 2] y", "s = Constant <value = int64[2] {2, 2}> ()  y = Reshape(x, s)", 13)
    assert lift(model).model.opset_imports[""] == 25


def test_rules_are_proved_at_the_opset_that_stays(compare: Compare) -> None:
    body = """r = Constant <value = float {1.4142135}> ()  o = Constant <value = float {1.0}> ()
      h = Constant <value = float {0.5}> ()  d = Div(x, r)  e = Erf(d)  f = Add(e, o)  g = Mul(x, f)  k = Mul(g, h)
      y = Swish(k)"""
    model = make(24, X, "float[2, 4, 6] y", body, 11)
    lifted = lift(model)
    assert [(site.kind, site.status) for site in lifted.log.sites] == [("gelu", "lifted")]
    assert [node.op_type for node in lifted.model.graph] == ["Gelu", "Swish"]
    compare(model, lifted.model, [feeds(model)], 1e-5, 1e-6)
