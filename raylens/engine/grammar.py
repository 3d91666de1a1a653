"""Grammars of structured answers, in llguidance's format: JSON schemas and tool calls.

Source of the format: https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from raylens.core.types import Tools
from raylens.engine.schemas import SCHEMA_FIELD, read_schema
from raylens.engine.tool_calls import CLOSING, OPENING, ToolCallStyle


@dataclass(frozen=True)
class AnswerFormat:
    """What an answer must look like: JSON of a schema, calls of tools, or one of both."""

    json_schema: str | None = None
    tools: Tools | None = None
    style: ToolCallStyle = ToolCallStyle.TAGGED
    leading_space: bool = False
    """Whether the answer begins with a space, as words do after some chat templates."""

    @property
    def parts(self) -> dict[str, AnswerFormat]:
        """Each schema by itself, by its field in the request."""
        parts = {}
        if self.json_schema is not None:
            parts[SCHEMA_FIELD] = AnswerFormat(self.json_schema)
        for function in self.tools.functions if self.tools else ():
            parts[function.field] = AnswerFormat(None, Tools((function,), (function.name,)))
        return parts


@dataclass(frozen=True)
class Grammar:
    """A grammar in llguidance's format."""

    text: str
    ignored: tuple[str, ...]
    """Keywords of its schemas that were left out, as "pattern '…'"."""


def build_grammar(
    answer_format: AnswerFormat, lenient: bool = False, tags_are_tokens: bool = False
) -> Grammar:
    """Return the grammar of an answer.

    With ``lenient``, keywords of JSON schemas that llguidance can't enforce are left out or
    ignored. ``tags_are_tokens`` says that the tags of a tool call are tokens of the vocabulary,
    which llguidance doesn't regard as text. Raises ``InvalidRequest`` if a schema is none.
    """
    tools = answer_format.tools
    texts: dict[str, tuple[str, str]] = {}
    """Text and field by rule."""
    if answer_format.json_schema is not None:
        texts["schema"] = answer_format.json_schema, SCHEMA_FIELD
    for number, function in enumerate(tools.functions if tools else ()):
        texts[f"arguments_{number}"] = function.parameters, function.field
    grammars: list[dict[str, Any]] = [{"lark_grammar": _build_lark(answer_format, tags_are_tokens)}]
    ignored: list[str] = []
    for rule, (text, field) in texts.items():
        schema = read_schema(text, field, lenient)
        grammars.append({"name": rule, "json_schema": schema.keywords})
        ignored += schema.ignored
    return Grammar(json.dumps({"grammars": grammars}), tuple(ignored))


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
