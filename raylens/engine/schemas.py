"""JSON schemas of requests, in the form that llguidance enforces.

Sources: JSON Schema 2020-12; OpenAPI 3.0.3 for ``nullable``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from raylens.core.errors import InvalidRequest

SCHEMA_FIELD = "response_format"
TOOLS_FIELD = "tools"
MAX_SCHEMA_CHARS = 65_536
"""A matcher's memory grows with its schema: 64 KiB of properties take about 25 MB."""

# Between tokens of JSON there may be one space after a comma or a colon, and nothing else. With
# free white space, a small model that goes off track fills the answer with it until max_tokens.
_SEPARATORS = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
_LENIENT = {"lenient": True, "coerce_one_of": True}
_COMBINATORS = frozenset({"allOf", "anyOf", "oneOf", "$ref", "if", "then", "else", "not"})
_HAVE_A_TYPE = _COMBINATORS | {"type", "enum", "const"}
_OF_OBJECTS = frozenset({"properties", "patternProperties", "additionalProperties", "required"})
_OF_ARRAYS = frozenset({"items", "prefixItems"})
MAX_PATTERN_CHARS = 4096
"""Of all patterns of a schema. The time for an answer's first token grows with the square of a
pattern's length: 4,096 characters took 20 ms, and 36,000 took 0.45 s."""
_MAPS = frozenset({"properties", "$defs", "definitions", "patternProperties"})
"""Keywords whose values are schemas by name."""
_NOT_SCHEMAS = frozenset({"const", "default", "enum", "example", "examples"})
"""Keywords whose values may look like schemas, and are none."""
_UNSUPPORTED_PATTERN = re.compile(r"\(\?<?[=!]|\(\?P=|\\[bBZ1-9kc]|\[\^?\]")
"""Look-around, word boundaries and back-references, which no finite automaton can follow, and what
of ECMAScript's syntax llguidance's regular expressions lack."""
_LARGEST_BOUND = 2**53
"""Bounds from here on stand for "none": code generators write the limits of int64 and float64."""
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")

Pointer = tuple[str, ...]
"""A place in a schema: the keys that lead there."""


@dataclass(frozen=True)
class Schema:
    keywords: dict[str, Any]
    ignored: tuple[str, ...]
    """Keywords that were left out, as "pattern '…'"."""


def read_schema(text: str, field: str, lenient: bool) -> Schema:
    """Return a schema with closed objects and llguidance's options.

    With ``lenient``, what llguidance can't enforce is left out.

    llguidance must not get the raw text. It would paste the text verbatim into a grammar, which
    allows injection. Raises ``InvalidRequest`` if the text is no schema.
    """
    if len(text) > MAX_SCHEMA_CHARS:
        raise InvalidRequest(
            f"{field}: the schema has {len(text)} characters; the limit is {MAX_SCHEMA_CHARS}",
            field,
            MAX_SCHEMA_CHARS,
            len(text),
        )
    ignored: list[str] = []
    try:
        schema = json.loads(text)
        _check_patterns(schema, field)
        _complete(schema)
        if lenient:
            ignored += _drop_unsupported(schema)
        close_objects(schema)
        _allow_nulls(schema)
        json.dumps(schema)
    except (ValueError, RecursionError) as error:
        raise invalid(f"the schema is not valid JSON: {reason(str(error))}", field) from None
    if not isinstance(schema, dict):
        raise invalid("the schema must be a JSON object", field)
    if "x-guidance" in schema:  # would set llguidance's options
        raise invalid("x-guidance is not supported", field)
    schema["x-guidance"] = _SEPARATORS | (_LENIENT if lenient else {})
    return Schema(schema, tuple(dict.fromkeys(ignored)))


def _check_patterns(schema: Any, field: str) -> None:
    """Raise ``InvalidRequest`` if a schema's patterns are too long."""
    count = sum(map(len, _find_patterns(schema)))
    if count > MAX_PATTERN_CHARS:
        raise InvalidRequest(
            f"{field}: the schema's patterns have {count} characters;"
            f" the limit is {MAX_PATTERN_CHARS}",
            field,
            MAX_PATTERN_CHARS,
            count,
        )


def _find_patterns(schema: Any) -> Iterator[str]:
    """Yield whatever may be a pattern: it may be the name of a property, too."""
    if isinstance(schema, list):
        for item in schema:
            yield from _find_patterns(item)
    elif isinstance(schema, dict):
        if isinstance(schema.get("pattern"), str):
            yield schema["pattern"]
        if isinstance(schema.get("patternProperties"), dict):
            yield from schema["patternProperties"]
        for item in schema.values():
            yield from _find_patterns(item)


def close_objects(schema: Any) -> None:
    """Forbid further properties in each object that lists its properties.

    An object that says something about other properties stays as it is, and so does one that is
    combined with other schemas: closed, they would contradict each other. That includes
    definitions that a combined schema refers to.
    """
    open_definitions: set[Pointer] = set()
    objects: dict[Pointer, dict[str, Any]] = {}
    count = -1
    while len(open_definitions) > count:  # an open definition may open others
        count = len(open_definitions)
        objects = {}
        _find_closed(schema, (), False, open_definitions, objects)
    for found in objects.values():
        found.pop("unevaluatedProperties", None)
        found["additionalProperties"] = False


