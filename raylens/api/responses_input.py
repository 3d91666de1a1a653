"""The input of OpenAI's Responses API: items, and references to the items of recent answers.

Format: OpenAI's API reference, "Responses".
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from typing import Any

from pydantic import TypeAdapter, ValidationError

from raylens.api.errors import from_validation
from raylens.core.errors import InvalidRequest
from raylens.core.wire import MAX_MESSAGES, ChatMessage, Messages

MAX_REMEMBERED_BYTES = 16 * 2**20
ITEM_BYTES = 2048
"""What an item takes beside its JSON, at most."""
MAX_SHOWN_CHARS = 80
"""Characters of the sender's text in an error."""
_MESSAGES: TypeAdapter[list[ChatMessage]] = TypeAdapter(Messages)
_CONTENT = re.compile(r"input\.(\d+)\.content(?=\.|$)")
_OUR_NAMES = ((".tool_calls.0.function.", "."), (".image_url.url", ".image_url"))
"""Parts of the fields of chat completions, and what they are called here."""


class RecentItems:
    """The items of recent answers, by id; the oldest are forgotten first.

    Some clients, such as Vercel's AI SDK, send a reference to an answer's item back in place of the
    item. The API stays without state: a reference may fail, and the error says what to send.
    """

    def __init__(self, max_bytes: int = MAX_REMEMBERED_BYTES) -> None:
        self._max_bytes = max_bytes
        self._items: OrderedDict[str, tuple[dict[str, Any], int]] = OrderedDict()
        """Each item with its size in bytes, which includes an allowance for Python's objects."""
        self._bytes = 0

    def remember(self, items: list[dict[str, Any]]) -> None:
        """Remember the parts of the items that a request reads."""
        for item in items:
            kept = _without_logprobs(item)
            size = len(json.dumps(kept)) + ITEM_BYTES
            self._items[item["id"]] = kept, size
            self._bytes += size
        while self._bytes > self._max_bytes:
            _, (_, size) = self._items.popitem(last=False)
            self._bytes -= size

    def get(self, item_id: object) -> dict[str, Any] | None:
        item, _ = self._items.get(item_id, (None, 0)) if isinstance(item_id, str) else (None, 0)
        return item


def _without_logprobs(item: dict[str, Any]) -> dict[str, Any]:
    if "content" not in item:
        return dict(item)
    parts = [{"type": part["type"], "text": part["text"]} for part in item["content"]]
    return {**item, "content": parts}


def read_input(value: Any, recent: RecentItems) -> list[ChatMessage]:
    """Return the input as messages of chat completions, one for each item.

    Raises ``InvalidRequest``.
    """
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    if not isinstance(value, list):
        raise InvalidRequest("input: expected a string or a list of items", "input")
    if len(value) > MAX_MESSAGES:
        raise InvalidRequest(
            f"input: {len(value)} items; the limit is {MAX_MESSAGES}",
            "input",
            MAX_MESSAGES,
            len(value),
        )
    messages = [_read_item(item, f"input.{number}", recent) for number, item in enumerate(value)]
    try:
        return _MESSAGES.validate_python(messages)
    except ValidationError as error:
        first = error.errors()[0]
        failure = from_validation([{**first, "loc": ["input", *first["loc"]]}])
        raise _rename(failure, value) from None


def name_of_output(value: Any, field: str) -> str:
    """Return the sender's name of a field of the messages from :func:`read_input`.

    The content of a tool's message is the item's ``output``.
    """
    match = _CONTENT.match(field)
    if match is None or not isinstance(value, list):
        return field
    item = value[int(match[1])]
    is_output = isinstance(item, dict) and item.get("type") == "function_call_output"
    return f"input.{match[1]}.output{field[match.end() :]}" if is_output else field


def _rename(error: InvalidRequest, value: Any) -> InvalidRequest:
    """Return an error about a message of the input with the sender's name of the field."""
    field = name_of_output(value, error.field or "input")
    for theirs, ours in _OUR_NAMES:
        field = field.replace(theirs, ours)
    return InvalidRequest(f"{field}{error.message.removeprefix(error.field or '')}", field)


def _is_reference(item: dict[str, Any]) -> bool:
    """Whether an item without a type has an id and nothing else."""
    return "id" in item and all(key in ("id", "type") for key in item)


def _read_item(item: Any, field: str, recent: RecentItems) -> Any:
    if not isinstance(item, dict):
        return item
    kind = item.get("type") or ("item_reference" if _is_reference(item) else "message")
    if kind == "item_reference":
        found = recent.get(item.get("id"))
        if found is None:
            shown = repr(item.get("id"))[:MAX_SHOWN_CHARS]
            raise InvalidRequest(
                f"{field}.id: the item {shown} is not remembered; send the item itself,"
                ' which clients do with "store": false',
                f"{field}.id",
            )
        return _read_item(found, field, recent)
    if kind == "message":
        return item
    if kind == "function_call":
        call = {"id": item.get("call_id"), "function": item}
        return {"role": "assistant", "tool_calls": [call]}
    if kind == "function_call_output":
        result = {"content": item.get("output") or "", "tool_call_id": item.get("call_id")}
        return {"role": "tool", **result}
    if kind == "reasoning":
        return {"role": "assistant"}
    shown = repr(kind)[:MAX_SHOWN_CHARS]
    raise InvalidRequest(
        f"{field}.type: {shown} is not supported; expected 'message', 'function_call',"
        " 'function_call_output', 'reasoning' or 'item_reference'",
        f"{field}.type",
    )
