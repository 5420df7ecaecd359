"""What the tests of the export share: a tiny encoder, two layers, 16 wide, and where weights of a file are kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from graphwright.export import weights
from graphwright.spec import ModelSpec

WIDTH, HEADS, WORDS = 16, 2, 50
BOTH = {0: "batch", 1: "sequence"}

MakeSpec = Callable[..., ModelSpec]


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        batch, sequence, _ = x.shape
        q, k, v = self.qkv(x).view(batch, sequence, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4).unbind(0)
        y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :].bool())
        mixed: torch.Tensor = self.norm(x + self.dropout(self.out(y.transpose(1, 2).reshape(batch, sequence, WIDTH))))
        return mixed


class Encoder(nn.Module):
    """input_ids and attention_mask [batch, sequence] -> {embedding [batch, 16], tokens [batch, sequence, 16]}."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(2))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.embedding(input_ids)
        for layer in self.layers:
            x = layer(x, attention_mask)
        return {"embedding": x.mean(dim=1), "tokens": x}


@pytest.fixture(scope="session")
def make_spec() -> MakeSpec:
    """The spec of a tiny encoder, seeded; `batch` and `sequence` are the example's sizes."""

    def make(batch: int = 2, sequence: int = 5, seed: int = 0, **changed: Any) -> ModelSpec:
        torch.manual_seed(seed)
        module = Encoder().eval()
        inputs = {
            "input_ids": torch.randint(0, WORDS, (batch, sequence)),
            "attention_mask": torch.ones(batch, sequence, dtype=torch.int64),
        }
        dynamic = {"input_ids": BOTH, "attention_mask": BOTH}
        return ModelSpec(**{"module": module, "inputs": inputs, "dynamic": dynamic, "name": "tiny", **changed})

    return make


@pytest.fixture(params=["in memory", "on disk"])
def kept(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where tensors in files beside the model are kept; those of the tests are small."""
    monkeypatch.setattr(weights, "ON_DISK", 0 if request.param == "on disk" else 1 << 20)
