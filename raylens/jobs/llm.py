"""The language model that interprets and summarizes what a job has found."""

from __future__ import annotations

from typing import Protocol

from raylens.core.logs import current_request_id
from raylens.core.types import Chat, Message, Role, TextPart
from raylens.jobs.inference import InferenceClient, Options, greedy
from raylens.jobs.job import new_id


class LanguageModel(Protocol):
    async def complete(self, prompt: str, deadline: float) -> str:
        """Return the greedy answer to a prompt. Raises any of :mod:`raylens.core.errors`."""
        ...


class GraphLanguageModel(LanguageModel):
    """A model of the graph, asked in a chat."""

    def __init__(self, inference: InferenceClient, model: str) -> None:
        self._inference = inference
        self._options = Options(model=model)

    async def complete(self, prompt: str, deadline: float) -> str:
        job_id = current_request_id.get()
        request_id = new_id() if job_id == "-" else job_id
        options = greedy(self._inference.resolve(self._options))
        chat = Chat((Message(Role.USER, (TextPart(prompt),)),))
        return (await self._inference.ask(request_id, deadline, options, chat, ())).text


def make_llm(model: str | None, inference: InferenceClient) -> LanguageModel | None:
    return None if model is None else GraphLanguageModel(inference, model)
