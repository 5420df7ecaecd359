"""What repeated options say: --option [TARGET.]KEY=VALUE, --range DIM=MIN:OPT:MAX, --tolerance PLACE.LIMIT=VALUE."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import UsageError
from ..passes.lower import settings_of
from ..recipe import Recipe, RecipeTarget, settings_class
from ..spec import Job, pick
from ..yaml_text import read_text


def ranges_of(texts: Sequence[str] | None) -> dict[str, list[Any]]:
    """`DIM=MIN:OPT:MAX` -> what a recipe has under `ranges`."""
    found: dict[str, list[Any]] = {}
    for text in texts or ():
        dim, bounds = _split("--range", text, "sequence=1:128:512")
        _once("--range", dim, found, [_value(part) for part in bounds.split(":")])
    return found


def tolerances_of(texts: Sequence[str] | None) -> dict[str, dict[str, dict[str, Any]]]:
    """`precisions.fp16.absolute=0.02` or `outputs.NAME.absolute=0.02` -> what a recipe has under `tolerances`."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    example = "precisions.fp16.absolute=0.02"
    for text in texts or ():
        path, value = _split("--tolerance", text, example)
        place, _, rest = path.partition(".")
        name, _, limit = rest.rpartition(".")
        if not name:
            raise UsageError(f"--tolerance {text} must be as in {example} or outputs.NAME.absolute=0.02.")
        _once("--tolerance", limit, found.setdefault(place, {}).setdefault(name, {}), _value(value))
    return found


def options_of(texts: Sequence[str] | None, jobs: Sequence[Job]) -> dict[Job, dict[str, Any]]:
    """`[TARGET.]KEY=VALUE` -> the options of each job that it is for.

    TARGET is a target's name, or the whole `target[@device][:precision]`; without one, KEY is set of every target that
    has it. Raises UsageError where no target has it, where its value does not fit, or where two say different things.
    """
    found: dict[Job, dict[str, Any]] = {job: {} for job in jobs}
    example = "ort-cpu.threads=2"
    for text in texts or ():
        path, value = _split("--option", text, example)
        target, dot, key = path.rpartition(".")
        if dot and not target:
            raise UsageError(f"--option {text} must be as in --option {example}.")
        for job in _meant(target, key, jobs):
            _once(f"--option for {job}:", key, found[job], _fitting(job, key, value))
    return found


def with_options(recipe: Recipe, texts: Sequence[str] | None) -> tuple[Recipe, list[str]]:
    """The recipe with the options that `texts` set; and what they replaced."""
    given = options_of(texts, recipe.jobs)
    notes = [
        f"{job}: option {key} {json.dumps(value)} as the command line says, in place of "
        f"{json.dumps(recipe.options[job][key])} in the recipe"
        for job, options in given.items()
        for key, value in options.items()
        if recipe.options[job].get(key, value) != value
    ]
    targets = [_with(entry, given[entry.job]) for entry in recipe.targets]
    return recipe.model_copy(update={"targets": tuple(targets)}), notes


def in_words(options: Mapping[str, Any]) -> str:
    """`, options threads=2, ...`; '' for none."""
    return f", options {', '.join(f'{key}={json.dumps(value)}' for key, value in options.items())}" if options else ""


def _with(entry: RecipeTarget, options: Mapping[str, Any]) -> RecipeTarget:
    both = {**entry.options, **options}
    settings_of(entry.job, both)
    return RecipeTarget(target=entry.target, options=both)


def _meant(target: str, key: str, jobs: Sequence[Job]) -> list[Job]:
    if not target:
        having = [job for job in jobs if key in settings_class(job).model_fields]
        if not having:
            known = {name for job in jobs for name in settings_class(job).model_fields}
            pick(f"option for {', '.join(map(str, jobs))}", key, known)
        return having
    names = {text for job in jobs for text in (job.target, str(job))}
    meant = [job for job in jobs if target in (job.target, str(job))]
    if not meant:
        pick("target in --option", target, names)
    for job in meant:
        pick(f"option for {job}", key, settings_class(job).model_fields)
    return meant


def _fitting(job: Job, key: str, text: str) -> Any:
    """The value as a recipe would have it; or the text itself, where the option takes text."""
    value = _value(text)
    return text if value != text and not _fits(job, key, value) and _fits(job, key, text) else value


def _fits(job: Job, key: str, value: Any) -> bool:
    try:
        settings_of(job, {key: value})
    except UsageError:
        return False
    return True


def _value(text: str) -> Any:
    try:
        return read_text(text, "value").value
    except UsageError:
        return text


def _split(option: str, text: str, example: str) -> tuple[str, str]:
    left, equals, right = text.partition("=")
    if not (left and equals):
        raise UsageError(f"{option} {text} must be as in {option} {example}.")
    return left, right


def _once(option: str, name: str, found: dict[str, Any], value: Any) -> None:
    if found.get(name, value) != value:
        raise UsageError(f"{option} {name} is given as {found[name]} and as {value}: give it once.")
    found[name] = value
