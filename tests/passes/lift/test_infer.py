"""Dims in the inputs' names where onnx's inference gave up: what may be said, what may not, and what the tool sees."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphwright.passes.lift import infer
from graphwright.passes.lift.infer import SMALL, InferSymbols

Dim = int | str | None
ONES = ", ".join(["1"] * (SMALL + 1))


def model(body: str, inputs: str = "float[B, S, 8] x", constants: str = "") -> ir.Model:
    """A graph of which nothing but the inputs has a shape, as files from elsewhere come."""
    extra = f", {constants}" if constants else ""
    made = ir.from_onnx_text(f"""
        <ir_version: 10, opset_import: ["": 23, "other": 1]>
        symbols ({inputs}) => (float y) <int64[2] two = {{-1, 2}}{extra}> {{ {body} }}""")
    for graph in (made.graph, *made.graph.subgraphs()):
        for node in graph:
            for value in node.outputs:
                value.shape = None
    return made


def named(graph: ir.Model, shape: list[Dim]) -> ir.Model:
    graph.graph.inputs[0].shape = ir.Shape(shape)
    return graph


def shapes(graph: ir.Model) -> dict[str, str]:
    return {str(value.name): str(value.shape) for node in graph.graph for value in node.outputs}


@pytest.fixture(autouse=True)
def nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    """The tool's own entry point leaves a file in the working folder where it gives up."""
    monkeypatch.chdir(tmp_path)
    yield None
    assert list(tmp_path.iterdir()) == []


BODY = """<then_branch = yes () => (float t) { n = Neg(x) t = Reshape(n, two) },
    else_branch = no () => (float e) { n = Abs(x) e = Reshape(n, two) }>"""

# name -> graph, and shapes of its values afterwards
SAID: dict[str, tuple[ir.Model, dict[str, str]]] = {
    "products of names": (model("y = Reshape(x, two) z = Neg(y)"), {"y": "[4*B*S,2]", "z": "[4*B*S,2]"}),
    "one name twice": (model("y = Reshape(x, two)", "float[B, B, 8] x"), {"y": "[4*B**2,2]"}),
    "a node before its producer": (model("z = Neg(y) y = Abs(x)"), {"z": "[B,S,8]", "y": "[B,S,8]"}),
    "names that are no identifiers": (
        named(model("y = Transpose<perm = [1, 0, 2]>(x)"), ["batch size", "seq[0]", 8]),
        {"y": "[seq[0],batch size,8]"},
    ),
    "names that are expressions": (named(model("y = Neg(x)"), ["2*N", "S", 8]), {"y": "[2*N,S,8]"}),
    "the result of an If, its bodies' values named alike": (
        model(f"y = If(c) {BODY} n = Neg(y)", "float[B, S, 8] x, bool c"),
        {"y": "[4*B*S,2]", "n": "[4*B*S,2]"},
    ),
    "a large weight": (
        model("z = Mul(x, w) y = Reshape(z, two)", f"float[B, S, {SMALL + 1}] x", f"float[{SMALL + 1}] w = {{{ONES}}}"),
        {"z": "[B,S,1025]", "y": "[floor(1025*B*S/2),2]"},
    ),
}


@pytest.mark.parametrize("name", SAID)
def test_dims_are_said_in_the_names_of_the_inputs(name: str) -> None:
    graph, expected = SAID[name]
    assert InferSymbols()(graph).modified
    assert shapes(graph) == expected
    assert not InferSymbols()(graph).modified


# name -> graph of which nothing, or not all, can be said
UNSAID: dict[str, tuple[ir.Model, dict[str, str]]] = {
    "an op of another domain": (model("o = other.Op(x) y = Add(x, o)"), {"o": "None", "y": "None"}),
    "an input without a rank": (model("y = Neg(x)", "float[] x"), {"y": "None"}),
    "an input without names": (named(model("y = Reshape(x, two)"), [None, None, 8]), {"y": "[None,2]"}),
    "elements that depend on data": (model("y = NonZero(x) z = Neg(x)"), {"y": "[3,None]", "z": "[B,S,8]"}),
    # one of the two is 1 where it is broadcast: which, nobody knows
    "names that meet": (
        model("y = Add(x, w) z = Neg(y)", "float[B, S] x, float[C, S] w"),
        {"y": "[None,S]", "z": "[None,S]"},
    ),
    "a name that meets a number": (
        model("n = Neg(x) a = Add(x, w) b = Add(x, v) y = Mul(a, b)", "float[B, S] x, float[3, S] w, float[C, S] v"),
        {"n": "None", "a": "None", "b": "None", "y": "None"},
    ),
}


@pytest.mark.parametrize("name", UNSAID)
def test_what_is_not_known_is_not_said(name: str) -> None:
    graph, expected = UNSAID[name]
    InferSymbols()(graph)
    assert shapes(graph) == expected


def test_sizes_and_names_that_are_known_stay() -> None:
    graph = model("y = Reshape(x, two) z = Neg(y)")
    made = graph.graph.node(1).outputs[0]
    made.shape = ir.Shape([12, None])
    assert InferSymbols()(graph).modified
    assert str(made.shape) == "[12,2]"


def test_a_graph_that_says_all_is_not_given_to_the_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = model("y = Neg(x)")
    graph.graph.node(0).outputs[0].shape = ir.Shape(["B", "S*1 + B", 8])
    monkeypatch.setattr(infer, "_infer", lambda proto: pytest.fail("asked"))
    assert not InferSymbols()(graph).modified


LARGE: dict[str, Callable[[], ir.Model]] = {
    "an initializer": lambda: model("y = Mul(x, w)", f"float[B, {SMALL + 1}] x", f"float[{SMALL + 1}] w = {{{ONES}}}"),
    "two of bodies, of one name": lambda: model(
        f"""y = If(c) <then_branch = yes () => (float t) <float[{SMALL + 1}] w = {{{ONES}}}> {{ t = Mul(x, w) }},
        else_branch = no () => (float e) <float[{SMALL + 1}] w = {{{ONES}}}> {{ e = Add(x, w) }}>""",
        f"float[B, {SMALL + 1}] x, bool c",
    ),
}


@pytest.mark.parametrize("name", LARGE)
def test_the_tool_sees_no_large_weight(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[onnx.ModelProto] = []
    ask = infer._infer

    def watch(proto: onnx.ModelProto) -> tuple[list[onnx.ValueInfoProto], set[str]]:
        seen.append(proto)
        return ask(proto)

    monkeypatch.setattr(infer, "_infer", watch)
    graph = LARGE[name]()
    weights = [v for g in (graph.graph, *graph.graph.subgraphs()) for v in g.initializers.values()]
    assert InferSymbols()(graph).modified
    (proto,) = seen
    assert proto.ByteSize() < SMALL
    assert shapes(graph) == {"y": f"[B,{SMALL + 1}]"}
    arrays = [value.const_value.numpy() for value in weights if value.const_value is not None]
    assert len(arrays) == len(weights)  # the graph itself keeps them
    assert sum(np.size(array) for array in arrays) > SMALL


def test_a_graph_that_the_tool_cannot_read_stays() -> None:
    graph = model("y = MatMul(x, w)", "float[B, S, 8] x, float[5] w")
    InferSymbols()(graph)
    assert shapes(graph)["y"] in ("None", "[B,S]")  # never raises
