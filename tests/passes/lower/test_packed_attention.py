"""com.microsoft.Attention in the place of Attention and its linear layers: exact graph, same numbers, what stays."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import RemoveUnusedNodesPass

from graphwright.passes import lowered_to
from graphwright.passes.lower.packed_attention import UsePackedAttention
from graphwright.tests.passes.lower.layers import ATOL, RTOL, cases, make, ops

Arrays = dict[str, np.ndarray]
Compare = Callable[[ir.Model, ir.Model, Iterable[Arrays], float, float], None]
X = "float[B, S, 32] x"
HEADS = "q_num_heads = 4, kv_num_heads = 4"
LINEAR = "qm = MatMul(x, wq)  q = Add(qm, b)  km = MatMul(x, wk)  k = Add(b, km)  vm = MatMul(x, wv)  v = Add(vm, b)"
BARE = "q = MatMul(x, wq)  k = MatMul(x, wk)  v = MatMul(x, wv)"


def attend(linear: str = LINEAR, mask: str = "", attributes: str = HEADS, more: str = "") -> ir.Model:
    attention = f"a = Attention <{attributes}> (q, k, v{', m' * bool(mask)})  y = Neg(a)"
    return make(f"{linear}  {attention} {more}", X + mask)


def replaced(model: ir.Model) -> tuple[ir.Model, bool]:
    after = model.clone()
    modified = UsePackedAttention(lambda name: "packed" if name else "")(after).modified
    RemoveUnusedNodesPass()(after)
    return after, modified


@pytest.mark.parametrize(
    ("model", "made"),
    [
        (attend(), ["contrib:Attention", "Neg"]),
        (attend(attributes=f"{HEADS}, is_causal = 1, scale = 0.2"), ["contrib:Attention", "Neg"]),
        (attend(BARE), ["contrib:Attention", "Neg"]),
        (attend(mask=", bool[B, 1, S, S] m"), ["Where", "contrib:Attention", "Neg"]),
        (attend(mask=", float[B, 4, S, S] m"), ["Max", "contrib:Attention", "Neg"]),
    ],
    ids=["plain", "causal", "no biases", "bool mask", "bias of each head"],
)
def test_attention_takes_its_linear_layers_with_it(model: ir.Model, made: list[str], compare: Compare) -> None:
    after, modified = replaced(model)
    assert modified
    assert ops(after) == made
    assert lowered_to(after, "attention") == {"com.microsoft.Attention": 1}
    compare(model, after, cases(model), RTOL, ATOL)


@pytest.mark.parametrize(
    "model",
    [
        attend(LINEAR.replace("km = MatMul(x, wk)", "z = Neg(x)  km = MatMul(z, wk)")),
        attend(LINEAR, more=" other = Relu(k)"),
        attend(LINEAR.replace("v = Add(vm, b)", "v = Identity(vm)")),
        attend(BARE.replace("v = MatMul(x, wv)", "vm = MatMul(x, wv)  v = Add(vm, b)")),
    ],
    ids=["two inputs", "keys are read elsewhere", "no linear layer", "one bias only"],
)
def test_what_does_not_fit_stays(model: ir.Model) -> None:
    assert not replaced(model)[1]
