"""A Hugging Face model folder on disk -> ModelSpec. Nothing is downloaded and no code of the folder is run."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError, UsageError
from ..spec import ModelSpec
from .huggingface_inputs import OFFLINE, Loaded, example_of, first_lines, read_json

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


class _Named(torch.nn.Module):
    """Base of the wrapper that `_named` makes."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model


def from_folder(folder: Path) -> tuple[ModelSpec, str]:
    """The spec of the model in `folder`, and one line on what was read.

    The class is the first of config.json's `architectures`, else the base model of its `model_type`; the example
    inputs come from the folder's tokenizer, feature extractor or sizes. Weights are float32, the cache is off.
    Raises InputError where the folder cannot be read, its class is unknown or is code of its own, or weights are
    missing or pickled; UsageError where transformers is not installed.
    """
    config = read_json(folder / "config.json")
    _check_config(folder, config)
    weights = _check_weights(folder)
    transformers = _transformers()
    with _quiet(transformers):
        model, unused = _load(transformers, folder, config)
        loaded = Loaded(folder, transformers, model, frozenset(inspect.signature(model.forward).parameters))
        example = example_of(loaded)
    spec = ModelSpec(
        _named(model, list(example.inputs)),
        example.inputs,
        example.dynamic,
        example.ranges,
        calibration=None,
        name=folder.resolve().name,
    )
    files = ["config.json", weights, example.file]
    found = f"{type(model).__name__} from {', '.join(filter(None, files))}"
    return spec, found + (f"; {len(unused)} weights unused ({', '.join(unused[:3])})" if unused else "")


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise UsageError(
            f"A Hugging Face model folder needs transformers ({error}): pip install graphwright[hf]"
        ) from error
    return transformers


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Without the library's progress bars and warnings: what matters of them is checked and raised."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _check_config(folder: Path, config: Mapping[str, Any]) -> None:
    if (folder / "adapter_config.json").exists():
        raise InputError(f"{folder} is an adapter: merge it into its base model, and save that.")
    if config.get("quantization_config"):
        raise InputError(f"{folder} is quantized already (quantization_config): give the float model.")
    for name, kind in _attention_kinds(config):
        # anything else is a kernel of a device, or of a repository whose code would be fetched and run
        if kind not in (None, "eager", "sdpa"):
            raise InputError(f"{folder / 'config.json'} asks for {name} {kind!r}; only 'eager' and 'sdpa' are taken.")


def _attention_kinds(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if "attn_implementation" in key:
            yield key, value
        elif isinstance(value, dict):
            yield from _attention_kinds(value)


def _check_weights(folder: Path) -> str:
    """The name of the file that holds, or lists, the weights."""
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return name
    pickled = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickled:
        raise InputError(
            f"{folder} has its weights in {pickled[0]} only, a pickle, which runs code when it is read. Load the model "
            "where you trust it and save it again: model.save_pretrained(folder) writes model.safetensors."
        )
    raise InputError(f"{folder} holds no weights: neither {' nor '.join(_WEIGHTS)} is there.")


def _load(transformers: Any, folder: Path, config: Mapping[str, Any]) -> tuple[Any, list[str]]:
    """The model, and the names of the weights that it has no place for."""
    cls = _model_class(transformers, folder, config)
    try:
        model, info = cls.from_pretrained(
            folder, **OFFLINE, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
    except Exception as error:
        shapes = "ignore_mismatched_sizes" in str(error)  # the option that the library proposes then
        reason = "its weights have other shapes than config.json says" if shapes else first_lines(error)
        raise InputError(f"{folder} cannot be loaded as {cls.__name__}: {reason}") from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise InputError(
            f"{folder} lacks {len(missing)} weights of {type(model).__name__}, which would be random: "
            f"{', '.join(missing[:3])}{', ...' * (len(missing) > 3)}. Save the whole model, or name the class that "
            "was saved in config.json's architectures."
        )
    for part in model.modules():  # encoder and decoder may hold copies of the config
        if hasattr(part, "config"):
            part.config.use_cache = False
            part.config.return_dict = True
    return model, sorted(info["unexpected_keys"])


def _model_class(transformers: Any, folder: Path, config: Mapping[str, Any]) -> Any:
    names, path = config.get("architectures"), folder / "config.json"
    if names:
        name = names[0] if isinstance(names, list) else names
        cls = getattr(transformers, name, None) if isinstance(name, str) else None
        known = isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)
        said = f"architectures {name!r}"
    else:
        kind = config.get("model_type")
        known = isinstance(kind, str) and kind in transformers.CONFIG_MAPPING
        cls, said = transformers.AutoModel, f"no architectures, and model_type {kind!r}"
    if known:
        return cls
    if "auto_map" in config:
        raise InputError(
            f"{path} has {said}, which is code in the folder (auto_map); such code is not run. Import the model in a "
            "file of yours that makes a ModelSpec, and give that as file.py:name."
        )
    raise InputError(f"{path} has {said}, which transformers {transformers.__version__} does not know.")


def _named(model: Any, names: list[str]) -> torch.nn.Module:
    """`model` under a forward that takes exactly `names`, by keyword."""

    # A function of the class, not of the object: a copy of the module must call its own model.
    def forward(self: _Named, **tensors: torch.Tensor) -> Any:
        return self.model(**tensors)

    keyword = inspect.Parameter.KEYWORD_ONLY
    forward.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)]
        + [inspect.Parameter(name, keyword) for name in names]
    )
    made: torch.nn.Module = type(type(model).__name__, (_Named,), {"forward": forward})(model)
    return made.eval()
