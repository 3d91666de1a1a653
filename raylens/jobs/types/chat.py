"""A job that answers a chat about pictures and videos, in OpenAI's message format."""

from __future__ import annotations

from typing import Any

from pydantic import field_validator

from raylens.core.types import Chat
from raylens.core.wire import ChatMessage, Messages, read_messages
from raylens.jobs.blobs import is_reference
from raylens.jobs.types.base import JobContext, JobInput, JobType
from raylens.jobs.types.picture import make_output


class ChatInput(JobInput):
    messages: Messages

    @field_validator("messages")
    @classmethod
    def _check_messages(cls, messages: list[ChatMessage]) -> list[ChatMessage]:
        _, references = read_messages(messages, "")
        # Data URLs were replaced by references before validation.
        if not all(is_reference(reference.url) for reference in references):
            raise ValueError("expected every picture and video as a URL or base64")
        return messages

    def text_lengths(self) -> dict[str, int]:
        length = sum(message.text_length for message in self.messages)
        return {**super().text_lengths(), "messages": length}


class ChatJob(JobType):
    """Output: ``{"answer": "…"}``, the assistant's next message."""

    name = "chat"
    input_model = ChatInput
    asks_once = True

    async def run(self, job_input: ChatInput, context: JobContext) -> dict[str, Any]:
        messages, references = read_messages(job_input.messages, "input.messages")
        files = [await context.load(media) for media in references]
        options = context.inference.resolve(job_input)
        answer = await context.ask(options, Chat(messages), files)
        return make_output({"answer": answer.text}, answer)
