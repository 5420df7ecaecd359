"""Hugging Face folders: tiny random models of each kind, saved to disk and read back; inputs that cannot be made."""

from __future__ import annotations

import copy
import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from graphwright.errors import InputError
from graphwright.export.huggingface import from_folder
from graphwright.export.huggingface_inputs import SENTENCES
from graphwright.runtimes.reference import TorchSession, to_array
from graphwright.spec import ModelSpec

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

WORDS = sorted(set(" ".join(SENTENCES).lower().replace(",", " ,").replace(".", " .").split()))
SMALL = {"vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
BERT = SMALL | {"intermediate_size": 64}
DEPTH = {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
WHISPER = DEPTH | {"vocab_size": 128, "d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "num_mel_bins": 8}
WHISPER |= {"max_source_positions": 50, "max_target_positions": 32, "pad_token_id": 0, "bos_token_id": 1}
WHISPER |= {"eos_token_id": 2, "decoder_start_token_id": 1}
WAVES = SMALL | {"intermediate_size": 64, "conv_dim": (16, 16), "conv_stride": (5, 4), "conv_kernel": (10, 8)}
WAVES |= {"num_feat_extract_layers": 2, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}


def save_tokenizer(folder: Path, **special: Any) -> None:
    """One token a word; [CLS] and [SEP] around each row, and token types, as BERT has them."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = tokenizers.normalizers.Lowercase()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", **special)
    made.save_pretrained(folder)


def bert(folder: Path) -> None:
    transformers.BertModel(transformers.BertConfig(**BERT, max_position_embeddings=64)).save_pretrained(folder)
    names = ["input_ids", "token_type_ids", "attention_mask"]
    save_tokenizer(folder, pad_token="[PAD]", model_input_names=names)


def short_bert(folder: Path) -> None:
    config = transformers.BertConfig(**BERT, max_position_embeddings=12)
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    save_tokenizer(folder, pad_token="[PAD]", padding_side="left", model_input_names=["input_ids", "attention_mask"])


def roberta(folder: Path) -> None:
    config = transformers.RobertaConfig(**BERT, max_position_embeddings=66, pad_token_id=1)
    transformers.RobertaForSequenceClassification(config).save_pretrained(folder)


def gpt2(folder: Path) -> None:
    config = transformers.GPT2Config(
        vocab_size=128, n_embd=32, n_layer=2, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=0
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    save_tokenizer(folder)


def t5(folder: Path) -> None:
    config = transformers.T5Config(
        vocab_size=128, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, decoder_start_token_id=0
    )
    transformers.T5ForConditionalGeneration(config).save_pretrained(folder)


def vit(folder: Path) -> None:
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=24, patch_size=8
    )
    transformers.ViTModel(config).save_pretrained(folder)


def resnet(folder: Path) -> None:
    """No image_size: the processor's file alone says it, the crop before the size."""
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_channels=1
    )
    transformers.ResNetModel(config).save_pretrained(folder)
    sizes = {"size": {"shortest_edge": 48}, "crop_size": {"height": 32, "width": 40}}
    (folder / "preprocessor_config.json").write_text(json.dumps(sizes))


def wav2vec2(folder: Path) -> None:
    transformers.Wav2Vec2Model(transformers.Wav2Vec2Config(**WAVES)).save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(sampling_rate=8000).save_pretrained(folder)


def whisper(folder: Path) -> None:
    transformers.WhisperModel(transformers.WhisperConfig(**WHISPER)).save_pretrained(folder)
    transformers.WhisperFeatureExtractor(feature_size=8, chunk_length=1).save_pretrained(folder)


MADE: dict[str, Callable[[Path], None]] = {
    made.__name__: made for made in (bert, short_bert, roberta, gpt2, t5, vit, resnet, wav2vec2, whisper)
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("folders")
    for name, save in MADE.items():
        save(root / name)
    return {name: root / name for name in MADE}


@pytest.fixture(scope="module")
def specs(folders: dict[str, Path]) -> dict[str, tuple[ModelSpec, str]]:
    return {name: from_folder(folder) for name, folder in folders.items()}


TEXT = {0: "batch", 1: "sequence"}
TARGET = {0: "batch", 1: "decoder_sequence"}


@pytest.mark.parametrize(
    ("name", "shapes", "dynamic", "ranges"),
    [
        (
            "bert",
            {"input_ids": (2, 22), "attention_mask": (2, 22), "token_type_ids": (2, 22)},
            dict.fromkeys(["input_ids", "attention_mask", "token_type_ids"], TEXT),
            {"sequence": (1, 64, 64)},
        ),
        (
            "short_bert",
            {"input_ids": (2, 12), "attention_mask": (2, 12)},
            {"input_ids": TEXT, "attention_mask": TEXT},
            {"sequence": (1, 12, 12)},
        ),
        (
            "roberta",
            {"input_ids": (2, 16), "attention_mask": (2, 16)},
            {"input_ids": TEXT, "attention_mask": TEXT},
            {"sequence": (1, 64, 64)},  # its table has 66 rows, of which two are padding's and the one before it
        ),
        (
            "gpt2",
            {"input_ids": (2, 9), "attention_mask": (2, 9)},
            {"input_ids": TEXT, "attention_mask": TEXT},
            {"sequence": (1, 64, 64)},
        ),
        (
            "t5",
            {"input_ids": (2, 16), "attention_mask": (2, 16), "decoder_input_ids": (2, 5)},
            {"input_ids": TEXT, "attention_mask": TEXT, "decoder_input_ids": TARGET},
            {},
        ),
        ("vit", {"pixel_values": (2, 3, 24, 24)}, {"pixel_values": {0: "batch"}}, {}),
        ("resnet", {"pixel_values": (2, 1, 32, 40)}, {"pixel_values": {0: "batch"}}, {}),
        (
            "wav2vec2",
            {"input_values": (2, 8000)},
            {"input_values": {0: "batch", 1: "samples"}},
            {"samples": (4000, 8000, 80000)},
        ),
        (
            "whisper",
            {"input_features": (2, 8, 100), "decoder_input_ids": (2, 5)},
            {"input_features": {0: "batch"}, "decoder_input_ids": TARGET},
            {"decoder_sequence": (1, 32, 32)},
        ),
    ],
)
def test_inputs_dims_and_ranges_of_each_kind(
    specs: dict[str, tuple[ModelSpec, str]], name: str, shapes: object, dynamic: object, ranges: object
) -> None:
    spec, _ = specs[name]
    assert {key: tuple(tensor.shape) for key, tensor in spec.tensors.items()} == shapes
    assert spec.dynamic == dynamic
    assert spec.ranges == ranges
    assert spec.name == name
    assert spec.calibration is None
    assert not spec.module.training
    assert {parameter.dtype for parameter in spec.module.parameters()} == {torch.float32}


OUTPUTS = {
    "bert": ["last_hidden_state", "pooler_output"],
    "short_bert": ["logits"],
    "roberta": ["logits"],
    "gpt2": ["logits"],
    "t5": ["logits", "encoder_last_hidden_state"],
    "vit": ["last_hidden_state", "pooler_output"],
    "resnet": ["last_hidden_state", "pooler_output"],
    "wav2vec2": ["last_hidden_state", "extract_features"],
    "whisper": ["last_hidden_state", "encoder_last_hidden_state"],
}


@pytest.mark.parametrize("name", MADE)
def test_the_module_runs_on_its_inputs(specs: dict[str, tuple[ModelSpec, str]], name: str) -> None:
    spec, _ = specs[name]
    with TorchSession(spec) as session:
        found = session.run({key: to_array(tensor) for key, tensor in spec.tensors.items()})
    assert list(found) == OUTPUTS[name]
    for array in found.values():
        assert array.dtype == np.float32
        assert np.isfinite(array).all()


@pytest.mark.parametrize("name", ["bert", "roberta", "gpt2", "t5"])
def test_the_smallest_and_largest_sequences_run(specs: dict[str, tuple[ModelSpec, str]], name: str) -> None:
    spec, _ = specs[name]
    with TorchSession(spec) as session:
        for size in (1, spec.ranges.get("sequence", (1, 1, 300))[2]):
            feeds = {key: np.ones((1, size), np.int64) * 5 for key in spec.tensors}
            feeds = {key: np.minimum(array, 1) if key != "input_ids" else array for key, array in feeds.items()}
            assert all(np.isfinite(array).all() for array in session.run(feeds).values())


def test_the_outputs_are_those_of_the_saved_model(
    folders: dict[str, Path], specs: dict[str, tuple[ModelSpec, str]]
) -> None:
    spec, _ = specs["bert"]
    model = transformers.BertModel.from_pretrained(folders["bert"]).eval()
    with torch.inference_mode():
        expected = model(**spec.inputs).last_hidden_state
        torch.testing.assert_close(spec.module(**spec.inputs).last_hidden_state, expected, rtol=0, atol=0)


def test_sentences_of_different_length_are_padded_on_the_right(specs: dict[str, tuple[ModelSpec, str]]) -> None:
    inputs = specs["bert"][0].inputs
    assert inputs["attention_mask"].sum(dim=1).tolist() == [9, 22]
    assert (inputs["input_ids"][0, 9:] == 0).all()
    assert (inputs["input_ids"] != 1).all()  # no unknown word
    assert inputs["input_ids"].dtype is torch.int64
    left = specs["short_bert"][0].inputs  # its tokenizer would pad on the left
    assert left["attention_mask"].tolist() == [[1] * 9 + [0] * 3, [1] * 12]


def test_without_a_pad_token_rows_are_cropped_to_one_length(specs: dict[str, tuple[ModelSpec, str]]) -> None:
    inputs = specs["gpt2"][0].inputs
    assert inputs["attention_mask"].all()
    assert inputs["input_ids"][0].tolist() != inputs["input_ids"][1].tolist()


def test_random_ids_are_legal_and_the_decoder_starts_with_its_token(specs: dict[str, tuple[ModelSpec, str]]) -> None:
    inputs = specs["t5"][0].inputs
    assert 0 <= int(inputs["input_ids"].min()) <= int(inputs["input_ids"].max()) < 128
    assert inputs["decoder_input_ids"][:, 0].tolist() == [0, 0]
    assert specs["whisper"][0].inputs["decoder_input_ids"][:, 0].tolist() == [1, 1]


def test_one_line_says_what_was_read(specs: dict[str, tuple[ModelSpec, str]]) -> None:
    assert specs["bert"][1] == "BertModel from config.json, model.safetensors, tokenizer.json"
    assert specs["vit"][1] == "ViTModel from config.json, model.safetensors"
    assert "preprocessor_config.json" in specs["resnet"][1]


def test_a_copy_of_the_module_runs_its_own_weights(specs: dict[str, tuple[ModelSpec, str]]) -> None:
    spec, _ = specs["vit"]
    double = copy.deepcopy(spec.module).double()
    pixels = spec.inputs["pixel_values"]
    with torch.inference_mode():
        assert double(pixel_values=pixels.double()).last_hidden_state.dtype is torch.float64
        assert spec.module(pixel_values=pixels).last_hidden_state.dtype is torch.float32


def test_nothing_is_asked_of_the_network(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def refuse(*arguments: object, **options: object) -> None:
        asked.append(arguments)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for name in ("bert", "whisper"):
        from_folder(folders[name])
    assert asked == []


@pytest.mark.parametrize(
    "name", ["bert", *(pytest.param(name, marks=pytest.mark.full) for name in MADE if name != "bert")]
)
def test_the_spec_is_traced_with_its_dims(specs: dict[str, tuple[ModelSpec, str]], name: str) -> None:
    from graphwright.export.trace import convert, trace

    spec, _ = specs[name]
    graph = convert(spec, trace(spec), 23).graph
    assert [value.name for value in graph.inputs] == list(spec.tensors)
    assert [value.name for value in graph.outputs] == OUTPUTS[name]


@pytest.fixture
def change(folders: dict[str, Path], tmp_path: Path) -> Callable[..., Path]:
    """A copy of a folder with some keys of a JSON file set (None: taken out)."""

    def changed(name: str, file: str = "config.json", **keys: Any) -> Path:
        folder = tmp_path / name
        shutil.copytree(folders[name], folder)
        path = folder / file
        config = json.loads(path.read_text()) if path.exists() else {}
        config = {key: value for key, value in (config | keys).items() if value is not None}
        path.write_text(json.dumps(config))
        return folder

    return changed


def test_a_tokenizer_of_another_model_is_rejected(change: Callable[..., Path]) -> None:
    folder = change("bert")
    config = transformers.BertConfig(**BERT | {"vocab_size": 10}, max_position_embeddings=64)
    transformers.BertModel(config).save_pretrained(folder)
    with pytest.raises(InputError, match=r"gives token .*, but the model has 10 only: they do not belong together"):
        from_folder(folder)


def test_a_broken_tokenizer_is_rejected(change: Callable[..., Path]) -> None:
    folder = change("bert")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"The tokenizer of .* cannot be used: "):
        from_folder(folder)


@pytest.mark.parametrize("size", [None, {"width": 4}, {"height": 10**9, "width": 4}, "large", -1])
def test_an_image_without_a_size_is_rejected(change: Callable[..., Path], size: object) -> None:
    folder = change("resnet", "preprocessor_config.json", crop_size=size, size=None)
    with pytest.raises(InputError, match="does not say how large an image is"):
        from_folder(folder)


def test_an_image_too_large_is_rejected(change: Callable[..., Path]) -> None:
    folder = change("resnet", "preprocessor_config.json", crop_size=4096)
    transformers.ResNetModel(
        transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], num_channels=5, layer_type="basic")
    ).save_pretrained(folder)
    with pytest.raises(InputError, match=r"num_channels in config.json is 5; .* at most 67108864 elements"):
        from_folder(folder)


def test_sound_without_an_extractor(change: Callable[..., Path]) -> None:
    folder = change("wav2vec2")
    (folder / "preprocessor_config.json").unlink()
    spec, _ = from_folder(folder)
    assert (tuple(spec.inputs["input_values"].shape), spec.ranges) == ((2, 16000), {"samples": (8000, 16000, 160000)})
    folder = change("whisper")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(InputError, match=r"has no preprocessor_config.json, so the shape of input_features is not kno"):
        from_folder(folder)


def test_an_extractor_of_another_model_is_rejected(change: Callable[..., Path]) -> None:
    folder = change("whisper")
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(folder)
    with pytest.raises(InputError, match=r"The feature extractor of .* cannot make input_features: KeyError"):
        from_folder(folder)


def test_an_input_of_unknown_kind_is_rejected(tmp_path: Path) -> None:
    config = transformers.PerceiverConfig(
        num_latents=4, d_latents=8, d_model=8, num_blocks=1, num_self_attends_per_block=1, num_self_attention_heads=1,
        num_cross_attention_heads=1,
    )  # fmt: skip
    transformers.PerceiverModel(config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="PerceiverModel takes 'inputs'; examples can be made of input_ids, pixel_va"):
        from_folder(tmp_path)