def _find_closed(
    schema: Any,
    place: Pointer,
    is_open: bool,
    open_definitions: set[Pointer],
    closed: dict[Pointer, dict[str, Any]],
) -> None:
    """Collect the objects to close in ``closed``, and the definitions that must stay open.

    ``is_open`` says that ``schema`` is combined with others.
    """
    if isinstance(schema, list):
        for number, item in enumerate(schema):
            _find_closed(item, (*place, str(number)), is_open, open_definitions, closed)
    if not isinstance(schema, dict):
        return
    is_open = is_open or place in open_definitions
    properties = schema.get("properties")
    lists_properties = isinstance(properties, dict) and bool(properties)
    joins = is_open or lists_properties
    for key, value in schema.items():
        if key == "$ref" and joins:
            open_definitions.add(_parse_reference(value))
        if key in _MAPS and isinstance(value, dict):
            stays_open = is_open and key == "patternProperties"
            for name, member in value.items():
                _find_closed(member, (*place, key, name), stays_open, open_definitions, closed)
        elif key not in _NOT_SCHEMAS:
            is_joined = key == "allOf" and isinstance(value, list) and len(value) > 1
            stays_open = key in _COMBINATORS and (joins or is_joined)
            _find_closed(value, (*place, key), stays_open, open_definitions, closed)
    if lists_properties and not is_open and not _is_extended(schema):
        closed[place] = schema


def _is_extended(schema: dict[str, Any]) -> bool:
    """Whether an object may have properties that it doesn't list."""
    required = schema.get("required")
    names = required if isinstance(required, list) else []
    return (
        not _COMBINATORS.isdisjoint(schema)
        or "additionalProperties" in schema
        or "patternProperties" in schema
        or schema.get("unevaluatedProperties", False) is not False
        or any(name not in schema["properties"] for name in names)
    )


def _parse_reference(reference: Any) -> Pointer:
    """Return the place that a JSON pointer in a URI fragment (RFC 6901) names."""
    keys = unquote(str(reference)).split("/")[1:]
    return tuple(key.replace("~1", "/").replace("~0", "~") for key in keys)


def _schemas(schema: Any) -> Iterator[dict[str, Any]]:
    """Yield the schema and all schemas within it, the inner ones first."""
    if isinstance(schema, list):
        for item in schema:
            yield from _schemas(item)
    if not isinstance(schema, dict):
        return
    for key, value in list(schema.items()):
        if key in _MAPS:
            for member in value.values() if isinstance(value, dict) else ():
                yield from _schemas(member)
        elif key not in _NOT_SCHEMAS:
            yield from _schemas(value)
    yield schema


def _complete(schema: Any) -> None:
    """Drop keywords that are null, and name the type of schemas that describe objects or arrays.

    In JSON Schema, ``properties`` alone allow a number, too. Nobody means that.
    """
    for found in _schemas(schema):
        for key in [key for key, value in found.items() if value is None]:
            if key not in _NOT_SCHEMAS or key == "enum":
                del found[key]
        if _HAVE_A_TYPE.isdisjoint(found):
            if not _OF_OBJECTS.isdisjoint(found):
                found["type"] = "object"
            elif not _OF_ARRAYS.isdisjoint(found):
                found["type"] = "array"


def _allow_nulls(schema: Any) -> None:
    """Spell OpenAPI's ``nullable: true`` as JSON Schema does."""
    for found in _schemas(schema):
        if found.pop("nullable", None) is True and found is not schema:
            described = dict(found)
            found.clear()
            found["anyOf"] = [described, {"type": "null"}]


def _drop_unsupported(schema: Any) -> Iterator[str]:
    """Drop keywords that llguidance refuses, and yield a description of each."""
    for found in _schemas(schema):
        for key in list(found):
            if _is_unsupported(found, key):
                yield f"{key} {str(found.pop(key))[:64]!r}"
                if key == "patternProperties":  # any other property may be one of these
                    found["additionalProperties"] = True


def _is_unsupported(schema: dict[str, Any], key: str) -> bool:
    value = schema[key]
    if key in ("pattern", "patternProperties"):
        patterns = [value] if isinstance(value, str) else value if isinstance(value, dict) else []
        return any(_UNSUPPORTED_PATTERN.search(pattern) for pattern in patterns)
    if key in _BOUNDS:
        return isinstance(value, int | float) and abs(value) >= _LARGEST_BOUND
    # Only if all properties are required, llguidance can count them.
    return key in ("minProperties", "maxProperties") and bool(schema.get("properties"))


def reason(error: str) -> str:
    """Return one short line for one of llguidance's errors."""
    if error.startswith("NoExtension"):  # its parser is stuck
        return "nothing satisfies the schema"
    line = " ".join(error.split())
    return line if len(line) <= 200 else line[:199] + "…"


def invalid(message: str, field: str = SCHEMA_FIELD) -> InvalidRequest:
    return InvalidRequest(f"{field}: {message}", field)
