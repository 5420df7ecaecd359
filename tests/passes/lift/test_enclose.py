"""Regions and functions of them: what lies between nodes, when nothing else reads it, and when two are the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphwright.passes import lift, lowered_to
from graphwright.passes.lift.enclose import SMALL, between, enclose, is_closed
from graphwright.passes.lift.functions import DOMAIN, inline

Arrays = dict[str, np.ndarray]
Compare = Callable[[ir.Model, ir.Model, Iterable[Arrays], float, float], None]
Spell = Callable[[ir.Model], str]


def model(body: str, outputs: str = "float[N] y", constants: str = "float two = {2.0}") -> ir.Model:
    return ir.from_onnx_text(f"""
        <ir_version: 10, opset_import: ["": 23]>
        region (float[N] x, float[N] z) => ({outputs}) <{constants}> {{ {body} }}""")


def of(graph: ir.Model, name: str) -> ir.Node:
    return next(node for node in graph.graph if node.outputs[0].name == name)


# name -> graph, starts, end, what lies between (in any order that is sorted), and whether it is closed
REGIONS: dict[str, tuple[ir.Model, list[str], str, list[str], bool]] = {
    "a chain": (model("a = Neg(x) b = Abs(a) c = Relu(b) y = Add(c, z)"), ["a"], "c", ["a", "b", "c"], True),
    "start is end": (model("a = Neg(x) y = Abs(a)"), ["a"], "a", ["a"], True),
    "two ways": (
        model("a = Neg(x) b = Abs(a) c = Relu(a) d = Mul(b, c) y = Add(d, z)"),
        ["a"],
        "d",
        ["a", "b", "c", "d"],
        True,
    ),
    "two starts": (model("a = Neg(x) b = Abs(z) y = Add(a, b)"), ["a", "b"], "y", ["a", "b", "y"], True),
    "what comes in from the side stays outside": (
        model("s = Abs(z) a = Neg(x) b = Add(a, s) y = Relu(b)"),
        ["a"],
        "y",
        ["a", "b", "y"],
        True,
    ),
    "read outside": (model("a = Neg(x) b = Abs(a) c = Relu(b) y = Add(a, c)"), ["a"], "c", ["a", "b", "c"], False),
    "a Shape inside": (
        model("a = Neg(x) n = Shape(a) b = Expand(a, n) y = Relu(b)"),
        ["a"],
        "y",
        ["a", "n", "b", "y"],
        True,
    ),
    "a Shape read outside": (
        model("a = Neg(x) n = Shape(a) b = Abs(a) y = Expand(z, n)"),
        ["a"],
        "b",
        ["a", "b"],
        False,
    ),
    "an output inside": (
        model("a = Neg(x) y = Abs(a)", "float[N] y, float[N] a"),
        ["a"],
        "y",
        ["a", "y"],
        False,
    ),
    "an idle reader": (model("a = Neg(x) idle = Abs(a) y = Relu(a)"), ["a"], "y", ["a", "y"], False),
    "read in a body": (
        model("""a = Neg(x) y = Relu(a) t = ReduceMax<keepdims = 0>(z) c = Greater(t, two)
            w = If(c) <then_branch = yes () => (float[N] p) { p = Abs(a) },
                       else_branch = no () => (float[N] q) { q = Neg(z) }>"""),
        ["a"],
        "y",
        ["a", "y"],
        False,
    ),
    "a node with a body": (
        model("""a = Neg(x) t = ReduceMax<keepdims = 0>(a) c = Greater(t, two)
            y = If(c) <then_branch = yes () => (float[N] p) { p = Abs(z) },
                       else_branch = no () => (float[N] q) { q = Neg(z) }>"""),
        ["a"],
        "y",
        ["a", "t", "c", "y"],
        False,
    ),
}


@pytest.mark.parametrize("name", REGIONS)
def test_what_lies_between_and_who_reads_it(name: str) -> None:
    graph, starts, end, expected, closed = REGIONS[name]
    nodes = between([of(graph, start) for start in starts], of(graph, end))
    assert nodes is not None
    assert sorted(str(node.outputs[0].name) for node in nodes) == sorted(expected)
    assert nodes[-1] is of(graph, end)
    for index, node in enumerate(nodes):  # each after its producers
        assert not {value.producer() for value in node.inputs if value is not None} & set(nodes[index:])
    assert is_closed(nodes) == closed


def test_a_region_behind_a_deep_graph_is_found_and_a_large_one_is_not() -> None:
    chain = " ".join(f"s{i + 1} = Relu(s{i})" for i in range(5000))
    graph = model(f"s0 = Abs(z) {chain} a = Neg(x) b = Add(a, s5000) y = Relu(b)")
    nodes = between([of(graph, "a")], of(graph, "y"))
    assert nodes is not None
    assert [node.op_type for node in nodes] == ["Neg", "Add", "Relu"]
    assert between([of(graph, "s0")], of(graph, "y")) is None


LARGE = (
    f"float[{SMALL + 1}] w = {{{', '.join(['1'] * (SMALL + 1))}}}, float[{SMALL}] v = {{{', '.join(['2'] * SMALL)}}}"
)


def test_small_constants_go_into_the_body_and_large_ones_are_inputs() -> None:
    graph = model(
        "a = Mul(w, x) b = Slice(a, s, e) c = Mul(b, v) y = Mul(c, v)",
        constants=f"""{LARGE},
        int64[1] s = {{0}}, int64[1] e = {{{SMALL}}}""",
    )
    nodes = between([of(graph, "a")], of(graph, "y"))
    assert nodes is not None
    call = enclose(graph, "Region", nodes, nodes[1])
    assert [value.name for value in call.inputs if value is not None] == ["w", "x"]
    (function,) = graph.functions.values()
    assert [node.op_type for node in function].count("Constant") == 3  # of v only one
    assert [node.op_type for node in function if node.name == "core"] == ["Slice"]


def pairs(second: str) -> list[ir.Node]:
    graph = model(
        f"a = Mul(x, two) b = Abs(a) c = Mul(z, {second}) y = Abs(c)", constants="float two = {2}, float six = {6}"
    )
    regions = [between([of(graph, start)], of(graph, end)) for start, end in (("a", "b"), ("c", "y"))]
    return [enclose(graph, "Region", nodes, nodes[0]) for nodes in regions if nodes is not None]


def test_regions_of_one_structure_share_a_function_and_others_get_a_number() -> None:
    assert [call.op_type for call in pairs("two")] == ["Region", "Region"]
    assert [call.op_type for call in pairs("six")] == ["Region", "Region_2"]


def test_functions_and_sites_inside_of_a_region_stay_what_they_are(compare: Compare, spell: Spell) -> None:
    graph = ir.from_onnx_text("""
        <ir_version: 10, opset_import: ["": 23]>
        nested (float[B, S, 8] q, float[B, 8, T] k, float[B, T, 8] v) => (float[B, S, 8] y) {
            p = MatMul(q, k) g = Sigmoid(p) a = Mul(p, g) s = Gelu(a) w = Softmax(s) y = MatMul(w, v)
        }""")
    lifted = lift(graph)
    assert spell(lifted.model) == f"{DOMAIN}.CustomAttention(q, k, v)"
    assert [site.kind for site in lifted.log.sites] == ["gelu", "silu", "attention"]
    onnx.checker.check_model(ir.to_proto(lifted.model))
    random = np.random.default_rng(0)
    shapes = {"q": (2, 5, 8), "k": (2, 8, 3), "v": (2, 3, 8)}
    case = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    compare(graph, lifted.model, [case], 1e-6, 1e-6)
    inlined = lifted.model.clone()
    inline(inlined)
    assert not inlined.functions
    assert (lowered_to(inlined, "attention"), lowered_to(inlined, "gelu")) == ({"Softmax": 1}, {"Gelu": 1})
    compare(graph, inlined, [case], 1e-6, 1e-6)
