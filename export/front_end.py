"""What a module needs while it is traced and converted, beyond torch.export and torch.onnx themselves.

A Hugging Face model (the module is one, or holds one) borrows what `transformers.exporters` keeps for its own models:
patches of its code and of the torch functions that it calls, cache classes that torch.export can flatten, rewrites of
the traced graph, and translations (of experts' grouped products, for one). They are borrowed around our own calls of
torch.export and torch.onnx, and not taken with `OnnxExporter.export`, because that one call

- has no round in which a dim's range is narrowed or a guard deferred: with named dims it refuses BERT, DistilBERT,
  ALBERT and DeBERTa at once, and without names it proves nothing of which dims are equal;
- gives no traced program, which is what the store keys a golden graph by;
- sets the rows that no key may reach to zero behind each attention, on top of the model's own handling of them, which
  costs nodes in every graph; such rows are undefined here (docs/design.md).

Any other module is traced as it is; what torch itself gets wrong then is repaired in `repairs.py`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch.export import ExportedProgram

from .repairs import repair

Translations = Mapping[Callable[..., Any], Callable[..., Any]]


class FrontEnd:
    """Tracing as torch does it, with our repairs."""

    def __init__(self, translations: Translations = MappingProxyType({})) -> None:
        self.translations = translations

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """To be entered around each call of torch.export and torch.onnx."""
        # where its cache of operators is hit, torch.export traces the sizes that the cache computes, and may fail there
        with torch.no_grad(), torch._dynamo.config.patch(fake_tensor_cache_enabled=False):
            yield

    def repair(self, program: ExportedProgram) -> None:
        """Rewrite what torch cannot convert, in place."""
        repair(program)


class Transformers(FrontEnd):
    """Tracing as transformers does it for its own models."""

    def __init__(self, models: list[torch.nn.Module]) -> None:
        from transformers.exporters import exporter_dynamo, exporter_onnx, utils

        super().__init__(exporter_onnx._ONNX_TRANSLATION_TABLE)
        self.models, self.dynamo, self.utils = models, exporter_dynamo, utils

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """The library's patches, but for two that respell what torch converts well.

        Attention would be followed by a selection of rows, and each constant of a torch.where be expanded first.
        """
        kept = [(torch.nn.functional, "scaled_dot_product_attention"), (torch, "where")]
        kept_patches = [(owner, name, _constant(getattr(owner, name))) for owner, name in kept]
        with contextlib.ExitStack() as stack:
            stack.enter_context(super().active())
            for model in self.models:
                self.dynamo.register_cache_pytrees_for_model(model)
                stack.enter_context(self.dynamo.reset_model_state(model))
            stack.enter_context(self.utils.apply_patches("dynamo"))
            stack.enter_context(self.utils.apply_patches("onnx"))
            stack.enter_context(self.utils.patch_attributes(kept_patches))
            yield

    def repair(self, program: ExportedProgram) -> None:
        """Ours, then the library's, which converting applies once more after torch's decompositions."""
        super().repair(program)
        self.utils.apply_fx_node_fixes("onnx", program.graph_module)


def front_end(module: torch.nn.Module) -> FrontEnd:
    """The front end for `module`. transformers is not loaded for a module that holds nothing of it."""
    loaded = sys.modules.get("transformers.modeling_utils")
    models = [part for part in module.modules() if loaded and isinstance(part, loaded.PreTrainedModel)]
    if models and importlib.util.find_spec("transformers.exporters") is not None:
        return Transformers(models)
    return FrontEnd()


def _constant(value: Any) -> Callable[[Any], Any]:
    return lambda _: value
