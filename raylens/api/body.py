"""Fields of request bodies that several dialects share; see also :mod:`raylens.core.wire`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema

from raylens.core.recipe import RECIPE
from raylens.core.wire import parse_json_text


def parse_object(value: Any) -> Any:
    """Return an object that a form sends as JSON text. Raises ``ValueError``."""
    if not isinstance(value, str):
        return value
    try:
        return parse_json_text(value)
    except ValueError as error:
        raise ValueError(f"expected an object; {error}") from None


def _parse_recipe(value: Any) -> Any:
    """Return a recipe's name, an object of changes, or None. A form sends all three as text.

    Raises ``ValueError`` for anything else.
    """
    if isinstance(value, str) and value.strip() in ("", "null"):
        return None
    if isinstance(value, str) and value.lstrip().startswith(("{", "[")):
        value = parse_object(value)
    if value is not None and not isinstance(value, (str, dict)):
        raise ValueError("expected a recipe's name or an object of its fields")
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
    str | dict[str, Any] | None, BeforeValidator(_parse_recipe), WithJsonSchema(_recipe_schema())
]
"""Recipe for the request's pictures (:mod:`raylens.core.recipe`): our own extension of every
dialect."""
