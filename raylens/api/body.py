"""What request bodies share, beside :mod:`raylens.core.wire`."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema

from raylens.core.recipe import RECIPE


def _name_or_changes(value: Any) -> Any:
    """A form can hold the object, and that there is none, as text only."""
    if isinstance(value, str) and value.strip() in ("", "null"):
        return None
    if isinstance(value, str) and value.lstrip().startswith(("{", "[")):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise ValueError("an object is needed, and this is not JSON") from None
    if value is not None and not isinstance(value, (str, dict)):
        raise ValueError("a recipe's name, or an object of its fields, is needed")
    return value


def _recipe_schema() -> dict[str, Any]:
    schema = RECIPE.json_schema()
    definitions = schema.pop("$defs")
    for name, value in schema["properties"].items():
        if "$ref" in value:
            schema["properties"][name] = definitions[value["$ref"].rsplit("/", 1)[-1]]
    schema["properties"]["name"] = {
        "type": "string",
        "description": "the recipe that the other fields change",
    }
    return {"anyOf": [{"type": "string"}, schema, {"type": "null"}], "default": None}


RecipeField = Annotated[
    str | dict[str, Any] | None, BeforeValidator(_name_or_changes), WithJsonSchema(_recipe_schema())
]
"""Our own extension of every dialect: how the request's pictures are prepared
(:mod:`raylens.core.recipe`)."""
