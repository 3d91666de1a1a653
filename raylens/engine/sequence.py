"""One answer in the making: the object that travels through the engine."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum, auto
from itertools import count

from tokenizers import Tokenizer

from raylens.engine.detokenizer import TextStream
from raylens.engine.model import Prompt
from raylens.engine.sampling import Sampler
from raylens.types import FinishReason, Priority, SamplingParams, Usage, VisionRequest


class State(Enum):
    WAITING = auto()
    RUNNING = auto()
    FINISHED = auto()


MOVES = {
    State.WAITING: {State.RUNNING, State.FINISHED},
    State.RUNNING: {State.WAITING, State.FINISHED},
    State.FINISHED: set[State](),
}

_arrivals = count()


@dataclass(eq=False)
class Sequence:
    """Prompt, parameters and progress of one answer. Only the engine's thread changes it, but for ``aborted``."""

    prompt: Prompt
    params: SamplingParams
    sampler: Sampler
    text: TextStream
    deadline: float
    request_id: str = ""
    priority: Priority = Priority.INTERACTIVE
    index: int = 0
    state: State = State.WAITING
    alone: bool = False
    """Runs in a batch of its own, because a batch with it has failed."""
    aborted: bool = False
    output_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    arrival: int = field(default_factory=lambda: next(_arrivals))

    @property
    def usage(self) -> Usage:
        return Usage(len(self.prompt.token_ids), len(self.output_ids))

    def move(self, state: State) -> None:
        assert state in MOVES[self.state], f"{self.state} -> {state}"
        self.state = state

    def append(self, token_id: int, eos_ids: Iterable[int], max_length: int) -> str:
        """Takes the next token; the text that it completes. Sets ``finish_reason`` where the answer ends."""
        self.output_ids.append(token_id)
        if token_id in eos_ids:
            self.finish_reason = FinishReason.STOP
            return self.text.finish()
        piece = self.text.push(token_id)
        length = len(self.output_ids)
        if self.text.stopped:
            self.finish_reason = FinishReason.STOP
        elif length >= self.params.max_tokens or len(self.prompt.token_ids) + length >= max_length:
            self.finish_reason = FinishReason.LENGTH
            piece += self.text.finish()
        return piece


def sequences(request: VisionRequest, prompt: Prompt, tokenizer: Tokenizer) -> list[Sequence]:
    """The ``n`` answers that a request wants; answer i of a seeded request has the seed plus i."""
    params = request.sampling
    return [
        Sequence(
            prompt=prompt,
            params=params,
            sampler=Sampler(params, offset=index),
            text=TextStream(tokenizer, params.stop),
            deadline=request.deadline,
            request_id=request.id,
            priority=request.priority,
            index=index,
        )
        for index in range(params.n)
    ]
