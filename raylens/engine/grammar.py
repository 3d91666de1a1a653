"""Grammars of structured answers, in llguidance's format: JSON schemas and tool calls.

Source of the format: https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from raylens.core.errors import InvalidRequest
from raylens.core.types import Tools
from raylens.engine.tool_calls import CLOSING, OPENING, ToolCallStyle

SCHEMA_FIELD = "response_format"
TOOLS_FIELD = "tools"
MAX_SCHEMA_CHARS = 65_536
"""A matcher's memory grows with its schema: 64 KiB of properties take about 25 MB."""

# Between tokens of JSON there may be one space after a comma or a colon, and nothing else. With
# free white space, a small model that goes off track fills the answer with it until max_tokens.
_SEPARATORS = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
_LENIENT = {"lenient": True, "coerce_one_of": True}
_COMBINATORS = frozenset({"allOf", "anyOf", "oneOf", "$ref", "if", "then", "else", "not"})
_NOT_SCHEMAS = frozenset({"const", "default", "enum", "example", "examples"})
"""Keywords whose values may look like schemas, and are none."""


@dataclass(frozen=True)
class AnswerFormat:
    """What an answer must look like: JSON of a schema, calls of tools, or one of both."""

    json_schema: str | None = None
    tools: Tools | None = None
    style: ToolCallStyle = ToolCallStyle.TAGGED
    leading_space: bool = False
    """Whether the answer begins with a space, as words do after some chat templates."""


def build_grammar(
    answer_format: AnswerFormat, lenient: bool = False, tags_are_tokens: bool = False
) -> str:
    """Return the grammar of an answer, as JSON.

    With ``lenient``, keywords of JSON schemas that llguidance doesn't know are ignored.
    ``tags_are_tokens`` says that the tags of a tool call are tokens of the vocabulary, which
    llguidance doesn't regard as text. Raises ``InvalidRequest`` if a schema is none.
    """
    tools = answer_format.tools
    schemas = {}
    if answer_format.json_schema is not None:
        schemas["schema"] = _read_schema(answer_format.json_schema, SCHEMA_FIELD, lenient)
    for number, function in enumerate(tools.functions if tools else ()):
        field = f"{TOOLS_FIELD}.{number}.function.parameters"
        schemas[f"arguments_{number}"] = _read_schema(function.parameters, field, lenient)
    lark = _build_lark(answer_format, tags_are_tokens)
    grammars: list[dict[str, Any]] = [{"lark_grammar": lark}]
    grammars += [{"name": name, "json_schema": schema} for name, schema in schemas.items()]
    return json.dumps({"grammars": grammars})


def _build_lark(answer_format: AnswerFormat, tags_are_tokens: bool) -> str:
    """Return the rules around the schemas."""
    tools = answer_format.tools
    start = 'start: " "' if answer_format.leading_space else "start:"
    if tools is None:
        return f"{start} @schema"
    numbers = [
        number
        for number, function in enumerate(tools.functions)
        if not tools.required or function.name in tools.required
    ]
    if answer_format.style is ToolCallStyle.ARGUMENTS and len(tools.required) == 1:
        return f"{start} @arguments_{numbers[0]}"
    opening, closing = (OPENING, CLOSING) if tags_are_tokens else map(_literal, (OPENING, CLOSING))
    bodies = " | ".join(f"body_{number}" for number in numbers)
    rules = [f'call: "\\n" ({bodies}) "\\n" {closing}']
    for number in numbers:
        name = json.dumps(tools.functions[number].name)
        begin = _literal(f'{{"name": {name}, "arguments": ')
        rules.append(f'body_{number}: {begin} @arguments_{number} "}}"')
    if tools.required:
        rules.append(f"{start} {opening} call")
    elif answer_format.json_schema is not None:
        more = f'("\\n" {opening} call)*' if tools.parallel else ""
        rules.append(f"{start} (@schema | {opening} call {more})")
    else:
        # Free text ends at the first tag in it.
        repeated = "*" if tools.parallel else "?"
        rules += [r"TEXT: /(.|\n)*/", f"start: (text_and_tag call){repeated} TEXT"]
        is_lazy = "" if tags_are_tokens else "[lazy]"
        rules.append(f"text_and_tag{is_lazy}: TEXT {opening}")
    return "\n".join(["%llguidance {}", *rules])


def _literal(text: str) -> str:
    """Return a string of a Lark grammar."""
    return json.dumps(text)


def _read_schema(json_schema: str, field: str, lenient: bool) -> dict[str, Any]:
    """Return the schema as an object, with closed objects and llguidance's options.

    llguidance must not get the raw text. It would paste the text verbatim into a grammar, which
    allows injection.
    """
    if len(json_schema) > MAX_SCHEMA_CHARS:
        raise InvalidRequest(
            f"{field}: the schema has {len(json_schema)} characters; the limit is"
            f" {MAX_SCHEMA_CHARS}",
            field,
            MAX_SCHEMA_CHARS,
            len(json_schema),
        )
    try:
        schema = json.loads(json_schema)
        close_objects(schema)
        json.dumps(schema)
    except (ValueError, RecursionError) as error:
        raise invalid(f"the schema is not valid JSON: {reason(str(error))}", field) from None
    if not isinstance(schema, dict):
        raise invalid("the schema must be a JSON object", field)
    if "x-guidance" in schema:  # would set llguidance's options
        raise invalid("x-guidance is not supported", field)
    schema["x-guidance"] = _SEPARATORS | (_LENIENT if lenient else {})
    return schema


def close_objects(schema: Any, is_open: bool = False) -> None:
    """Forbid further properties in each object that lists its properties.

    An object that says something about other properties stays as it is, and so does one that is
    combined with other schemas: closed, they would contradict each other. ``is_open`` says that
    ``schema`` is combined with others.
    """
    if isinstance(schema, list):
        for item in schema:
            close_objects(item, is_open)
    if not isinstance(schema, dict):
        return
    combines = not _COMBINATORS.isdisjoint(schema)
    lists_properties = isinstance(schema.get("properties"), dict) and schema["properties"]
    for key, value in schema.items():
        if key in _NOT_SCHEMAS:
            continue
        if key in ("properties", "$defs", "definitions", "patternProperties"):
            for member in value.values() if isinstance(value, dict) else ():
                close_objects(member, key != "properties" and is_open)
            continue
        is_branch = key in _COMBINATORS
        is_joined = key == "allOf" and isinstance(value, list) and len(value) > 1
        close_objects(value, is_branch and (is_open or is_joined or bool(lists_properties)))
    says_more = {"additionalProperties", "patternProperties", "unevaluatedProperties"} & set(schema)
    required = schema.get("required")
    missing = isinstance(required, list) and any(
        name not in schema["properties"] for name in required if lists_properties
    )
    if lists_properties and not (says_more or combines or is_open or missing):
        schema["additionalProperties"] = False


def reason(error: str) -> str:
    """Return one short line for one of llguidance's errors."""
    if error.startswith("NoExtension"):  # its parser is stuck
        return "nothing satisfies the schema"
    line = " ".join(error.split())
    return line if len(line) <= 200 else line[:199] + "…"


def invalid(message: str, field: str = SCHEMA_FIELD) -> InvalidRequest:
    return InvalidRequest(f"{field}: {message}", field)
