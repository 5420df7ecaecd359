"""Rotary caches of batch 1 are expanded to the batch, once; legal ones are left alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from graphwright.passes import lift

Run = Callable[[ir.Model, dict[str, np.ndarray]], dict[str, np.ndarray]]


def make(cache: str, positions: str = "", x: str = "float[B, 2, S, 8] x") -> ir.Model:
    tail = ", positions" if positions else ""
    return ir.from_onnx_text(f"""
        <ir_version: 10, opset_import: ["": 23]>
        rotary ({x}, {cache} cos, {cache} sin{positions}) => (float[B, 2, S, 8] y, float[B, 2, S, 8] z) {{
            y = RotaryEmbedding(x, cos, sin{tail})
            m = Neg(x)
            z = RotaryEmbedding(m, cos, sin{tail})
        }}""")


def rotated(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Half-split rotation, pair by pair: (a cos - b sin, b cos + a sin)."""
    a, b = x[..., :4], x[..., 4:]
    cos, sin = cos[:, None], sin[:, None]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (2, 5), (3, 7)])
def test_a_cache_of_one_row_serves_a_larger_batch(run: Run, batch: int, length: int) -> None:
    model = make("float[1, S, 4]")
    lifted = lift(model)
    assert [(site.kind, site.status) for site in lifted.log.sites] == [("rotary", "lifted")] * 2
    ops = [node.op_type for node in lifted.model.graph]
    assert ops.count("Expand") == 2  # cos and sin, shared by both readers
    expand = [node for node in lifted.model.graph if node.op_type == "RotaryEmbedding"]
    assert [value.producer().op_type for node in expand for value in node.inputs[1:3]] == ["Expand"] * 4  # type: ignore[union-attr]
    random = np.random.default_rng(0)
    x = random.standard_normal((batch, 2, length, 8)).astype(np.float32)
    cos, sin = (random.standard_normal((1, length, 4)).astype(np.float32) for _ in range(2))
    outputs = run(lifted.model, {"x": x, "cos": cos, "sin": sin})
    np.testing.assert_allclose(outputs["y"], rotated(x, cos, sin), rtol=1e-6, atol=1e-6)  # two products and a sum
    np.testing.assert_allclose(outputs["z"], -outputs["y"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "model",
    [
        make("float[B, S, 4]"),
        make("float[64, 4]", ", int64[B, S] positions"),
        make("float[1, S, 4]", x="float[1, 2, S, 8] x"),
    ],
    ids=["a row for each", "position ids", "a batch of one"],
)
def test_legal_caches_are_left_alone(model: ir.Model) -> None:
    lifted = lift(model).model
    assert [node.op_type for node in lifted.graph] == ["RotaryEmbedding", "Neg", "RotaryEmbedding"]


def test_a_second_lift_changes_nothing() -> None:
    once = lift(make("float[1, S, 4]")).model
    twice = lift(once).model
    assert [node.op_type for node in twice.graph] == [node.op_type for node in once.graph]


def test_the_lifted_graph_is_what_the_operator_text_says() -> None:
    proto = ir.to_proto(lift(make("float[1, S, 4]")).model)
    onnx.checker.check_model(proto, full_check=True)
    shapes = {"x": (3, 2, 5, 8), "cos": (1, 5, 4), "sin": (1, 5, 4)}
    feeds: dict[str, np.ndarray] = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    wanted = rotated(feeds["x"], feeds["cos"], feeds["sin"])
    found = dict(zip(["y"], ReferenceEvaluator(proto).run(["y"], feeds), strict=True))["y"]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
