"""One answer in the making: the object that travels through the engine."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from itertools import count

from tokenizers import Tokenizer

from raylens.core.types import (
    Delta,
    FinishReason,
    Priority,
    SamplingParams,
    TokenLogprob,
    Usage,
    VisionRequest,
)
from raylens.engine.detokenizer import TextStream
from raylens.engine.model import Prompt
from raylens.engine.sampling import Sampler
from raylens.engine.structured import Grammar


class State(Enum):
    WAITING = auto()
    PREFILLING = auto()
    """Has its place in the cache; its pictures and its prompt are read in slices."""
    RUNNING = auto()
    FINISHED = auto()


TRANSITIONS = {
    State.WAITING: {State.PREFILLING, State.FINISHED},
    State.PREFILLING: {State.RUNNING, State.FINISHED},
    State.RUNNING: {State.FINISHED},
    State.FINISHED: set[State](),
}

_numbers = count()


@dataclass(eq=False)
class Sequence:
    """Prompt, parameters and progress of one answer. Only the engine's thread changes it, but for
    ``aborted``."""

    prompt: Prompt
    params: SamplingParams
    sampler: Sampler
    text: TextStream
    deadline: float
    request_id: str = ""
    priority: Priority = Priority.INTERACTIVE
    index: int = 0
    stream: bool = True
    state: State = State.WAITING
    slot: int = -1
    """Where the engine keeps its newest token on the device; its own from admission to its end."""
    tokens_chosen: int = 0
    """Tokens of the answer so far, with those that the host has not seen yet."""
    aborted: bool = False
    output_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    arrived_at: float = field(default_factory=time.monotonic)
    number: int = field(default_factory=lambda: next(_numbers))
    _held: list[Delta] = field(default_factory=list)
    _logprobs: list[tuple[int, int, TokenLogprob]] = field(default_factory=list)
    """Of tokens whose text is held back, with where it begins and ends."""

    @property
    def usage(self) -> Usage:
        return Usage(len(self.prompt.token_ids), len(self.output_ids))

    @property
    def next_position(self) -> int:
        """The rotary position of the newest token, which the next step reads."""
        return self.prompt.next_position + self.tokens_chosen - 1

    def max_total_tokens(self, max_length: int) -> int:
        """Tokens that it may come to hold, prompt and answer together."""
        return self.prompt.max_total_tokens(self.params.max_tokens, max_length)

    def is_full(self, max_length: int) -> bool:
        """Whether all tokens have been chosen that there is room for."""
        return len(self.prompt.token_ids) + self.tokens_chosen >= self.max_total_tokens(max_length)

    def move(self, state: State) -> None:
        assert state in TRANSITIONS[self.state], f"{self.state} -> {state}"
        self.state = state

    def append(self, token_id: int | None, eos_ids: Iterable[int], max_length: int) -> str:
        """Takes the next token, or what a family says beside text, or None where there is no room
        for more; the text that is certain now. Sets ``finish_reason`` where the answer ends."""
        if token_id is None:
            self.finish_reason = FinishReason.LENGTH
            return self.text.finish()
        self.output_ids.append(token_id)
        if token_id in eos_ids:
            self.finish_reason = FinishReason.STOP
            return self.text.finish()
        piece = self.text.push(token_id) if token_id >= 0 else ""
        if self.text.stopped:
            self.finish_reason = FinishReason.STOP
        elif len(self.prompt.token_ids) + len(self.output_ids) >= self.max_total_tokens(max_length):
            self.finish_reason = FinishReason.LENGTH
            piece += self.text.finish()
        return piece

    def add_logprob(self, start: int, logprob: TokenLogprob) -> None:
        """Takes the newest token's logprob; its text begins at ``start``."""
        self._logprobs.append((start, self.text.seen, logprob))

    def take_logprobs(self) -> tuple[TokenLogprob, ...]:
        """The logprobs of the text that is told now: none of a stop string, but for a token that it
        cuts."""
        said, stopped = self.text.said, self.text.stopped
        told = tuple(
            held for start, end, held in self._logprobs if end <= said or (stopped and start < said)
        )
        self._logprobs = [held for held in self._logprobs if held[1] > said]
        return told

    def release(self, delta: Delta) -> Delta | None:
        """What is to be told now: a piece that says something, or, where none are wanted, all of
        them at the end."""
        if self.stream:
            return delta if delta.text or delta.finish_reason or delta.logprobs else None
        self._held.append(delta)
        if delta.finish_reason is None:
            return None
        text = "".join(held.text for held in self._held)
        return replace(
            delta,
            text=text,
            logprobs=tuple(token for held in self._held for token in held.logprobs),
        )


def sequences(
    request: VisionRequest, prompt: Prompt, tokenizer: Tokenizer, grammar: Grammar | None = None
) -> list[Sequence]:
    """The ``n`` answers that a request wants; answer i of a seeded request has the seed plus i."""
    params = request.sampling
    if prompt.greedy:
        params = SamplingParams(max_tokens=params.max_tokens, n=params.n)
    return [
        Sequence(
            prompt=prompt,
            params=params,
            sampler=Sampler(params, prompt.token_ids, index, grammar and grammar.copy()),
            text=TextStream(tokenizer, params.stop),
            deadline=request.deadline,
            request_id=request.id,
            priority=request.priority,
            index=index,
            stream=request.stream,
        )
        for index in range(params.n)
    ]
