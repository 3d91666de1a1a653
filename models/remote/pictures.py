"""Pictures and messages in the formats of other servers."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

from PIL import Image

from models.remote.errors import videos_not_supported
from raylens.core.types import ImagePart, Message, TextPart, VideoPart
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
    return [
        {
            "role": message.role.value,
            "content": [_content_part(part, pictures) for part in message.parts],
        }
        for message in messages
    ]


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
