"""A soft-capped Attention in primitives computes the same; what cannot be said so is named."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import onnx_ir as ir
import pytest

from graphwright.errors import BuildError
from graphwright.passes import lowered_to
from graphwright.passes.lower.attention import DecomposeAttention
from graphwright.spec import SITE

Arrays = dict[str, np.ndarray]
Compare = Callable[[ir.Model, ir.Model, Iterable[Arrays], float, float], None]

# float32, rows of at most 7 keys of 8 numbers each of size 1; the scale is taken in two steps
RTOL, ATOL = 1e-5, 4e-6
MASK = "bool[B, 1, S, T] m"
BIAS = "float[B, 4, S, T] m"


def make(attributes: str = "softcap = 2.0, scale = 0.4", mask: str = "", heads: int = 4) -> ir.Model:
    inputs = f"float[B, 4, S, 8] q, float[B, {heads}, T, 8] k, float[B, {heads}, T, 6] v{', ' * bool(mask)}{mask}"
    model = ir.from_onnx_text(f"""
        <ir_version: 10, opset_import: ["": 23]>
        capped ({inputs}) => (float[B, 4, S, 6] y) {{ y = Attention <{attributes}> (q, k, v{", m" * bool(mask)}) }}""")
    model.graph.node(0).metadata_props[SITE] = "attention"
    return model


def cases(model: ir.Model) -> Iterator[Arrays]:
    random = np.random.default_rng(0)
    for size in ({"B": 1, "S": 1, "T": 1}, {"B": 2, "S": 5, "T": 3}, {"B": 3, "S": 7, "T": 4}):
        feeds: Arrays = {}
        for value in model.graph.inputs:
            shape = [dim if isinstance(dim, int) else size[str(dim.value)] for dim in value.shape or ()]
            array: np.ndarray = random.standard_normal(shape).astype(np.float32)
            if value.dtype == ir.DataType.BOOL:
                array = array > 0
                array[..., 0] = True
            feeds[str(value.name)] = array
        yield feeds


@pytest.mark.parametrize(
    "model",
    [
        make(),
        make(mask=MASK),
        make(mask=BIAS),
        make(heads=2),
        make(mask=MASK, heads=2),
        make(heads=1),
    ],
    ids=["plain", "bool mask", "added mask", "grouped", "grouped, bool mask", "one head"],
)
def test_a_soft_cap_becomes_primitives(model: ir.Model, compare: Compare) -> None:
    after = model.clone()
    assert DecomposeAttention()(after).modified
    ops = [node.op_type for node in after.graph]
    assert "Attention" not in ops
    assert ops.count("Tanh") == ops.count("Softmax") == 1
    assert lowered_to(after, "attention") == {"Softmax": 1}
    compare(model, after, cases(model), RTOL, ATOL)


def test_softmax_precision_is_left_out_and_other_attentions_stay() -> None:
    model = make("scale = 0.5, softmax_precision = 1")
    assert DecomposeAttention()(model).modified
    (node,) = model.graph
    assert set(node.attributes) == {"scale"}
    assert not DecomposeAttention()(model).modified


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (make("softcap = 2.0, is_causal = 1"), "the causal flag"),
        (make(mask=BIAS, heads=2), "its mask differs between heads that share K and V"),
    ],
)
def test_what_cannot_be_said_in_primitives_is_named(model: ir.Model, reason: str) -> None:
    with pytest.raises(BuildError, match=reason):
        DecomposeAttention()(model)
