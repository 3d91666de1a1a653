"""Pictures as other servers take them."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

from PIL import Image

from raylens.core.errors import UnsupportedTask
from raylens.core.types import ImagePart, Message, TextPart, VideoPart
from raylens.engine.model import Pixels

QUALITY = 95


def data_url(picture: Pixels) -> str:
    """A JPEG file, as OpenAI's and Moondream's servers read it."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def chat_messages(messages: Sequence[Message], pictures: Sequence[Pixels]) -> list[dict[str, Any]]:
    """In OpenAI's format. Raises ``UnsupportedTask`` for a video, which that has no words for."""

    def part(given: TextPart | ImagePart | VideoPart) -> dict[str, Any]:
        match given:
            case TextPart(text):
                return {"type": "text", "text": text}
            case ImagePart(index, detail):
                return {
                    "type": "image_url",
                    "image_url": {"url": data_url(pictures[index]), "detail": detail.value},
                }
            case VideoPart():
                raise UnsupportedTask(
                    "messages: this model's runtime takes pictures, but no videos", "messages"
                )

    return [
        {"role": message.role.value, "content": [part(each) for each in message.parts]}
        for message in messages
    ]
