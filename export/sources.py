"""Sources: what a user may name as a model, and the ModelSpec behind it."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import GraphwrightError, InputError, UsageError
from ..models.registry import load as load_zoo
from ..spec import ModelSpec, pick

FORMS = "file.py:name, package.module:name, a Hugging Face model folder, model.onnx, model.pt2, or zoo:name"


@dataclass(frozen=True)
class Source:
    """A loaded source: the spec, and how it was found, for the plan."""

    text: str
    kind: str
    spec: ModelSpec
    found: str


def load_source(source: str | Path | ModelSpec | Source, *, allow_code: bool = False) -> Source:
    """The ModelSpec behind `source`; `allow_code` lets a .pt2 program, which may hold code, be read.

    Raises UsageError where it is of no known form or a name in it is unknown, InputError where it cannot be read or its
    code raises.
    """
    if isinstance(source, Source):
        return source
    if isinstance(source, ModelSpec):
        return Source(source.name, "ModelSpec", source, type(source.module).__name__)
    text = str(source)
    head, _, name = text.rpartition(":")
    if allow_code and not text.endswith(".pt2"):
        raise UsageError(f"{text}: only a .pt2 program has code to be allowed; leave --allow-code out.")
    if text.startswith("zoo:"):
        return Source(text, "zoo", load_zoo(text.removeprefix("zoo:")), "the model zoo")
    if text.endswith(".pt2"):
        from .pt2 import from_pt2

        spec, found = from_pt2(Path(text), allow_code=allow_code)
        return Source(text, "pt2 program", spec, found)
    if head.endswith(".py"):
        return _from_code(text, "python file", import_file(Path(head)), name)
    if text.endswith(".onnx"):
        from .onnx_source import from_onnx

        return Source(text, "onnx file", from_onnx(Path(text)), "an ONNX graph, its own reference")
    if text and Path(text).is_dir():
        from .huggingface import from_folder

        spec, found = from_folder(Path(text))
        return Source(text, "hugging face folder", spec, found)
    if head and "/" not in text and all(part.isidentifier() for part in head.split(".")):
        return _from_code(text, "python module", _import_module(head), name)
    if text and Path(text).exists():
        hint = f" Name the ModelSpec in it, as in {text}:spec." if text.endswith(".py") else ""
        raise UsageError(f"{text} is a file of no known form.{hint} A source is {FORMS}.")
    if "/" in text or Path(text).suffix:
        raise InputError(f"{text} does not exist. A source is {FORMS}.")
    raise UsageError(f"{text!r} is no source. A source is {FORMS}.")


def import_file(path: Path) -> Any:
    """The module of a Python file. Raises InputError where there is none or it raises."""
    if not path.is_file():
        raise InputError(f"{path} does not exist or is no file. A source is {FORMS}.")
    # a name of its own: a user's onnx.py or json.py must not stand in for the module of that name
    name = f"graphwright_source_{path.stem}"
    module_spec = importlib.util.spec_from_file_location(name, path)
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module  # dataclasses and pickling look their module up
    with _raising(str(path), "when it was imported"), _neighbours(path.resolve().parent):
        module_spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def _neighbours(folder: Path) -> Iterator[None]:
    """Inside the block the modules in `folder` come first; after it last, for what functions import when called."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder))
        if str(folder) not in sys.path:
            sys.path.append(str(folder))


@contextlib.contextmanager
def _raising(what: str, when: str = "") -> Iterator[None]:
    """Whatever the user's code raises is an InputError that says so; also exit(), which would end this command."""
    try:
        yield
    except GraphwrightError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(f"{what} raised {type(error).__name__}{' ' * bool(when)}{when}: {error}") from error


def _import_module(name: str) -> Any:
    with _raising(name, "when it was imported"), _neighbours(Path.cwd()):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
                raise UsageError(f"There is no module {name!r} here. A source is {FORMS}.") from error
            raise InputError(f"{name} could not be imported: {error}") from error


def _from_code(text: str, kind: str, module: Any, name: str) -> Source:
    public = [key for key, value in vars(module).items() if isinstance(value, ModelSpec) or callable(value)]
    if not hasattr(module, name):
        pick(f"name in {text.rpartition(':')[0]}", name, [key for key in public if not key.startswith("_")])
    made = getattr(module, name)
    if not isinstance(made, ModelSpec) and callable(made):
        with _raising(text):
            made = made()
    if not isinstance(made, ModelSpec):
        raise InputError(
            f"{text} is a {type(made).__name__}; it must be a graphwright.ModelSpec or a function that returns one."
        )
    return Source(text, kind, made, f"{type(made.module).__name__} in {text.rpartition(':')[0]}")
