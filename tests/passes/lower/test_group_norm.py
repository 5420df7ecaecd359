"""GroupNormalization on the kernels that there are: the exact graph, float64's numbers, and what stays."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

import graphwright as gw
from graphwright.passes.lower.group_norm import UseInstanceNorm

Arrays = dict[str, np.ndarray]
Run = Callable[[ir.Model, Arrays], Arrays]
GROUPED = ["Reshape", "InstanceNormalization", "Shape", "Reshape", "BatchNormalization"]
FLAT = "float[N, 8, L] x"


def make(inputs: str = FLAT, groups: int = 2, opset: int = 23, kind: str = "float", channels: int = 8) -> ir.Model:
    shape = inputs.removesuffix(" x").removeprefix(kind)
    size = channels if opset > 20 else groups
    return ir.from_onnx_text(f"""
        <ir_version: 10, opset_import: ["": {opset}]>
        norm ({inputs}, {kind}[{size}] scale, {kind}[{size}] bias) => ({kind}{shape} y) {{
            y = GroupNormalization <num_groups = {groups}, epsilon = 0.001> (x, scale, bias) }}""")


def changed(model: ir.Model) -> tuple[ir.Model, bool]:
    after = model.clone()
    return after, UseInstanceNorm()(after).modified


def wanted(feeds: Arrays, groups: int) -> np.ndarray:
    """In float64."""
    x = feeds["x"].astype(np.float64)
    g = x.reshape(x.shape[0], groups, -1)
    n = (g - g.mean(-1, keepdims=True)) / np.sqrt(g.var(-1, keepdims=True) + 0.001)
    wide = (x.shape[1], *[1] * (x.ndim - 2))
    return np.asarray(n.reshape(x.shape) * feeds["scale"].reshape(wide) + feeds["bias"].reshape(wide))


@pytest.mark.parametrize("mean", [0, 50])
@pytest.mark.parametrize(
    ("inputs", "groups", "ops"),
    [
        (FLAT, 2, GROUPED),
        (FLAT, 1, GROUPED),
        (FLAT, 8, ["InstanceNormalization"]),
        ("float[N, 8, H, W] x", 4, GROUPED),
        ("float[2, 8, 5, 3, 2] x", 4, GROUPED),
    ],
    ids=["two groups", "one group", "each channel", "images", "fixed"],
)
def test_the_norm_is_of_instances(inputs: str, groups: int, ops: list[str], mean: int, run: Run) -> None:
    model = make(inputs, groups)
    after, modified = changed(model)
    assert modified
    assert [node.op_type for node in after.graph] == ops
    random = np.random.default_rng(0)
    for size in ({"N": 1, "L": 1, "H": 2, "W": 3}, {"N": 2, "L": 40, "H": 7, "W": 5}):
        shape = [dim if isinstance(dim, int) else size[str(dim.value)] for dim in model.graph.inputs[0].shape or ()]
        x = random.standard_normal(shape) + mean
        feeds = {"x": x.astype(np.float32)}
        feeds |= {name: random.standard_normal(8).astype(np.float32) for name in ("scale", "bias")}
        # float32: numbers of size `mean` are rounded by 6e-8 of it before they are divided by 0.03 at the least
        np.testing.assert_allclose(run(after, feeds)["y"], wanted(feeds, groups), rtol=0, atol=1e-5 + mean * 2e-5)


@pytest.mark.parametrize(
    "model",
    [make(opset=18), make("float16[N, 8, L] x", kind="float16"), make("float[N, C, L] x"), make("float[N, 8] x")],
    ids=["scale of groups", "float16", "channels unknown", "nothing behind the channels"],
)
def test_other_norms_stay(model: ir.Model) -> None:
    assert not changed(model)[1]


def test_the_target_makes_it_always() -> None:
    made = gw.optimize(make(groups=8), "ort-cpu").model
    assert [node.op_type for node in made.graph] == ["InstanceNormalization"]
