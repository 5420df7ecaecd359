"""Hugging Face folders that are refused: configs, weights and code that cannot or must not be loaded, and why."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from graphwright.errors import InputError, UsageError
from graphwright.export.huggingface import from_folder

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("folders") / "bert"
    config = transformers.BertConfig(
        vocab_size=128, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    transformers.BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def change(bert: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the folder with some keys of a JSON file set (None: taken out)."""

    def changed(file: str = "config.json", **keys: Any) -> Path:
        folder = tmp_path / "bert"
        shutil.copytree(bert, folder)
        path = folder / file
        config = json.loads(path.read_text()) if path.exists() else {}
        config = {key: value for key, value in (config | keys).items() if value is not None}
        path.write_text(json.dumps(config))
        return folder

    return changed


def test_without_architectures_the_base_model_of_the_type_is_taken(change: Callable[..., Path]) -> None:
    _, found = from_folder(change(architectures=None))
    assert found.startswith("BertModel from config.json")


def test_code_of_the_folder_is_left_alone_where_the_class_is_known(change: Callable[..., Path]) -> None:
    folder = change(auto_map={"AutoModel": "code.Evil"})
    (folder / "code.py").write_text("raise SystemExit('was run')")
    assert from_folder(folder)[1].startswith("BertModel")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"architectures": ["NoSuchModel"]}, "has architectures 'NoSuchModel', which transformers .* does not know"),
        ({"architectures": ["pipeline"]}, "has architectures 'pipeline', which transformers .* does not know"),
        ({"architectures": [3]}, "has architectures 3, which transformers .* does not know"),
        (
            {"architectures": ["MyModel"], "auto_map": {"AutoModel": "code.MyModel"}},
            r"which is code in the folder \(auto_map\); such code is not run",
        ),
        ({"architectures": None, "model_type": "mine"}, "has no architectures, and model_type 'mine', which transf"),
        ({"architectures": None, "model_type": ["bert"]}, r"no architectures, and model_type \['bert'\], which transf"),
        ({"quantization_config": {"quant_method": "gptq"}}, "is quantized already"),
        ({"_attn_implementation": "someone/kernel"}, "asks for _attn_implementation 'someone/kernel'; only 'eager'"),
        (
            {"text_config": {"attn_implementation": "flash_attention_2"}},
            "asks for attn_implementation 'flash_attention_2",
        ),
        ({"hidden_size": 64}, "cannot be loaded as BertModel: its weights have other shapes than config.json says"),
        ({"hidden_size": "wide"}, "cannot be loaded as BertModel: .*ValidationError: .*'hidden_size'"),
        ({"num_hidden_layers": 3}, "lacks 16 weights of BertModel, which would be random: encoder.layer.2"),
        ({"architectures": ["BertForMaskedLM"]}, "weights of BertForMaskedLM, which would be random"),
        ({"vocab_size": 20}, "cannot be loaded as BertModel: its weights have other shapes than config.json says"),
    ],
)
def test_a_config_that_cannot_be_used_says_why(change: Callable[..., Path], keys: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        from_folder(change(**keys))


def test_weights_without_a_place_are_told(change: Callable[..., Path]) -> None:
    _, found = from_folder(change(num_hidden_layers=1))
    assert "; 16 weights unused (encoder.layer.1.attention.output.LayerNorm.bias, encoder.layer.1." in found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "config.json is no JSON"),
        ("[1]", "must hold a JSON object, but holds a list"),
        ("[" * 100_000, "is no JSON"),
    ],
)
def test_a_broken_config_is_rejected(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=message):
        from_folder(tmp_path)


def test_a_config_too_large_to_be_one_is_rejected(tmp_path: Path) -> None:
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(InputError, match="has 1073741824 bytes; at most"):
        from_folder(tmp_path)


def test_a_folder_that_is_none_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be read \(No such file or directory\): a Hugging Face model folder"):
        from_folder(tmp_path / "none")


def test_pickled_weights_are_refused_unless_safetensors_are_there(change: Callable[..., Path]) -> None:
    folder = change()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04never read")
    from_folder(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"in pytorch_model.bin only, a pickle, which runs code when it is read"):
        from_folder(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(InputError, match=r"holds no weights: neither model.safetensors nor model.safetensors.index.js"):
        from_folder(folder)


def test_damaged_or_absent_shards_are_rejected(change: Callable[..., Path]) -> None:
    folder = change()
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InputError, match="cannot be loaded as BertModel: SafetensorError"):
        from_folder(folder)
    weights.unlink()
    index = {"metadata": {"total_size": 4}, "weight_map": {"embeddings.word_embeddings.weight": "a.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"cannot be loaded as BertModel: FileNotFoundError: .*a.safetensors"):
        from_folder(folder)


def test_an_adapter_is_rejected(change: Callable[..., Path]) -> None:
    folder = change("adapter_config.json", base_model_name_or_path="someone/model")
    with pytest.raises(InputError, match="is an adapter: merge it into its base model"):
        from_folder(folder)


def test_without_transformers_the_way_to_it_is_told(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UsageError, match=r"needs transformers .*: pip install graphwright\[hf\]"):
        from_folder(bert)
