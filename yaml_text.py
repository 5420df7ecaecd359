"""YAML, read safely: plain data alone, each value with the place where it stands; and written so that it is read alike.

What YAML can do beyond data is refused: aliases and anchors (a small file could mean gigabytes), tags (which name types
to make), merge keys, a key twice, several documents. Words mean what they do in YAML 1.2: only true and false are
booleans, `no` and `1:30` are text, 1e-3 is a number.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml

from .errors import UsageError
from .strict import Loc

MAX_BYTES = 1 << 20
MAX_DEPTH = 16
MAX_VALUES = 10_000
PREFIX = "tag:yaml.org,2002:"
READ: dict[str, Callable[[str], Any]] = {
    "null": lambda _: None,
    "bool": lambda text: text == "true",
    "int": int,
    "float": float,
    "str": str,
}
WORDS = (
    ("null", r"~|null|", "~n"),
    ("bool", r"true|false", "tf"),
    ("int", r"[-+]?(0|[1-9][0-9]{0,17})", "-+0123456789"),
    ("float", r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]{1,3})?", "-+.0123456789"),
)


@dataclass(frozen=True)
class Document:
    """What a text says, and where: line and column, from 1, of each key and item."""

    name: str
    value: Any
    marks: Mapping[Loc, tuple[int, int]] = field(repr=False)

    def at(self, loc: Loc) -> str:
        """`name:line:column: ` of the innermost thing that stands in the text on the way to `loc`."""
        known = next((loc[:end] for end in range(len(loc), -1, -1) if loc[:end] in self.marks), None)
        return f"{self.name}: " if known is None else f"{_place(self.name, *self.marks[known])}: "


def read_file(path: Path) -> Document:
    """The document in a file. Raises UsageError where there is none, or where it is not safe YAML."""
    if not path.is_file():
        raise UsageError(f"{path} does not exist or is no file.")
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from error
    if len(content) > MAX_BYTES:
        raise UsageError(f"{path} is larger than {MAX_BYTES} bytes: that is no recipe.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{_place(str(path), line, 1)}: this line is not UTF-8 text.") from error
    return read_text(text, str(path))


def read_text(text: str, name: str) -> Document:
    """The document that `text` is. Raises UsageError with line and column where it is not safe YAML."""
    loader = _Loader(text, name)
    try:
        node = loader.get_single_node()
        marks: dict[Loc, tuple[int, int]] = {(): (1, 1)}
        value = None if node is None else loader.value_of(node, (), marks)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = _place(name, mark.line + 1, mark.column + 1) if mark else name
        raise UsageError(f"{place}: {' '.join(filter(None, (error.context, error.problem)))}.") from error
    except (ValueError, OverflowError) as error:  # PyYAML, of an escape beyond the last character
        raise UsageError(
            f"{_place(name, loader.line + 1, loader.column + 1)}: an escape names no character."
        ) from error
    return Document(name, value, marks)


def write_text(value: Any) -> str:
    """YAML that `read_text` reads as `value`, which is of dicts, lists and scalars."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def _place(name: str, line: int, column: int) -> str:
    return f"{name}:{line}:{column}"


class _Loader(yaml.SafeLoader):
    """Composes nodes as PyYAML does, refusing what is not plain data; values are made from the nodes here."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own, of YAML 1.1, must not be inherited

    def __init__(self, text: str, name: str) -> None:
        self._depth = self._count = 0
        try:
            super().__init__(text)
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            column = error.position - text.rfind("\n", 0, error.position)
            raise UsageError(
                f"{_place(name, line, column)}: the character U+{error.character:04X} is not text."
            ) from error

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        self._depth, self._count = self._depth + 1, self._count + 1
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            _refuse("anchors and aliases are not taken: write the value out", event.start_mark)
        if getattr(event, "tag", None) is not None:
            _refuse("tags are not taken: leave it out", event.start_mark)
        if self._depth > MAX_DEPTH or self._count > MAX_VALUES:
            _refuse(f"more than {MAX_DEPTH} levels or {MAX_VALUES} values are not taken", event.start_mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def value_of(self, node: yaml.Node, loc: Loc, marks: dict[Loc, tuple[int, int]]) -> Any:
        """Dicts, lists and scalars; `marks` gets the place of each key and item."""
        if isinstance(node, yaml.MappingNode):
            found: dict[str, Any] = {}
            for key, item in node.value:
                name = self._key(key, found)
                marks[*loc, name] = (key.start_mark.line + 1, key.start_mark.column + 1)
                found[name] = self.value_of(item, (*loc, name), marks)
            return found
        if isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                marks[*loc, index] = (item.start_mark.line + 1, item.start_mark.column + 1)
            return [self.value_of(item, (*loc, index), marks) for index, item in enumerate(node.value)]
        return READ[node.tag.removeprefix(PREFIX)](_text(node))

    def _key(self, node: yaml.Node, known: Mapping[str, Any]) -> str:
        if not isinstance(node, yaml.ScalarNode):
            _refuse("a key must be a word", node.start_mark)
        if node.value == "<<" and node.style is None:
            _refuse("merge keys are not taken: write the keys out", node.start_mark)
        if node.value in known:
            _refuse(f"the key {node.value!r} stands here twice", node.start_mark)
        return _text(node)


class _Dumper(yaml.SafeDumper):
    """Quotes what YAML 1.1 or 1.2 would read as something else than text."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        return True


for _name, _pattern, _first in WORDS:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(
            f"{PREFIX}{_name}", re.compile(rf"(?:{_pattern})\Z"), [*_first, *[""] * (_name == "null")]
        )


def _text(node: yaml.Node) -> str:
    text = str(node.value)
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        _refuse("half of a character pair is not text", node.start_mark)
    return text


def _refuse(why: str, mark: Any) -> NoReturn:
    raise yaml.MarkedYAMLError(problem=why, problem_mark=mark)
