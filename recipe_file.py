"""A recipe in a file: read with the command line's say over it, each error with its line; and written to be run again.

Paths in a recipe (source, calibration, out) start at its own folder, so that the two can move together.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import GraphwrightError, UsageError
from .recipe import Recipe, make_recipe
from .store import disk_errors
from .strict import Loc, dotted
from .yaml_text import Document, read_file, write_text

PATHS = ("source", "calibration", "out")
SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class Said:
    """What a run was told: by a recipe's file, if there is one, and by flags, which count before it."""

    file: Document | None = None
    flags: Mapping[str, Any] = field(default_factory=dict)

    def recipe(self) -> Recipe:
        """Both in one. Raises UsageError with a line for each thing that does not fit."""
        return make_recipe(_merged(_from_here(self.file), self.flags), self._where)

    def notes(self) -> list[str]:
        """What flags replaced."""
        return [] if self.file is None else list(_replaced(self.file.name, self.file.value, self.flags))

    @contextmanager
    def at(self, *loc: str) -> Iterator[None]:
        """What goes wrong in the block is said of this place."""
        try:
            yield
        except GraphwrightError as error:
            where = self._where(loc)
            if not where:
                raise
            raise type(error)(f"{where}{dotted(loc)}: {error}") from error

    def _where(self, loc: Loc) -> str:
        return "" if self.file is None or _holds(self.flags, loc) else self.file.at(loc)


def read_recipe(path: Path | None, flags: Mapping[str, Any]) -> Said:
    """What `path` and flags say. Raises UsageError where the file is not safe YAML, or no mapping."""
    if path is None:
        return Said(None, flags)
    document = read_file(path)
    if not isinstance(document.value, dict):
        raise UsageError(f"{document.at(())}a recipe is a mapping, as in `source: model.onnx`; this is none.")
    return Said(document, flags)


def check_save(path: Path, read: Path | None) -> None:
    """Raise UsageError where a recipe cannot be written to `path`, or where it is the one that is `read`."""
    if path.suffix not in SUFFIXES or path.is_dir() or not path.parent.is_dir():
        raise UsageError(f"--save-recipe must name a .yaml file in a folder that exists, but is {path}.")
    if read is not None and path.resolve() == read.resolve():
        raise UsageError(f"--save-recipe would replace {path}, which is read: name another file.")


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write all that acts on a run, defaults filled in. Raises ResourceError where the disk is full."""
    folder = path.parent.absolute()
    values = recipe.model_dump(mode="json")
    values |= {name: _seen_from(folder, values[name]) for name in PATHS if values[name] is not None}
    values["targets"] = [
        {"target": str(entry.job), "options": entry.settings.model_dump(mode="json")} for entry in recipe.targets
    ]
    values["tolerances"] = recipe.tolerances.model_dump(mode="json", exclude_none=True)
    part = path.with_name(f".{path.name}.part")
    with disk_errors(path.parent):
        try:
            part.write_text(f"# run it again: graphwright ship --recipe {path.name}\n{write_text(values)}")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def _merged(values: Mapping[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """`flags` over `values`, key by key of mappings in both."""
    both = {name: value for name, value in flags.items() if isinstance(value, dict)}
    inner = {name: _merged(values[name], value) for name, value in both.items() if isinstance(values.get(name), dict)}
    return {**values, **flags, **inner}


def _replaced(name: str, values: Mapping[str, Any], flags: Mapping[str, Any], loc: Loc = ()) -> Iterator[str]:
    for key, value in flags.items():
        old, here = values.get(key), (*loc, key)
        if isinstance(value, dict) and isinstance(old, dict):
            yield from _replaced(name, old, value, here)
        elif key in values and old != value:
            now, before = (json.dumps(each, default=str) for each in (value, old))
            yield f"{dotted(here)}: {now} as the command line says, in place of {before} in {name}"


def _holds(flags: Any, loc: Loc) -> bool:
    """Whether what stands at `loc` was given by flags."""
    for key in loc:
        if not isinstance(flags, dict):
            return True
        if key not in flags:
            return False
        flags = flags[key]
    return bool(loc)


def _from_here(file: Document | None) -> dict[str, Any]:
    """What a file says, its paths as they are seen from the current folder."""
    if file is None:
        return {}
    folder = Path(file.name).parent.absolute()
    paths = {name: file.value[name] for name in PATHS if isinstance(file.value.get(name), str)}
    return {**file.value, **{name: _seen_here(folder, text) for name, text in paths.items()}}


def _seen_here(folder: Path, text: str) -> str:
    if not text or _is_name(text):
        return text
    path = Path(os.path.normpath(folder / text))
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _seen_from(folder: Path, text: str) -> str:
    return text if _is_name(text) else os.path.relpath(text, folder)


def _is_name(source: str) -> bool:
    """Whether a source is no path: a model of the zoo, or package.module:name."""
    head, _, name = source.rpartition(":")
    names = [*head.split("."), name]
    return source.startswith("zoo:") or (bool(head) and not head.endswith(".py") and all(map(str.isidentifier, names)))
