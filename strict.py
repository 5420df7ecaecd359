"""Strict: the base of what users write (recipes, a target's options); and what does not fit, in words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from .errors import UsageError
from .spec import pick

Loc = tuple[int | str, ...]
SAID = "said"  # the type of an error whose message says all of it
PLAIN = {  # pydantic's words where they are Python's
    "bool_type": "Input should be true or false",
    "dict_type": "Input should be a mapping",
    "model_type": "Input should be a mapping",
    "path_type": "Input should be a path",
    "string_type": "Input should be text",
    "tuple_type": "Input should be a list",
}


class Strict(BaseModel):
    """Unknown names are errors that suggest the nearest; so are wrong types, infinity and NaN. Never changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @model_validator(mode="wrap")
    @classmethod
    def _name_unknown(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(value)
        except ValidationError as error:
            raise invalid(cls._named(each) for each in error.errors()) from error

    @classmethod
    def _named(cls, error: ErrorDetails) -> InitErrorDetails:
        loc, kind, message = error["loc"], error["type"], error["msg"]
        if kind == "extra_forbidden" and len(loc) == 1:
            kind, message = SAID, why_not("key", str(loc[0]), cls.model_fields)
        return wrong(loc, message, error["input"], kind)


def wrong(loc: Loc, message: str, value: Any = None, kind: str = SAID) -> InitErrorDetails:
    """One thing that does not fit."""
    return {"type": PydanticCustomError(kind, "{text}", {"text": message}), "loc": loc, "input": value}


def invalid(errors: Iterable[InitErrorDetails]) -> ValidationError:
    """What a validator raises to name several things, each at its own place."""
    return ValidationError.from_exception_data("what was given", list(errors))


def why_not(kind: str, name: str, allowed: Iterable[str]) -> str:
    """Why `name` is none of `allowed`, with the nearest of them; '' if it is one."""
    try:
        pick(kind, name, allowed)
    except UsageError as error:
        return str(error)
    return ""


def sentences(error: ValidationError, where: Callable[[Loc], str] = lambda _: "") -> list[str]:
    """A sentence for each thing that does not fit: where it stands, its name, what is allowed and what came."""
    return [f"{where(each['loc'])}{_short(_sentence(each), 600)}" for each in error.errors()]


def _sentence(error: ErrorDetails) -> str:
    name, kind, message = dotted(error["loc"]), error["type"], error["msg"]
    if kind == SAID:
        return f"{name}: {message}" if name else message
    if kind == "missing":
        return f"{name} is missing."
    if kind == "value_error":  # of a validator over several values: its own words say all of it
        return f"{name}: {message.removeprefix('Value error, ')}."
    message = PLAIN.get(kind, message)
    return f"{name}: {message}, but is {_short(repr(error['input']), 60)}."


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}..."


def dotted(loc: Sequence[int | str]) -> str:
    """A place as a user writes it: `targets.0.options.threads`."""
    return ".".join(map(str, loc))
