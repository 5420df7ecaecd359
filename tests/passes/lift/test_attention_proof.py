"""What the attention rule checks, left unchecked on purpose: translation validation catches each wrong rewrite."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import onnx_ir as ir
import pytest

from graphwright.passes import lift
from graphwright.passes.lift.scores import unscaled

Arrays = dict[str, np.ndarray]
Compare = Callable[[ir.Model, ir.Model, Iterable[Arrays], float, float], None]

# float32, rows of at most 7 keys of 8 numbers each of size 1; nothing is to change
RTOL, ATOL = 1e-6, 1e-6
INPUTS = """float[B, 2, S, 8] q, float[B, 2, 8, T] kt, float[B, 2, T, 8] v, float[B, 2, S, T] noise,
    bool[B, 1, S, T] allowed"""
PLAIN = "p = MatMul(q, kt) s = Mul(p, half)"


def cases(model: ir.Model) -> Iterator[Arrays]:
    random = np.random.default_rng(0)
    for size in ({"B": 1, "S": 1, "T": 2}, {"B": 2, "S": 5, "T": 3}):
        feeds: Arrays = {}
        for value in model.graph.inputs:
            shape = [dim if isinstance(dim, int) else size[str(dim.value)] for dim in value.shape or ()]
            array: np.ndarray = random.standard_normal(shape).astype(np.float32)
            if value.dtype == ir.DataType.BOOL:  # each row holds both, so that none is without a key
                array = array > 0
                array[..., 0], array[..., 1] = False, True
            feeds[str(value.name)] = array
        yield feeds


# name -> module and name of the check, what stands in its place, and a graph that it would keep from a wrong rewrite
MUTATIONS: dict[str, tuple[str, object, str]] = {
    "any factor is the same for all keys": (
        "weights.same_for",
        lambda keys, value, frame: True,
        f"{PLAIN} r = Softmax(s) w = Mul(r, noise) y = MatMul(w, v)",
    ),
    "any number is low": (
        "scores.LOW",
        float("inf"),
        "p = MatMul(q, kt) s = Where(allowed, p, five) w = Softmax(s) y = MatMul(w, v)",
    ),
    "every scale is one": (
        "attention.unscaled",
        lambda value: (unscaled(value)[0], 1.0),
        "h = Mul(q, half) s = MatMul(h, kt) w = Softmax(s) y = MatMul(w, v)",
    ),
    "masks are left out": (
        "attention.join",
        lambda site, masks: None,
        "p = MatMul(q, kt) s = Add(p, noise) w = Softmax(s) y = MatMul(w, v)",
    ),
    "forbidden is allowed": (
        "attention.negate",
        lambda before, mask: mask,
        "p = MatMul(q, kt) s = Where(allowed, low, p) w = Softmax(s) y = MatMul(w, v)",
    ),
    "every mask of sizes is causal": (
        "attention.says",
        lambda mask, functions: "causal",
        """l = Shape<start = 2, end = 3>(q) t = Shape<start = 3, end = 4>(kt) st = Concat<axis = 0>(l, t)
        o = ConstantOfShape<value = float[1] {1.0}>(st) m = Trilu<upper = 1>(o) p = MatMul(q, kt) s = Add(p, m)
        w = Softmax(s) y = MatMul(w, v)""",
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_broken_check_is_caught_by_the_proof(name: str, compare: Compare, monkeypatch: pytest.MonkeyPatch) -> None:
    where, wrong, body = MUTATIONS[name]
    model = ir.from_onnx_text(f"""
        <ir_version: 10, opset_import: ["": 23]>
        mutated ({INPUTS}) => (float[B, 2, S, 8] y)
        <float half = {{0.5}}, float five = {{5.0}}, float low = {{-3.4e38}}> {{ {body} }}""")
    compare(model, lift(model).model, cases(model), 1e-5, 4e-6)  # as it is, the rule is right about it
    module, _, check = where.partition(".")
    monkeypatch.setattr(importlib.import_module(f"graphwright.passes.lift.{module}"), check, wrong)
    lifted = lift(model)
    (site,) = lifted.log.sites
    assert site.status == "declined"
    assert site.reason.startswith(("not equal: differs by", "could not be proved: "))
    assert "Attention" not in {node.op_type for node in lifted.model.graph}
    compare(model, lifted.model, cases(model), RTOL, ATOL)
