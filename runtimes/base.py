"""The contract that every runtime keeps: missing, build, open; and of a session: run, close."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

import numpy as np
from pydantic import BaseModel, ConfigDict

from ..errors import InputError

Options = dict[str, str | int | float | bool | list[str]]
Ranges = Mapping[str, tuple[int, int, int]]


class Settings(BaseModel):
    """What a user may set of a target, in a recipe or with `--option`: every field has a default and a description.

    Each runtime that has settings derives its own; unknown names and wrong types are errors.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


@dataclass(frozen=True)
class TensorInfo:
    """Name, numpy dtype and shape of an input or output; a str in the shape is a dynamic dim."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class BuildRequest:
    """What a runtime needs to build: a target graph on disk, and what the graph itself does not say."""

    graph: Path  # the target graph, ONNX, in the folder that the artifact is made in
    ranges: Ranges = field(default_factory=dict)  # dynamic dim -> min, opt, max
    device: str = ""  # device profile, as in `tensorrt-rtx@sm89`
    settings: Settings = field(default_factory=Settings)  # of the runtime's own class


@dataclass(frozen=True)
class BuildResult:
    """What a build made."""

    artifact: str  # name of the file to open, in the graph's folder; of some runtimes it is the graph
    versions: dict[str, str]
    options: Options
    ops: dict[str, int] = field(default_factory=dict)  # op types of the graph that the runtime made, where it tells
    notes: tuple[str, ...] = ()
    precisions: dict[str, int] = field(default_factory=dict)  # what the products compute in -> how many, where it tells
    shortfall: list[str] = field(default_factory=list)  # what was asked and is not so in what was built


class Session(ABC):
    """An open artifact. Use it in a `with` block; feeds and outputs are numpy arrays by name."""

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    provider: str  # what really runs it, proved
    _open = True

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name for `feeds`. Raises InputError where a feed does not fit its input."""
        if not self._open:
            raise InputError("This session is closed: open the artifact again.")
        self._check(feeds)
        return self._run(feeds)

    def close(self) -> None:
        """Give back what the session holds; a second call does nothing."""
        if self._open:
            self._open = False
            self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check(self, feeds: Mapping[str, np.ndarray]) -> None:
        names = [info.name for info in self.inputs]
        wrong = sorted(set(feeds) ^ set(names))
        if wrong:
            raise InputError(
                f"The inputs are {', '.join(names)}; came {', '.join(feeds) or 'none'}: wrong {', '.join(wrong)}."
            )
        sizes: dict[str, tuple[int, str]] = {}
        for info in self.inputs:
            _check_feed(info, feeds[info.name], sizes)

    @abstractmethod
    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]: ...

    @abstractmethod
    def _close(self) -> None: ...


def _check_feed(info: TensorInfo, array: np.ndarray, sizes: dict[str, tuple[int, str]]) -> None:
    if not isinstance(array, np.ndarray):
        raise InputError(f"Input {info.name!r} must be a numpy array, but is a {type(array).__name__}.")
    if str(array.dtype) != info.dtype:
        raise InputError(
            f"Input {info.name!r} must be {info.dtype}, but is {array.dtype}: use .astype({info.dtype!r})."
        )
    wanted = "[" + ", ".join(map(str, info.shape)) + "]"
    if array.ndim != len(info.shape):
        raise InputError(f"Input {info.name!r} must have shape {wanted}, but has {list(array.shape)}.")
    for dim, size in zip(info.shape, array.shape, strict=True):
        expected, where = (dim, info.name) if isinstance(dim, int) else sizes.setdefault(dim, (size, info.name))
        if size != expected:
            also = f" ({dim!r} is {expected} in {where!r})" if isinstance(dim, str) else ""
            raise InputError(f"Input {info.name!r} must have shape {wanted}, but has {list(array.shape)}{also}.")


class Runtime(ABC):
    """A backend. Stateless: nothing heavy is imported before `build` or `open`."""

    name: ClassVar[str]
    settings: ClassVar[type[Settings]] = Settings
    builds_for_others: ClassVar[bool] = False  # whether the builder makes for devices that this machine is not

    @abstractmethod
    def missing(self) -> str | None:
        """Why this machine cannot run artifacts of this runtime; None if it can."""

    def builder_missing(self) -> str | None:
        """Why this machine cannot build them; None if it can. As `missing`, except where building needs no device."""
        return self.missing()

    @abstractmethod
    def build(self, request: BuildRequest) -> BuildResult:
        """Build into the folder of `request.graph`. Raises BuildError with the backend's own reason."""

    @abstractmethod
    def open(self, artifact: Path, settings: Settings | None = None) -> Session:
        """Open what `build` wrote, with the settings that it was built with (None: the defaults).

        Raises DeviceError if another provider runs than the one asked for.
        """
