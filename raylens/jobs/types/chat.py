"""A chat, in OpenAI's messages, with any number of pictures."""

from __future__ import annotations

from typing import Any

from pydantic import field_validator

from raylens.core.types import Chat
from raylens.core.wire import ChatMessage, Messages, read_messages
from raylens.jobs.blobs import is_reference
from raylens.jobs.types.base import JobInput, Run
from raylens.jobs.types.picture import told


class ChatInput(JobInput):
    messages: Messages

    @field_validator("messages")
    @classmethod
    def _ends_with_the_user(cls, messages: list[ChatMessage]) -> list[ChatMessage]:
        if messages[-1].role != "user":
            raise ValueError("the last one should be the user's")
        if not all(is_reference(url) for url, _ in read_messages(messages, "")[1]):
            raise ValueError("a picture is not one that was sent")
        return messages


class ChatJob:
    """``{"answer": "…"}``: what the assistant says next."""

    name = "chat"
    input_model = ChatInput

    async def run(self, given: ChatInput, run: Run) -> dict[str, Any]:
        messages, urls = read_messages(given.messages, "input.messages")
        pictures = [await run.picture(url, field) for url, field in urls]
        answer = await run.ask(run.inference.resolve(given), Chat(messages), pictures)
        return told({"answer": answer.text}, answer)
