"""One tiny model for all runtimes, with two types, a fixed dim, a table that ids may miss, and two outputs."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest
import torch

import graphwright as gw


class Scores(torch.nn.Module):
    """ids [batch, sequence] int64, bias [batch, 3] float32 -> scores [batch, sequence, 3], kept [batch, sequence]."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(9, 8)
        self.linear = torch.nn.Linear(8, 3)

    def forward(self, ids: torch.Tensor, bias: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"scores": self.linear(self.table(ids)).tanh() + bias[:, None], "kept": ids > 0}


def make_spec(dtype: torch.dtype) -> gw.ModelSpec:
    torch.manual_seed(0)
    inputs = {"ids": torch.randint(0, 9, (2, 5)), "bias": torch.randn(2, 3).to(dtype)}
    dynamic = {"ids": {0: "batch", 1: "sequence"}, "bias": {0: "batch"}}
    return gw.ModelSpec(Scores().eval().to(dtype), inputs, dynamic, name="scores")


@pytest.fixture(scope="session")
def spec() -> gw.ModelSpec:
    return make_spec(torch.float32)


@pytest.fixture(scope="session")
def graph(spec: gw.ModelSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden graph on disk, alone in a folder."""
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    ir.save(gw.to_onnx(spec), path)
    return path


@pytest.fixture(scope="session")
def half_graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in float16."""
    path = tmp_path_factory.mktemp("half") / "model.onnx"
    ir.save(gw.to_onnx(make_spec(torch.float16)), path)
    return path
