"""The shapes of answers, for the API's description. No answer is validated by them at run time.

Each says all fields of its answers: a field that is not here is a mistake.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

EVENTS = "text/event-stream"
_TEXT = {"type": "string"}
_EVENT = {
    "type": "object",
    "description": "An event of the stream",
    "properties": {"event": _TEXT, "data": _TEXT},
    "required": ["data"],
}
_STREAMS = {EVENTS: _EVENT}


def answers(
    model: type[BaseModel] | None = None, media_type: str | None = None, status: int = 200
) -> dict[str, Any]:
    """Return the arguments of a route that say what it answers.

    ``model`` describes the JSON. ``media_type`` is that of streams, or of other answers.
    """
    content = {media_type: {"schema": _STREAMS.get(media_type, _TEXT)}} if media_type else {}
    answer: dict[str, Any] = {"description": "The answer", "content": content}
    if model is not None:
        answer["model"] = model
    return {"response_model": None, "responses": {status: answer}}
