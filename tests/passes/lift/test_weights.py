"""Weights read forwards from softmax: what the reading finds, and in words why it finds nothing."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from graphwright.passes.base import MisfitError, UnsayableError
from graphwright.passes.lift.frames import Frame, Group
from graphwright.passes.lift.shapes import ResolveShapes
from graphwright.passes.lift.weights import WeightReader, same_for

INPUTS = """float[B, 2, S, T] s, float[B, 2, T, 8] v, float[B, 2, S, 1] g, float[B, 1, 1, T] m,
    bool[B, 1, 1, T] allowed, float[B, 2, 8, S] z"""
CONSTANTS = """float half = {0.5}, float zero = {0}, bool on = {1}, bool off = {0}, int64[1] minus = {-1},
    int64[4] four = {0, 2, -1, 8}, int64[1] first = {0}, int64[1] last = {3}"""


def read(body: str, keys: Group = "columns", outputs: str = "") -> WeightReader:
    graph = ir.from_onnx_text(f"""
        <ir_version: 10, opset_import: ["": 23]>
        weights ({INPUTS}) => (float y{outputs}) <{CONSTANTS}> {{ w = Softmax(s) {body} }}""")
    ResolveShapes()(graph)
    for node in graph.graph:
        if node.op_type == "Cast":
            node.outputs[0].dtype = ir.DataType(node.attributes.get_int("to", 0))
    return WeightReader(graph.graph.node(0), Frame.of(["B", 2], ["S"], ["T"]), keys)


# name -> what reads the weights w; then the scale, the number of gates, whether it is V^T W^T, and the spelling
READ: dict[str, tuple[str, float, int, bool, list[str]]] = {
    "the product": ("y = MatMul(w, v)", 1, 0, False, []),
    "numbers": ("a = Mul(half, w) b = Div(a, half) y = MatMul(b, v)", 1, 0, False, ["scaled weights"] * 2),
    "gates": ("a = Mul(g, w) b = Div(a, g) y = MatMul(b, v)", 1, 2, False, ["gate"] * 2),
    "a NaN guard": ("n = IsNaN(w) a = Where(n, zero, w) y = MatMul(a, v)", 1, 0, False, ["NaN guard"]),
    "zeros by choice": ("a = Where(allowed, w, zero) y = MatMul(a, v)", 1, 0, False, ["zeroed weights"]),
    "zeros by a factor": (
        "c = Cast<to = 1>(allowed) a = Mul(w, c) y = MatMul(a, v)",
        1,
        0,
        False,
        ["zeroed weights"],
    ),
    "what changes nothing": (
        "a = Cast<to = 1>(w) b = Identity(a) c = Dropout(b, half, off) d = Dropout(c) y = MatMul(d, v)",
        1,
        0,
        False,
        [],
    ),
    "transposed, on the right": (
        "a = Transpose<perm = [0, 1, 3, 2]>(w) vt = Transpose<perm = [0, 1, 3, 2]>(v) y = MatMul(vt, a)",
        1,
        0,
        True,
        [],
    ),
    "a Shape beside": ("h = Shape(w) a = Reshape(w, h) y = MatMul(a, v)", 1, 0, False, []),
    "two V": ("b = MatMul(w, v) a = MatMul(w, v) y = Add(a, b)", 1, 0, False, []),
}


@pytest.mark.parametrize("name", READ)
def test_what_stands_between_softmax_and_the_product(name: str) -> None:
    body, scale, gates, flipped, spelling = READ[name]
    found = read(body).read()
    assert (found.scale, len(found.gates), found.flipped, list(found.spelling)) == (scale, gates, flipped, spelling)
    assert found.end.op_type == "MatMul"
    assert found.nodes[-1] is found.end
    assert found.value is found.end.inputs[0 if flipped else 1]


BETWEEN = "stands between softmax and the product with V"
READ_TWICE = "the attention weights are read more than once, or are an output of the graph"
NOT_KEYS = "the product behind softmax is not over the keys, or batch and heads are transposed there"

# name -> what reads the weights, whose axis softmax is over, the reason, and the name of what it becomes
UNREAD: dict[str, tuple[str, Group, str, str]] = {
    "a number added": ("a = Add(w, half) y = MatMul(a, v)", "columns", f"Add {BETWEEN}", "CustomAttention"),
    "a factor for each key": ("a = Mul(w, m) y = MatMul(a, v)", "columns", f"Mul {BETWEEN}", "CustomAttention"),
    "a number over the weights": ("a = Div(g, w) y = MatMul(a, v)", "columns", f"Div {BETWEEN}", "CustomAttention"),
    "weights squared": ("a = Mul(w, w) y = MatMul(a, v)", "columns", f"Mul {BETWEEN}", "CustomAttention"),
    "another number by choice": (
        "a = Where(allowed, w, half) y = MatMul(a, v)",
        "columns",
        f"Where {BETWEEN}",
        "CustomAttention",
    ),
    "logits cut off": (
        "a = Slice(w, first, minus, last) y = MatMul(a, v)",
        "columns",
        f"Slice {BETWEEN}",
        "SinkAttention",
    ),
    "dropout at work": (
        "a = Dropout(w, half, on) y = MatMul(a, v)",
        "columns",
        f"Dropout {BETWEEN}",
        "CustomAttention",
    ),
    "integers": (
        "a = Cast<to = 7>(w) b = Cast<to = 1>(a) y = MatMul(b, v)",
        "columns",
        f"Cast {BETWEEN}",
        "CustomAttention",
    ),
    "read twice": ("a = ReduceMax(w) b = MatMul(w, v) y = Add(a, b)", "columns", READ_TWICE, "CustomAttention"),
    "a guard of something else": (
        "n = IsNaN(w) a = Where(n, half, w) y = MatMul(a, v)",
        "columns",
        READ_TWICE,
        "CustomAttention",
    ),
    "read by nothing": ("y = Identity(s)", "columns", READ_TWICE, "CustomAttention"),
    "over the queries": ("y = MatMul(w, v)", "rows", NOT_KEYS, ""),
    "on the wrong side": ("y = MatMul(z, w)", "columns", NOT_KEYS, ""),
    "heads behind the queries": (
        "a = Transpose<perm = [0, 2, 1, 3]>(w) y = MatMul(a, s)",
        "columns",
        NOT_KEYS,
        "",
    ),
    "queries and keys merged": (
        "a = Reshape(w, minus) y = MatMul(a, a)",
        "columns",
        "a Reshape from ['B', 2, 'S', 'T'] to ['2*B*S*T'] mixes queries, keys, heads or batch",
        "",
    ),
}


@pytest.mark.parametrize("name", UNREAD)
def test_what_may_not_stand_there_is_told_in_words(name: str) -> None:
    body, keys, reason, becomes = UNREAD[name]
    with pytest.raises(MisfitError) as misfit:
        read(body, keys).read()
    assert str(misfit.value) == reason
    assert (misfit.value.name if isinstance(misfit.value, UnsayableError) else "") == becomes


def test_weights_that_are_an_output_are_read_outside() -> None:
    with pytest.raises(UnsayableError, match="an output of the graph"):
        read("y = MatMul(w, v)", outputs=", float[B, 2, S, T] w").read()


@pytest.mark.parametrize(
    ("shape", "columns", "rows"),
    [
        (["B", 2, "S", 1], True, False),
        ([1, 1, 1, 1], True, True),
        (["S", 1], True, False),
        (["T"], False, True),
        ([], True, True),
        (["B", 1, 1, "T"], False, True),
        (["B", 2, "S", None], False, False),
        ([1, 1, "B", 2, "S"], False, False),
        (None, False, False),
    ],
)
def test_what_is_the_same_for_all_keys(shape: list[int | str | None] | None, columns: bool, rows: bool) -> None:
    frame = Frame.of(["B", 2], ["S"], ["T"])
    value = ir.Value(name="x", shape=None if shape is None else ir.Shape(shape))
    assert (same_for("columns", value, frame), same_for("rows", value, frame)) == (columns, rows)
