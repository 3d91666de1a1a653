"""The JSON schema of an answer, in the forms in which clients of several servers send it."""

from __future__ import annotations

from typing import Any

from raylens.api.openai_tools import dump_schema
from raylens.core.errors import InvalidRequest
from raylens.core.wire import is_absent

ANY_OBJECT = {"type": "object"}
_SCHEMA_TYPES = ("json_schema", "json_object", "json")
_SCHEMA_KEYS = ("schema", "value")
"""Where a schema stands: OpenAI's and TGI's key."""


def parse_response_format(response_format: Any, field: str = "response_format") -> str | None:
    """Return the answer's schema as JSON, or None for plain text.

    Besides OpenAI's form, reads ``{"type": "json_object", "value": …}`` (TGI), ``{"type":
    "json_object", "schema": …}`` (Fireworks, llama.cpp), and a schema that stands in the place of
    ``json_schema``. Raises ``InvalidRequest``.
    """
    if is_absent(response_format):
        return None
    if not isinstance(response_format, dict):
        raise InvalidRequest(f"{field}: expected an object with a type", field)
    kind = response_format.get("type")
    if is_absent(kind):
        kind = "json_schema" if "json_schema" in response_format else "text"
    if kind == "text":
        return None
    if kind not in _SCHEMA_TYPES:
        raise InvalidRequest(
            f"{field}.type: {str(kind)[:64]!r}; expected 'text', 'json_object' or 'json_schema'",
            f"{field}.type",
        )
    schema, schema_field = _find_schema(response_format, field)
    if schema is None:
        if kind == "json_schema":
            raise InvalidRequest(f"{schema_field}: Field required", schema_field)
        schema = ANY_OBJECT
    if not isinstance(schema, dict):
        raise InvalidRequest(f"{schema_field}: expected a JSON schema", schema_field)
    return dump_schema(schema or ANY_OBJECT, field)


def _find_schema(response_format: dict[str, Any], field: str) -> tuple[Any, str]:
    """Return the schema, or None, and the name of its field."""
    named = response_format.get("json_schema")
    if isinstance(named, dict):
        field = f"{field}.json_schema"
        for key in _SCHEMA_KEYS:
            if named.get(key) is not None:
                return named[key], f"{field}.{key}"
        if not {"type", "properties", "$ref", "anyOf"}.isdisjoint(named):
            return named, field
        return (ANY_OBJECT if "name" in named else None), f"{field}.schema"
    for key in _SCHEMA_KEYS:
        if response_format.get(key) is not None:
            return response_format[key], f"{field}.{key}"
    return named, f"{field}.json_schema"
