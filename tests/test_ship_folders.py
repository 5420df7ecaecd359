"""Hugging Face folders ship as they are: class, inputs and dims are read from the folder."""

from pathlib import Path

import pytest
import torch
import transformers

import graphwright as gw

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
MODELS = {
    "bert": (transformers.BertModel, transformers.BertConfig(**SIZES, vocab_size=128, max_position_embeddings=64)),
    "vit": (transformers.ViTForImageClassification, transformers.ViTConfig(**SIZES, image_size=32, patch_size=8)),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_tiny_model_folder_ships(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    kind, config = MODELS[name]
    kind(config).save_pretrained(tmp_path / name)
    targets = ["ort-cpu:fp32", "ort-cpu:int8-dynamic", "tensorrt-rtx:fp16", "tensorrt:fp16"]
    shipped = gw.ship(str(tmp_path / name), targets=targets, out=tmp_path / "out", budget=0)
    assert shipped.code == 0
    records = shipped.manifest.targets
    assert [record.status for record in records] == ["built", "built", "built", "lowered"]
    assert [record.verified.passed for record in records] == [True, True, None, None]
    assert records[0].sites["attention"].model_dump() == {"found": 2, "lifted": 2, "lowered_to": {"Attention": 2}}
    assert "batch" in shipped.manifest.dynamic
    assert ("sequence" in shipped.manifest.dynamic) == (name == "bert")
