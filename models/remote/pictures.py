"""Pictures and messages in the formats of other servers."""

from __future__ import annotations

import base64
import io
import uuid
from collections import deque
from collections.abc import Sequence
from typing import Any

from PIL import Image

from models.remote.errors import videos_not_supported
from raylens.core.errors import UnsupportedTask
from raylens.core.types import ImagePart, Message, Role, TextPart, VideoPart
from raylens.engine.model import Pixels

JPEG_QUALITY = 95


def data_url(picture: Pixels) -> str:
    """Return the picture as a JPEG data URL, which OpenAI's and Moondream's servers accept."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def chat_messages(messages: Sequence[Message], pictures: Sequence[Pixels]) -> list[dict[str, Any]]:
    """Return the messages in OpenAI's format.

    Raises ``UnsupportedTask`` if there is a video: the format has no part for it.
    """
    calls: deque[str] = deque()
    return [_chat_message(message, pictures, calls) for message in messages]


def _chat_message(
    message: Message, pictures: Sequence[Pixels], calls: deque[str]
) -> dict[str, Any]:
    """Return one message. ``calls`` are the ids of calls without a result, which it updates."""
    content: Any = [_content_part(part, pictures) for part in message.parts]
    turn: dict[str, Any] = {"role": message.role.value, "content": content or ""}
    if message.tool_calls:
        ids = [f"call_{uuid.uuid4().hex[:24]}" for _ in message.tool_calls]
        calls.extend(ids)
        turn["tool_calls"] = [
            {
                "id": call_id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call_id, call in zip(ids, message.tool_calls, strict=True)
        ]
    if message.role is Role.TOOL:
        if any(part["type"] != "text" for part in content):
            raise UnsupportedTask(
                "messages: this model's server takes pictures in a user's messages only", "messages"
            )
        turn["content"] = "".join(part["text"] for part in content)
        turn["tool_call_id"] = calls.popleft() if calls else "call_0"
    return turn


def _content_part(
    part: TextPart | ImagePart | VideoPart, pictures: Sequence[Pixels]
) -> dict[str, Any]:
    match part:
        case TextPart(text):
            return {"type": "text", "text": text}
        case ImagePart(index, detail):
            url = data_url(pictures[index])
            return {"type": "image_url", "image_url": {"url": url, "detail": detail.value}}
        case VideoPart():
            raise videos_not_supported()
