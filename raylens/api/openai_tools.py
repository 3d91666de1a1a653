"""OpenAI's ``tools`` and ``tool_choice``: the functions that an answer may call.

Sources: OpenAI's API reference, "Chat" and "Responses", whose functions are the same but for one
level of nesting.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from raylens.core.errors import InvalidRequest
from raylens.core.types import Tool, Tools
from raylens.core.wire import is_absent

MAX_TOOLS = 128
_NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")
_FORCED = ("required", "any")
_UNFORCED = ("auto", "none")


def parse_tools(tools: Any, choice: Any, parallel: bool | None) -> Tools | None:
    """Return the tools that an answer may call, or None if there are none.

    Raises ``InvalidRequest`` if a tool is no function, or if ``choice`` names none of them.
    """
    if isinstance(choice, dict) and choice.get("type") in (*_FORCED, *_UNFORCED):
        choice = choice["type"]
    required, allowed = _parse_choice(choice)
    if choice == "none":
        return None
    functions = _parse_functions(tools)
    if allowed is not None:
        _check_allowed(allowed, [function.name for function in functions])
        functions = [function for function in functions if function.name in allowed]
    if not functions:
        if choice in _FORCED or required != []:
            raise InvalidRequest("tool_choice: no such tool in tools", "tool_choice")
        return None
    names = [function.name for function in functions]
    if required is None:
        required = names
    _check_allowed(required, names)
    return Tools(tuple(functions), tuple(required), parallel is not False)


def _check_allowed(chosen: Iterable[str], names: list[str]) -> None:
    for name in chosen:
        if name not in names:
            raise InvalidRequest(
                f"tool_choice: {name[:128]!r} is none of the tools: {', '.join(names)[:512]}",
                "tool_choice",
            )


def _parse_functions(tools: Any) -> list[Tool]:
    if is_absent(tools):
        return []
    if not isinstance(tools, list):
        raise InvalidRequest("tools: expected a list", "tools")
    if len(tools) > MAX_TOOLS:
        raise InvalidRequest(
            f"tools: {len(tools)}; the limit is {MAX_TOOLS}", "tools", MAX_TOOLS, len(tools)
        )
    functions = [
        _parse_function(tool, f"tools.{number}")
        for number, tool in enumerate(tools)
        if not is_absent(tool)
    ]
    names = [function.name for function in functions]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise InvalidRequest(f"tools.{number}: the name {name!r} is used twice", "tools")
    return functions


def _parse_function(tool: Any, field: str) -> Tool:
    if not isinstance(tool, dict):
        raise InvalidRequest(f"{field}: expected an object", field)
    kind = tool.get("type") or "function"
    if kind != "function":
        raise InvalidRequest(
            f"{field}.type: {str(kind)[:64]!r}; only 'function' is supported", f"{field}.type"
        )
    is_nested = isinstance(tool.get("function"), dict)
    function = tool["function"] if is_nested else tool
    field = f"{field}.function" if is_nested else field
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidRequest(
            f"{field}.name: expected 1 to 128 letters, digits or _ . : / -", f"{field}.name"
        )
    parameters = _read_parameters(function, field)
    definition: dict[str, Any] = {"name": name}
    description = function.get("description")
    if isinstance(description, str) and description:
        dump_schema(description, f"{field}.description", "text")
        definition["description"] = description
    definition["parameters"] = parameters
    field = f"{field}.parameters"
    full_definition = dump_schema({"type": "function", "function": definition}, field)
    parameters = {"type": "object", **parameters}
    if parameters.get("properties") == {}:
        parameters = {"additionalProperties": False, **parameters}  # it takes none
    return Tool(name, dump_schema(parameters, field), full_definition, field)


def _read_parameters(function: dict[str, Any], field: str) -> dict[str, Any]:
    """Return the schema of a function's arguments. Keywords that are null count as absent."""
    parameters = function.get("parameters")
    if not is_absent(function.get("input_schema")):
        raise InvalidRequest(
            f"{field}.input_schema: the name of a schema in Anthropic's API; here it is parameters",
            f"{field}.input_schema",
        )
    if is_absent(parameters):
        return {"type": "object", "properties": {}, "additionalProperties": False}
    if not isinstance(parameters, dict):
        raise InvalidRequest(f"{field}.parameters: expected a JSON schema", f"{field}.parameters")
    if "properties" in parameters:
        parameters = {**parameters, "properties": parameters["properties"] or {}}
    parameters = {key: value for key, value in parameters.items() if value is not None}
    if parameters.get("type", "object") != "object":
        raise InvalidRequest(f"{field}.parameters.type: expected 'object'", f"{field}.parameters")
    return parameters


def _parse_choice(choice: Any) -> tuple[list[str] | None, set[str] | None]:
    """Return the names of the functions that are required, and of those that are allowed.

    None for the required ones means all that are allowed; none for those means all.
    """
    if is_absent(choice) or choice in _UNFORCED:
        return [], None
    if choice in _FORCED:
        return None, None
    if isinstance(choice, dict):
        kind = choice.get("type") or "function"
        if kind == "function":
            function = choice.get("function")
            name = function.get("name") if isinstance(function, dict) else choice.get("name")
            if isinstance(name, str):
                return [name], None
        if kind == "allowed_tools":
            return _parse_allowed_tools(choice)
    raise InvalidRequest(
        'tool_choice: expected "none", "auto", "required", or an object that names a function',
        "tool_choice",
    )


def _parse_allowed_tools(choice: dict[str, Any]) -> tuple[list[str] | None, set[str]]:
    nested = choice.get("allowed_tools")
    allowed = nested if isinstance(nested, dict) else choice
    tools = allowed.get("tools")
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise InvalidRequest("tool_choice.tools: expected a list of objects", "tool_choice")
    functions = [tool.get("function") or tool for tool in tools]
    names = {str(function.get("name")) for function in functions if isinstance(function, dict)}
    return (None if allowed.get("mode") == "required" else []), names


def dump_schema(schema: Any, field: str, noun: str = "schema") -> str:
    """Return a schema as compact JSON. Its keys keep their order: the answer's keys follow it.

    Raises ``InvalidRequest`` if the schema, which the error calls ``noun``, is not valid JSON.
    """
    try:
        text = json.dumps(schema, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        text.encode()
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(
            f"{field}: expected a {noun} that is valid JSON ({type(error).__name__})", field
        ) from None
    return text
