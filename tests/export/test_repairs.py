"""Repairs: operators that torch cannot convert export all the same, and the graph computes what torch computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention as attend

import graphwright as gw
from graphwright.export.trace import trace
from graphwright.spec import PATH

BOTH = {0: "batch", 1: "sequence"}
aten = torch.ops.aten

Body = Callable[[torch.Tensor, torch.Tensor], Any]


class Inner(torch.nn.Module):
    def __init__(self, body: Body) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: torch.Tensor, ids: torch.Tensor) -> Any:
        return self.body(x, ids)


class Outer(torch.nn.Module):
    """x [batch, sequence, 8] and ids [batch, sequence], whole numbers; the body is the test's."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.inner = Inner(body)

    def forward(self, x: torch.Tensor, ids: torch.Tensor) -> Any:
        return {"y": self.inner(x, ids)}


def spec_of(body: Body) -> gw.ModelSpec:
    torch.manual_seed(0)
    inputs = {"x": torch.randn(2, 6, 8), "ids": torch.randint(0, 5, (2, 6))}
    return gw.ModelSpec(Outer(body), inputs, {"x": BOTH, "ids": BOTH}, name="repaired")


def heads(x: torch.Tensor) -> torch.Tensor:
    return x.view(*x.shape[:2], 2, 4).transpose(1, 2)


def biased(x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    slopes = torch.tensor([0.5, 0.25])

    def score(value: Any, batch: Any, head: Any, query: Any, key: Any) -> Any:
        return value + (key - query) * slopes[head] + ids[batch, key]

    return flex_attention(heads(x), heads(x), heads(x), score_mod=score)


def causal(x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    mask = create_block_mask(lambda b, h, q, k: q >= k, None, None, x.shape[1], x.shape[1], device="cpu")
    return flex_attention(heads(x), heads(x), heads(x), block_mask=mask, scale=0.3)


def grouped(x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return flex_attention(heads(x), heads(x)[:, :1], heads(x)[:, :1], enable_gqa=True)


ROW = torch.arange(-2.0, 3.0)
BODIES: dict[str, Body] = {
    "a float minus whole numbers": lambda x, ids: x * ((1.0 - ids) * -2.5).unsqueeze(-1),
    "attention without heads": lambda x, ids: attend(x, x, x, scale=0.1),
    "attention without heads, masked": lambda x, ids: attend(x, x, x, (ids > 0).unsqueeze(1) | (ids < 5).unsqueeze(2)),
    "attention of one row": lambda x, ids: attend(x[0], x[0], x[0], (ids[0] < 9).unsqueeze(0)),
    "attention in windows": lambda x, ids: attend(
        *3 * (heads(x).unsqueeze(1),), (ids < 9)[:, None, None, None], is_causal=False
    ),
    "a stable sort": lambda x, ids: x.sort(dim=1, descending=True, stable=True).values,
    "the order of a stable sort": lambda x, ids: ids.argsort(dim=1, stable=True),
    "distances": lambda x, ids: torch.cdist(x, x + 1),
    "distances of another norm": lambda x, ids: torch.cdist(x, x + 1, p=1.0),
    "membership": lambda x, ids: torch.isin(ids, torch.tensor([1, 3])),
    "no membership": lambda x, ids: torch.isin(ids, torch.tensor([1, 3]), invert=True),
    "places": lambda x, ids: torch.searchsorted(ROW, x),
    "places, from the right": lambda x, ids: torch.searchsorted(ROW, x.round(), right=True),
    "flex attention with biases": biased,
    "flex attention, causal": causal,
    "flex attention, grouped": grouped,
}


@pytest.mark.parametrize("opset", [18, 23])
def test_keys_of_one_head(opset: int) -> None:
    golden = gw.to_onnx(spec_of(lambda x, ids: attend(heads(x), heads(x)[:, :1], heads(x)[:, :1])), opset)
    assert ("Attention" in {node.op_type for node in golden.graph}) == (opset == 23)


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_repaired_graphs_compute_what_torch_does(name: str) -> None:
    golden = gw.to_onnx(spec_of(BODIES[name]), 18)  # proves it at other sizes
    assert {node.metadata_props.get(PATH) for node in golden.graph if node.op_type != "Constant"} <= {"inner", None}


def test_what_torch_converts_is_left_alone() -> None:
    program = trace(spec_of(lambda x, ids: attend(heads(x), heads(x), heads(x)) * (1 - ids).sum()))
    targets = [node.target for node in program.graph.nodes]
    assert targets.count(aten.scaled_dot_product_attention.default) == 1
    assert aten.rsub.Scalar in targets


def test_repaired_nodes_keep_module_and_symbols() -> None:
    program = trace(spec_of(lambda x, ids: torch.cdist(x, x)))
    made = [node for node in program.graph.nodes if node.target is aten.linalg_vector_norm.default]
    assert [str(size) for size in made[0].meta["val"].shape][1:] == [str(made[0].meta["val"].shape[1])] * 2
    assert [path for path, _ in made[0].meta["nn_module_stack"].values()][-1] == "inner"
