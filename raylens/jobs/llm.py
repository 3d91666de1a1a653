"""The language model that interprets and summarizes what a job has found."""

from __future__ import annotations

from typing import Protocol

from raylens.core.logs import current_request_id
from raylens.core.types import Chat, Message, Role, TextPart
from raylens.jobs.inference import InferenceClient, InferenceOptions, with_greedy_sampling
from raylens.jobs.job import new_id

_NO_REQUEST_ID = "-"
"""The value of :data:`current_request_id` outside of any request or job."""


class LanguageModel(Protocol):
    async def complete(self, prompt: str, deadline: float) -> str:
        """Return the greedy answer to a prompt.

        ``deadline`` is in seconds since the epoch, on this machine's clock. Raises any of
        :mod:`raylens.core.errors`.
        """
        ...


class ServedLanguageModel(LanguageModel):
    """A language model of the vision service, prompted with one chat message."""

    def __init__(self, inference: InferenceClient, model: str) -> None:
        self._inference = inference
        self._options = InferenceOptions(model=model)

    async def complete(self, prompt: str, deadline: float) -> str:
        current_id = current_request_id.get()  # during an attempt, the job's id
        request_id = new_id() if current_id == _NO_REQUEST_ID else current_id
        options = with_greedy_sampling(self._inference.resolve(self._options))
        chat = Chat((Message(Role.USER, (TextPart(prompt),)),))
        return (await self._inference.ask(request_id, deadline, options, chat, ())).text


def make_llm(model: str | None, inference: InferenceClient) -> LanguageModel | None:
    """Return the language model named ``model``, or None if ``model`` is None."""
    return None if model is None else ServedLanguageModel(inference, model)
