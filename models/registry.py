"""The registry of models: a decorator on the function that returns a model's ModelSpec."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..spec import ModelSpec, pick


@dataclass(frozen=True)
class Entry:
    """A model of the zoo. `configurations`: name -> number of parameters."""

    name: str
    kind: str
    paper: str
    configurations: dict[str, int]
    build: Callable[[str], ModelSpec]


ENTRIES: dict[str, Entry] = {}


def load(name: str) -> ModelSpec:
    """The ModelSpec of `name` or `name@configuration`. Raises UsageError for an unknown one."""
    model, _, configuration = name.partition("@")
    entry = ENTRIES[pick("model of the zoo", model, ENTRIES)]
    chosen = configuration or next(iter(entry.configurations))
    return entry.build(pick(f"configuration of {model}", chosen, entry.configurations))
