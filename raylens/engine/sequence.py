"""One answer in progress: the object that travels through the engine."""

from __future__ import annotations

import math
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from enum import Enum, auto
from itertools import count

from tokenizers import Tokenizer

from raylens.core.types import (
    Delta,
    EngineTimings,
    FinishReason,
    Priority,
    SamplingParams,
    TokenLogprob,
    Usage,
    VisionRequest,
)
from raylens.engine.delta_buffer import DeltaBuffer
from raylens.engine.detokenizer import Detokenizer
from raylens.engine.model import AnswerProgress, Prompt
from raylens.engine.sampling import AnswerSampler
from raylens.engine.structured import GrammarState
from raylens.engine.tool_calls import ParsedText, ToolCallParser, make_parser


class SequenceState(Enum):
    WAITING = auto()
    PREFILLING = auto()
    """Admitted: has a slot in the batch and a row of the KV cache. Its pictures are encoded and its
    prompt is prefilled, slice by slice."""
    RUNNING = auto()
    """Gets one token in each decode step."""
    FINISHED = auto()


TRANSITIONS = {
    SequenceState.WAITING: {SequenceState.PREFILLING, SequenceState.FINISHED},
    SequenceState.PREFILLING: {SequenceState.RUNNING, SequenceState.FINISHED},
    SequenceState.RUNNING: {SequenceState.FINISHED},
    SequenceState.FINISHED: set[SequenceState](),
}

_arrivals = count()


@dataclass(frozen=True)
class _BufferedLogprob:
    """Logprob of a token whose text has not been returned yet.

    ``start``, ``end``: character range [start, end) in the decoded text.
    """

    start: int
    end: int
    logprob: TokenLogprob


