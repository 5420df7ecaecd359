"""The JSON Schema of recipes, for editors: each target with the options that it has."""

from __future__ import annotations

from typing import Any

from .passes.lower import TARGETS
from .recipe import Recipe
from .runtimes import RUNTIMES
from .spec import Target


def recipe_schema() -> dict[str, Any]:
    """A recipe as `graphwright ship --recipe` reads it from YAML."""
    schema = Recipe.model_json_schema()
    definitions = schema["$defs"]
    del definitions["RecipeTarget"]
    for target in TARGETS.values():
        options = RUNTIMES[target.runtime].settings.model_json_schema(
            ref_template=f"#/$defs/{target.name}/$defs/{{model}}"
        )
        definitions[target.name] = {**options, "title": f"options of {target.name}"}
    schema["properties"]["targets"]["items"] = {"oneOf": [_text(), *map(_entry, TARGETS.values())]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "graphwright recipe"}


def _text() -> dict[str, Any]:
    return {"type": "string", "pattern": "|".join(map(_pattern, TARGETS.values()))}


def _entry(target: Target) -> dict[str, Any]:
    return {
        "type": "object",
        "title": target.name,
        "properties": {
            "target": {"type": "string", "pattern": _pattern(target)},
            "options": {"$ref": f"#/$defs/{target.name}"},
        },
        "required": ["target"],
        "additionalProperties": False,
    }


def _pattern(target: Target) -> str:
    """target[@device][:precision]; which devices there are is said when a recipe is read."""
    precisions = "|".join(target.precisions)
    return rf"^{target.name}(@[a-z0-9+._-]+)?(:({precisions}))?$"
