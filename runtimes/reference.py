"""torch, eager, float32: what every artifact is compared with."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from ..errors import InputError
from ..spec import ModelSpec, flatten, of_cache
from .base import Session, TensorInfo


def to_tensor(value: Any) -> torch.Tensor:
    """A torch tensor of `value` (tensor or array). An array that torch cannot share (read-only, strided) is copied."""
    if isinstance(value, torch.Tensor):
        return value
    return torch.from_numpy(np.require(value, requirements=["C", "W"]))


def to_array(value: Any) -> np.ndarray:
    """A numpy array of `value` (tensor or array); bfloat16, which numpy lacks, as float32."""
    if not isinstance(value, torch.Tensor):
        return np.asarray(value)
    value = value.detach().cpu()
    return np.asarray((value.float() if value.dtype is torch.bfloat16 else value).numpy())


def nest(example: Any, tensors: Mapping[str, Any], name: str = "") -> Any:
    """The structure of `example` with its leaves taken from `tensors` by dotted name; a cache is a new one."""
    plain = of_cache(example)
    if plain is not example:
        parts = plain.items() if isinstance(plain, Mapping) else ()
        return type(example)(
            *[nest(part, tensors, f"{name}.{key}") for key, part in parts] or [nest(plain, tensors, name)]
        )
    if isinstance(example, Mapping):
        return {key: nest(item, tensors, f"{name}.{key}" if name else str(key)) for key, item in example.items()}
    if isinstance(example, (list, tuple)):
        items = [nest(item, tensors, f"{name}.{index}") for index, item in enumerate(example)]
        return tuple(items) if isinstance(example, tuple) else items
    return tensors[name]


def name_outputs(result: Any, inputs: Collection[str] = ()) -> dict[str, Any]:
    """Outputs by name: the keys of a dict or dataclass, else output_0, output_1, ...; nested dotted; None left out.

    What came in as past... and goes out under the same of the names `inputs` is called present...
    """
    plain = _plain(result)
    if not isinstance(plain, Mapping):
        items = plain if isinstance(plain, list) else [plain]
        plain = {f"output_{index}": item for index, item in enumerate(items)}
    named = {name: leaf for name, leaf in flatten(plain, "") if leaf is not None}
    return {re.sub("^past", "present", name) if name in inputs else name: leaf for name, leaf in named.items()}


def _plain(result: Any) -> Any:
    """Dataclasses and named tuples, at any depth, as dicts of their fields; other tuples as lists."""
    result = of_cache(result)
    if isinstance(result, Mapping):
        return {key: _plain(item) for key, item in result.items()}
    if dataclasses.is_dataclass(result) and not isinstance(result, type):
        return {field.name: _plain(getattr(result, field.name)) for field in dataclasses.fields(result)}
    if isinstance(result, tuple) and hasattr(result, "_asdict"):
        return _plain(result._asdict())
    return [_plain(item) for item in result] if isinstance(result, (list, tuple)) else result


@contextlib.contextmanager
def evaluating(module: torch.nn.Module) -> Iterator[None]:
    """`module` in eval mode inside the block, and as it was after it; without torch's fused encoder layer.

    That kernel of nn.TransformerEncoder and nn.MultiheadAttention writes zeros where a row is padding, the layer as it
    is documented and trained does not; and no graph can hold it.
    """
    modes = {part: part.training for part in module.modules()}
    fused = torch.backends.mha.get_fastpath_enabled()
    module.eval()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for part, training in modes.items():
            part.training = training


class TorchSession(Session):
    """The module of a ModelSpec, run eagerly on the CPU."""

    provider = "torch"

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        feeds = {name: to_array(value) for name, value in spec.tensors.items()}
        self.inputs = tuple(
            TensorInfo(name, str(array.dtype), self._shape(name, array)) for name, array in feeds.items()
        )
        example = self._run(feeds)
        # eager torch does not say which output dims are dynamic; each has the size that it has in the example
        self.outputs = tuple(TensorInfo(name, str(array.dtype), array.shape) for name, array in example.items())

    def _shape(self, name: str, array: np.ndarray) -> tuple[int | str, ...]:
        dims = self.spec.dynamic.get(name, {})
        return tuple(dims.get(axis, size) for axis, size in enumerate(array.shape))

    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        tensors = {name: to_tensor(array) for name, array in feeds.items()}
        module = self.spec.module
        with evaluating(module), torch.inference_mode():
            try:
                result = module(**nest(self.spec.inputs, tensors))
            except Exception as error:
                sizes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
                raise InputError(f"{type(module).__name__} itself raised on {sizes}: {error}") from error
        outputs = name_outputs(result, feeds)
        for name, value in outputs.items():
            if not isinstance(value, torch.Tensor | int):  # an int is a size, which the graph gives as a tensor
                raise InputError(
                    f"{type(module).__name__}.forward returns a {type(value).__name__} as {name!r}: return tensors, "
                    "in a tuple, dict or dataclass if they are several."
                )
        return {name: to_array(value) for name, value in outputs.items()}

    def _close(self) -> None:
        pass