@dataclass(eq=False)
class GenerationSequence(AnswerProgress):
    """Prompt, parameters and progress of one answer.

    Only the engine's thread changes a sequence, except for ``aborted``.
    """

    prompt: Prompt
    params: SamplingParams
    sampler: AnswerSampler
    detokenizer: Detokenizer
    deadline: float
    """Unix time, in seconds."""
    request_id: str = ""
    priority: Priority = Priority.INTERACTIVE
    client: str = ""
    index: int = 0
    """Zero-based index of this answer among the request's ``n``."""
    stream: bool = True
    """Whether deltas are returned as they come. If not, all are merged into one at the end."""
    state: SequenceState = SequenceState.WAITING
    slot: int = -1
    """Index of this sequence in the engine's per-slot device buffers (last token, penalty state).
    Unique among admitted sequences; -1 before admission."""
    num_output_tokens: int = 0
    aborted: bool = False
    """Can be set from any thread. The engine then drops the sequence before its next step."""
    output_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    arrived_at: float = field(default_factory=time.monotonic)
    """``time.monotonic()``, in seconds."""
    admitted_at: float | None = None
    num_cached_tokens: int = 0
    """Tokens of the prompt that came from the prefix cache."""
    first_token_at: float | None = None
    arrival_number: int = field(default_factory=lambda: next(_arrivals))
    """Orders sequences that arrived at the same time."""
    tool_calls: ToolCallParser | None = None
    """None if the answer can't call tools."""
    _has_tool_calls: bool = False
    token_limit: int | None = None
    """Maximum number of tokens of the prompt and the answer together, if memory limits it."""
    _delta_buffer: DeltaBuffer = field(default_factory=DeltaBuffer)
    _buffered_logprobs: list[_BufferedLogprob] = field(default_factory=list)
    """Logprobs of tokens whose text has not been returned yet."""

    @property
    def usage(self) -> Usage:
        return Usage(len(self.prompt.token_ids), len(self.output_ids))

    @property
    def decode_position(self) -> int:
        """Rotary position of the last sampled token, which is the input of the next decode step."""
        return self.prompt.next_position + self.num_output_tokens - 1

    def timings(self, now: float) -> EngineTimings:
        """Return how long each stage has taken by ``now``, in seconds of ``time.monotonic()``."""
        admitted_at = now if self.admitted_at is None else self.admitted_at
        first_token_at = now if self.first_token_at is None else self.first_token_at
        return EngineTimings(
            queue=admitted_at - self.arrived_at,
            prefill=first_token_at - admitted_at,
            decode=now - first_token_at,
            arrived_at=time.time() - (time.monotonic() - self.arrived_at),
            cached_tokens=self.num_cached_tokens,
        )

    def max_total_tokens(self, max_length: int) -> int:
        """Return the maximum number of tokens of the prompt and its answer together."""
        limit = self.prompt.max_total_tokens(self.params.max_tokens, max_length)
        return limit if self.token_limit is None else min(limit, self.token_limit)

    def guaranteed_total_tokens(self, max_length: int) -> int:
        """Return how many tokens of the prompt and its answer are sure to find memory."""
        guaranteed = self.params.guaranteed_tokens
        if guaranteed is None:
            return self.max_total_tokens(max_length)
        tokens = min(guaranteed, self.params.max_tokens)
        return self.prompt.max_total_tokens(tokens, max_length)

    def is_full(self, max_length: int) -> bool:
        """Return whether the answer has reached its token limit."""
        return len(self.prompt.token_ids) + self.num_output_tokens >= self.max_total_tokens(
            max_length
        )

    def transition_to(self, state: SequenceState) -> None:
        assert state in TRANSITIONS[self.state], f"{self.state} -> {state}"
        self.state = state

    def append(self, token_id: int | None, eos_ids: Collection[int], max_length: int) -> str:
        """Append the next token, and return the text that this token makes final (which can no
        longer belong to a stop string).

        Negative ids are the model family's own (see :class:`raylens.engine.model.TokenPolicy`) and
        have no text. None means that the policy ended the answer at a limit of its own. Sets
        ``finish_reason`` if the answer ends.
        """
        if token_id is None:
            self.finish_reason = FinishReason.LENGTH
            return self.detokenizer.flush()
        self.output_ids.append(token_id)
        if token_id in eos_ids:
            self.finish_reason = FinishReason.STOP
            return self.detokenizer.flush()
        text = self.detokenizer.push(token_id, self._can_stop) if token_id >= 0 else ""
        num_tokens = len(self.prompt.token_ids) + len(self.output_ids)
        if self.detokenizer.stopped or token_id in self.params.stop_token_ids:
            self.finish_reason = FinishReason.STOP
            text += self.detokenizer.flush()
        elif num_tokens >= self.max_total_tokens(max_length):
            self.finish_reason = FinishReason.LENGTH
            text += self.detokenizer.flush()
        return text

    @property
    def _can_stop(self) -> bool:
        """Whether the answer is long enough to end at a stop string."""
        return len(self.output_ids) > self.params.min_tokens

    def parse_tool_calls(self, text: str) -> ParsedText:
        """Split the next piece of the answer's text into text and tool calls.

        Sets ``finish_reason`` if a stop string ends the text.
        """
        if self.tool_calls is None:
            return ParsedText(text)
        parsed = self.tool_calls.push(text, self._can_stop)
        if self.tool_calls.stopped and self.finish_reason is None:
            self.finish_reason = FinishReason.STOP
        if self.finish_reason is not None:
            parsed = ParsedText(parsed.text + self.tool_calls.flush(), parsed.calls)
            if self.tool_calls.stopped:
                self.finish_reason = FinishReason.STOP
        self._has_tool_calls = self._has_tool_calls or bool(parsed.calls)
        return parsed

    @property
    def ends_with_calls(self) -> bool:
        """Whether the answer has tool calls, of which none was cut off."""
        return (
            self.tool_calls is not None
            and self._has_tool_calls
            and not self.tool_calls.has_open_call
        )

    def add_logprob(self, start: int, logprob: TokenLogprob) -> None:
        """Add the last token's logprob. The token's text begins at character ``start``."""
        end = self.detokenizer.decoded_chars
        self._buffered_logprobs.append(_BufferedLogprob(start, end, logprob))

    def take_logprobs(self) -> tuple[TokenLogprob, ...]:
        """Remove and return the logprobs of the tokens whose text has been returned.

        Skips tokens of a stop string, except one that contains text before the stop string.
        """
        returned_chars = self.detokenizer.returned_chars
        stopped = self.detokenizer.stopped
        if self.tool_calls is not None:
            returned_chars = self.tool_calls.final_chars
            stopped = self.tool_calls.stopped
        logprobs = tuple(
            entry.logprob
            for entry in self._buffered_logprobs
            if entry.end <= returned_chars or (stopped and entry.start < returned_chars)
        )
        self._buffered_logprobs = [
            entry for entry in self._buffered_logprobs if entry.end > returned_chars
        ]
        return logprobs

    def next_delta(self, delta: Delta, now: float, interval: float) -> Delta | None:
        """Return the delta to send now, or None.

        With ``stream``, deltas are merged that come within ``interval`` seconds; otherwise all are
        merged into one when the answer ends. ``now``: ``time.monotonic()``, in seconds.
        """
        return self._delta_buffer.push(delta, now, interval if self.stream else math.inf)

    def held_delta(self) -> Delta | None:
        """Return what a stream has held back, or None. To be sent before an error."""
        return self._delta_buffer.flush() if self.stream else None


def make_sequences(
    request: VisionRequest,
    prompt: Prompt,
    tokenizer: Tokenizer,
    grammar: GrammarState | None = None,
    eos_ids: Collection[int] = (),
) -> list[GenerationSequence]:
    """Return one sequence for each of the request's ``n`` answers.

    If the request has a seed, answer i is sampled with the seed plus i. All answers start from
    copies of ``grammar``. ``eos_ids`` are the model's.
    """
    params = request.sampling
    if prompt.greedy:
        params = SamplingParams(params.max_tokens, params.guaranteed_tokens, n=params.n)
    tools = request.tools
    # Stop strings end the text of an answer, and no tool call.
    stop = params.stop if tools is None else ()
    return [
        GenerationSequence(
            prompt=prompt,
            params=params,
            sampler=AnswerSampler(
                params, prompt.token_ids, index, grammar and grammar.copy(), eos_ids
            ),
            detokenizer=Detokenizer(tokenizer, stop, prompt.continues_answer),
            tool_calls=(
                None
                if tools is None
                else make_parser(
                    tools, prompt.tool_call_style, params.stop, prompt.continues_answer
                )
            ),
            deadline=request.deadline,
            request_id=request.id,
            priority=request.priority,
            client=request.client,
            index=index,
            stream=request.stream,
        )
        for index in range(params.n)
    ]
