"""Example inputs for a loaded Hugging Face model, from what its folder holds: tokenizer, sizes, feature extractor."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError

SENTENCES = (
    "The lift stopped between two floors.",
    "Nobody in it said a word, until a child began to laugh and then everyone talked at once.",
)
RANDOM_LENGTH = 16  # of token ids where the folder has no tokenizer
DECODER_LENGTH = 5
USUAL_LENGTH = 128  # what an artifact is made fastest for, where the model takes as much
SECONDS = (0.5, 1, 10)  # of sound, for models that take the samples themselves: min, opt and example, max
SAMPLING_RATE = 16_000
LARGEST_SIDE = 4096
LARGEST_IMAGE = 1 << 26  # elements
LARGEST_RATE = 192_000
JSON_BYTES = 16 << 20
OFFLINE = {"local_files_only": True, "trust_remote_code": False}

_TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "spiece.model",
    "vocab.txt",
    "vocab.json",
)
_PREPROCESSOR = "preprocessor_config.json"


@dataclass(frozen=True)
class Loaded:
    """The model of a folder, and the parameters that its forward takes."""

    folder: Path
    transformers: Any  # the library
    model: Any  # its PreTrainedModel
    takes: frozenset[str]

    @property
    def config(self) -> Any:
        return self.model.config


@dataclass(frozen=True)
class Example:
    """Example inputs with their dims, and the file that they were made by."""

    inputs: dict[str, torch.Tensor]
    dynamic: dict[str, dict[int, str]]
    ranges: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    file: str = ""

    def __or__(self, other: Example) -> Example:
        return Example(
            self.inputs | other.inputs,
            self.dynamic | other.dynamic,
            self.ranges | other.ranges,
            self.file or other.file,
        )


def example_of(loaded: Loaded) -> Example:
    """Example inputs by the model's main input, two of each; and the decoder's. Raises InputError where none fit."""
    kind = loaded.model.main_input_name
    if kind not in _KINDS:
        raise InputError(
            f"{type(loaded.model).__name__} takes {kind!r}; examples can be made of {', '.join(_KINDS)}. Write a "
            "ModelSpec with your own inputs, and give it as file.py:name."
        )
    example = _KINDS[kind](loaded)
    generates = loaded.config.is_encoder_decoder and "decoder_input_ids" in loaded.takes
    return example | _decoder(loaded) if generates else example


def _text(loaded: Loaded) -> Example:
    """int64 [2, length]: token ids, and the mask and token types where the model takes them."""
    text = loaded.config.get_text_config()
    limit = _positions(loaded, getattr(text, "max_position_embeddings", None))
    file = next((name for name in _TOKENIZERS if (loaded.folder / name).is_file()), "")
    vocabulary = _vocabulary(loaded, text)
    if file:
        inputs = _tokenize(loaded, limit)
        highest = int(inputs["input_ids"].max())
        if highest >= vocabulary:
            raise InputError(
                f"The tokenizer of {loaded.folder} gives token {highest}, but the model has {vocabulary} only: "
                "they do not belong together."
            )
    else:
        inputs = {"input_ids": _random_ids(vocabulary, min(RANDOM_LENGTH, limit or RANDOM_LENGTH))}
        if "attention_mask" in loaded.takes:
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    dynamic = {name: {0: "batch", 1: "sequence"} for name in inputs}
    return Example(inputs, dynamic, _range("sequence", inputs["input_ids"], limit), file)


def _tokenize(loaded: Loaded, limit: int | None) -> dict[str, torch.Tensor]:
    masked = "attention_mask" in loaded.takes
    try:
        tokenizer = loaded.transformers.AutoTokenizer.from_pretrained(loaded.folder, **OFFLINE)
        # rows padded on the left would begin with queries that a causal model lets attend to nothing
        padding = {"padding": True, "padding_side": "right"} if masked and tokenizer.pad_token_id is not None else {}
        encoded = tokenizer(list(SENTENCES), truncation=limit is not None, max_length=limit, **padding)
    except Exception as error:
        raise InputError(f"The tokenizer of {loaded.folder} cannot be used: {first_lines(error)}") from error
    length = min(map(len, encoded["input_ids"]))
    if not length:
        raise InputError(f"The tokenizer of {loaded.folder} makes no token of {SENTENCES[0]!r}.")
    names = ["input_ids", "attention_mask"] if masked else ["input_ids"]
    if "token_type_ids" in tokenizer.model_input_names and "token_type_ids" in loaded.takes:
        names.append("token_type_ids")
    # without padding the rows are cropped to equal length
    return {name: torch.tensor([row[:length] for row in encoded[name]], dtype=torch.int64) for name in names}


def _decoder(loaded: Loaded) -> Example:
    """decoder_input_ids: int64 [2, length], from the start token on."""
    text = loaded.config.get_text_config(decoder=True)
    limit = getattr(text, "max_target_positions", None) or getattr(text, "max_position_embeddings", None)
    limit = _positions(loaded, limit)
    ids = _random_ids(_vocabulary(loaded, text), min(DECODER_LENGTH, limit or DECODER_LENGTH))
    start = getattr(loaded.config, "decoder_start_token_id", None)
    if isinstance(start, int):
        ids[:, 0] = start
    dims = {0: "batch", 1: "decoder_sequence"}
    return Example({"decoder_input_ids": ids}, {"decoder_input_ids": dims}, _range("decoder_sequence", ids, limit))


def _positions(loaded: Loaded, limit: Any) -> int | None:
    """How many tokens the model takes; None if any number."""
    if not isinstance(limit, int) or limit < 1:
        return None
    for name, part in loaded.model.named_modules():
        table = isinstance(part, torch.nn.Embedding) and "position" in name and part.num_embeddings == limit
        if table and part.padding_idx is not None:
            return max(1, limit - int(part.padding_idx) - 1)  # positions count from the one after padding's (RoBERTa)
    return limit


def _range(dim: str, ids: torch.Tensor, limit: int | None) -> dict[str, tuple[int, int, int]]:
    return {} if limit is None else {dim: (1, min(max(USUAL_LENGTH, ids.shape[1]), limit), limit)}


def _vocabulary(loaded: Loaded, text: Any) -> int:
    size = getattr(text, "vocab_size", None)
    if not isinstance(size, int) or size < 1:
        raise InputError(f"{loaded.folder / 'config.json'} has vocab_size {size!r}; it must be a number above 0.")
    return size


def _random_ids(vocabulary: int, length: int) -> torch.Tensor:
    return torch.randint(vocabulary, (2, length), generator=torch.Generator().manual_seed(0))


def _noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _image(loaded: Loaded) -> Example:
    """pixel_values: float32 [2, channels, height, width]"""
    for config in (loaded.config, *(getattr(loaded.config, name, None) for name in ("vision_config", "encoder"))):
        sides = _sides(getattr(config, "image_size", None))
        if sides:
            return _pixels(config, sides, "")
    path = loaded.folder / _PREPROCESSOR
    found = read_json(path) if path.is_file() else {}
    for key in ("crop_size", "size"):
        sides = _sides(found.get(key))
        if sides:
            return _pixels(loaded.config, sides, _PREPROCESSOR)
    raise InputError(
        f"{loaded.folder} does not say how large an image is (1 to {LARGEST_SIDE} a side): there is no image_size in "
        f"config.json, and no crop_size or size in {_PREPROCESSOR}."
    )


def _pixels(config: Any, sides: tuple[int, int], file: str) -> Example:
    channels = getattr(config, "num_channels", 3)
    if not isinstance(channels, int) or not 1 <= channels <= LARGEST_IMAGE // (sides[0] * sides[1]):
        raise InputError(
            f"num_channels in config.json is {channels!r}; it must be above 0, and an image of {sides[0]} x {sides[1]} "
            f"have at most {LARGEST_IMAGE} elements."
        )
    return Example({"pixel_values": _noise(2, channels, *sides)}, {"pixel_values": {0: "batch"}}, file=file)


def _sides(value: Any) -> tuple[int, int] | None:
    """Height and width, in any way that configs write them; None if they are not there or out of bounds."""
    match value:
        case {"height": height, "width": width} | [height, width] | (height, width):
            sides = height, width
        case {"shortest_edge": side} | side:
            sides = side, side
    return sides if all(isinstance(side, int) and 1 <= side <= LARGEST_SIDE for side in sides) else None


def _sound(loaded: Loaded) -> Example:
    """input_values or input_features: float32, of a second of noise, twice."""
    name = loaded.model.main_input_name
    if (loaded.folder / _PREPROCESSOR).is_file():
        tensor, rate = _extract(loaded, name)
        file = _PREPROCESSOR
    elif name == "input_values":
        tensor, rate, file = _noise(2, SAMPLING_RATE), SAMPLING_RATE, ""
    else:
        raise InputError(f"{loaded.folder} has no {_PREPROCESSOR}, so the shape of {name} is not known.")
    if tensor.ndim > 2:  # features, mostly padded to a fixed length
        return Example({name: tensor}, {name: {0: "batch"}}, file=file)
    low, usual, high = (int(seconds * rate) for seconds in SECONDS)
    return Example({name: tensor}, {name: {0: "batch", 1: "samples"}}, {"samples": (low, usual, high)}, file)


def _extract(loaded: Loaded, name: str) -> tuple[torch.Tensor, int]:
    try:
        extractor = loaded.transformers.AutoFeatureExtractor.from_pretrained(loaded.folder, **OFFLINE)
        rate = int(min(getattr(extractor, "sampling_rate", SAMPLING_RATE), LARGEST_RATE))
        waves = list(_noise(2, rate).numpy())
        return extractor(waves, sampling_rate=rate, return_tensors="pt")[name].float(), rate
    except Exception as error:
        raise InputError(
            f"The feature extractor of {loaded.folder} cannot make {name}: {first_lines(error)}"
        ) from error


_KINDS: Mapping[str, Callable[[Loaded], Example]] = {
    "input_ids": _text,
    "pixel_values": _image,
    "input_values": _sound,
    "input_features": _sound,
}


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`. Raises InputError where it is too large, unreadable or no object."""
    try:
        if path.stat().st_size > JSON_BYTES:
            raise InputError(f"{path} has {path.stat().st_size} bytes; at most {JSON_BYTES} are read.")
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}): a Hugging Face model folder holds config.json and weights."
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} must hold a JSON object, but holds a {type(value).__name__}.")
    return value


def first_lines(error: Exception) -> str:
    """The error's type and the first two lines of its message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:2]) or 'no message'}"
