"""Q (Kt V) becomes `LinearAttention`; other pairs of products stay, and a site that is read outside is told."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import onnx_ir as ir
import pytest

from graphwright.passes import lift, lowered_to
from graphwright.passes.lift import linear_attention
from graphwright.passes.lift.enclose import enclose
from graphwright.passes.lift.functions import inline

Arrays = dict[str, np.ndarray]
Compare = Callable[[ir.Model, ir.Model, Iterable[Arrays], float, float], None]
Spell = Callable[[ir.Model], str]

RTOL, ATOL = 1e-6, 1e-6  # float32, the same ops in the same order
QKV = "float[B, 2, S, 8] q, float[B, 2, T, 8] k, float[B, 2, T, 8] v"
WEIGHT = ", ".join(["0.1"] * 36)
KT = "kt = Transpose<perm = [0, 1, 3, 2]>(k)"


def model(body: str, inputs: str = QKV, output: str = "B, 2, S, 8") -> ir.Model:
    return ir.from_onnx_text(f"""
        <ir_version: 10, opset_import: ["": 23]>
        linear ({inputs}) => (float[{output}] y) <float half = {{0.5}}, float[6, 6] w = {{{WEIGHT}}}> {{ {body} }}""")


def cases(graph: ir.Model) -> Iterator[Arrays]:
    random = np.random.default_rng(0)
    for size in ({"B": 1, "S": 1, "T": 1}, {"B": 2, "S": 5, "T": 3}, {"B": 3, "S": 7, "T": 4}):
        yield {
            str(value.name): random.standard_normal(
                [dim if isinstance(dim, int) else size[str(dim.value)] for dim in value.shape or ()]
            ).astype(np.float32)
            for value in graph.graph.inputs
        }


# name -> the graph, and what it becomes
LIFTED: dict[str, tuple[ir.Model, str]] = {
    "no feature map": (model(f"{KT} c = MatMul(kt, v) y = MatMul(q, c)"), "(Transpose(k), v, q)"),
    "softmax over features and tokens": (
        model(f"qs = Softmax(q) {KT} ks = Softmax(kt) c = MatMul(ks, v) y = MatMul(qs, c)"),
        "(Softmax(Transpose(k)), v, Softmax(q))",
    ),
    "a factor between, on either side": (
        model(f"{KT} c = MatMul(kt, v) d = Mul(half, c) e = Div(d, half) y = MatMul(q, e)"),
        "(Transpose(k), v, q)",
    ),
    "a factor on Kt, on the left": (
        model(f"{KT} ks = Mul(half, kt) c = MatMul(ks, v) y = MatMul(q, c)"),
        "(Mul(0.5, Transpose(k)), v, q)",
    ),
    "tokens in front": (
        model(
            """kt = Transpose<perm = [1, 2, 0]>(k) v0 = Transpose<perm = [1, 0, 2]>(v) c = MatMul(kt, v0)
            y = MatMul(q, c)""",
            "float[B, S, 8] q, float[T, B, 8] k, float[T, B, 8] v",
            "B, S, 8",
        ),
        "(Transpose(k), Transpose(v), q)",
    ),
    "channels in front": (
        model("c = MatMul(k, v) y = MatMul(q, c)", "float[B, 2, S, 8] q, float[B, 2, 8, T] k, float[B, 2, T, 8] v"),
        "(k, v, q)",
    ),
    "channels in front, Q on the right": (
        model(
            "c = MatMul(v, k) y = MatMul(c, q)",
            "float[B, 2, 8, S] q, float[B, 2, T, 8] k, float[B, 2, 8, T] v",
            "B, 2, 8, S",
        ),
        "(v, k, q)",
    ),
    "an Einsum that takes Q to the state and its normaliser": (
        model(
            f"""{KT} c = MatMul(kt, v) y = Einsum<equation = "bhsd,bhde,bhs->bhse">(q, c, z)""",
            f"{QKV}, float[B, 2, S] z",
        ),
        "(Transpose(k), v, q, z)",
    ),
    "a state that is decayed by data": (
        model(f"{KT} c = MatMul(kt, v) d = Mul(c, g) y = MatMul(q, d)", f"{QKV}, float[B, 2, 8, 1] g"),
        "(Transpose(k), v, g, q)",
    ),
}


@pytest.mark.parametrize("name", LIFTED)
def test_linear_attention_becomes_a_function(name: str, compare: Compare, spell: Spell) -> None:
    graph, expected = LIFTED[name]
    lifted = lift(graph)
    (site,) = lifted.log.sites
    assert (site.kind, site.status, site.became) == ("attention", "lifted", "graphwright.LinearAttention")
    assert spell(lifted.model) == f"graphwright.LinearAttention{expected}"
    compare(graph, lifted.model, cases(graph), RTOL, ATOL)
    inlined = lifted.model.clone()
    inline(inlined)
    assert lowered_to(inlined, "attention") == {"MatMul": 1}
    compare(graph, inlined, cases(graph), RTOL, ATOL)


# name -> two products of which the second reads the first, and no linear attention
STAYS: dict[str, ir.Model] = {
    "inner product not over the tokens": model(
        "c = MatMul(k, v) y = MatMul(q, c)", "float[B, 2, S, T] q, float[B, 2, T, 8] k, float[B, 2, 8, 8] v"
    ),
    "a product of three, tokens by tokens in between": model(
        f"{KT} c = MatMul(q, kt) y = MatMul(c, v)",
    ),
    "the same, Q turned": model(
        "qt = Transpose<perm = [0, 1, 3, 2]>(q) c = MatMul(qt, k) y = MatMul(c, v)",
        "float[B, 2, 8, S] q, float[B, 2, 8, T] k, float[B, 2, T, 8] v",
    ),
    "sizes that tell nothing": model(
        "c = MatMul(k, v) y = MatMul(q, c)", "float[B, 2, S, 8] q, float[B, 2, 8, 4] k, float[B, 2, 4, 8] v"
    ),
    "a Transpose of heads alone": model(
        "kh = Transpose<perm = [0, 2, 1, 3]>(k) c = MatMul(kh, v) y = MatMul(q, c)",
        "float[B, 2, S, 8] q, float[B, 8, 2, 6] k, float[B, 2, 6, 8] v",
    ),
    "a bias between": model(f"{KT} c = MatMul(kt, v) d = Add(c, half) y = MatMul(q, d)"),
    "an activation between": model(f"{KT} c = MatMul(kt, v) d = Relu(c) y = MatMul(q, d)"),
    "rank 2": model(
        "kt = Transpose(k) c = MatMul(kt, v) y = MatMul(q, c)", "float[S, 8] q, float[T, 8] k, float[T, 8] v", "S, 8"
    ),
    "a linear layer inside": model(
        "kt = Transpose<perm = [0, 2, 1]>(k) c = MatMul(kt, w) y = MatMul(q, c)",
        "float[B, S, 8] q, float[B, 6, 8] k",
        "B, S, 6",
    ),
}


@pytest.mark.parametrize("name", STAYS)
def test_other_products_stay(name: str, compare: Compare) -> None:
    lifted = lift(STAYS[name])
    assert not lifted.log.sites
    assert not lifted.model.functions
    compare(STAYS[name], lifted.model, cases(STAYS[name]), RTOL, ATOL)


READ = {
    "by another product": f"{KT} c = MatMul(kt, v) a = MatMul(q, c) b = MatMul(v, c) r = ReduceMax(b) y = Add(a, r)",
    "behind a factor": f"{KT} c = MatMul(kt, v) d = Mul(c, half) a = MatMul(q, d) r = ReduceMax(d) y = Add(a, r)",
}


@pytest.mark.parametrize("name", READ)
def test_a_product_that_is_read_elsewhere_is_a_miss(name: str) -> None:
    sites = lift(model(READ[name])).log.sites
    assert {(s.status, s.reason) for s in sites} == {("missed", "the product of Kt and V is read elsewhere")}


def test_a_broken_check_is_caught_by_the_proof(monkeypatch: pytest.MonkeyPatch, compare: Compare) -> None:
    graph = model(f"{KT} c = MatMul(kt, v) d = Mul(c, half) y = MatMul(q, d)")

    def wrong(model: ir.Model, name: str, nodes: list[ir.Node], core: ir.Node) -> ir.Node:
        call = enclose(model, name, nodes, core)
        call.replace_input_with(1, call.inputs[2])  # V in the place of Kt
        call.replace_input_with(2, call.inputs[0])
        return call

    monkeypatch.setattr(linear_attention, "enclose", wrong)
    lifted = lift(graph)
    assert [site.status for site in lifted.log.sites] == ["declined"]
    assert [node.op_type for node in lifted.model.graph] == ["Transpose", "MatMul", "Mul", "MatMul"]
    compare(graph, lifted.model, cases(graph), RTOL, ATOL)
