"""``step()``: schedule, run, postprocess.

A step decodes one token for every running sequence, and then does a slice of what a newcomer needs: a tile through the
vision tower, or a part of its prompt. So sequences join and leave between decode steps, and what runs waits for one
slice at a time, or for a few small ones.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from raylens.engine.kv_cache import KVCache
from raylens.engine.limits import MIB, Limits
from raylens.engine.logprobs import logprobs_of
from raylens.engine.metrics import Gauges, Metrics
from raylens.engine.model import Model, Prompt, Scores
from raylens.engine.reader import Reader
from raylens.engine.sampling import choose_all
from raylens.engine.scheduler import Scheduler
from raylens.engine.sequence import Sequence, State
from raylens.errors import DeadlineExceeded, InvalidRequest, ModelFailed, RaylensError
from raylens.types import Delta, FinishReason

logger = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class Output:
    """What a step made for one sequence: a delta, or the error that ended it."""

    sequence: Sequence
    delta: Delta | None = None
    error: RaylensError | None = None


class Engine:
    """Runs sequences through a model. Not thread-safe: one thread owns it."""

    def __init__(self, model: Model, limits: Limits, metrics: Metrics | None = None) -> None:
        self.model = model
        self.limits = limits
        self.scheduler = Scheduler(limits.max_batch_size)
        self.cache: KVCache[Sequence] = KVCache(model.kv_shape, limits.kv_bytes, limits.max_batch_size)
        self._metrics = metrics or Metrics()
        self._reader = Reader(model, self.cache, limits, self._metrics)
        self._slices: Generator[None, None, Scores] | None = None
        """The work of the sequence that enters."""
        self._decoded_at: float | None = None

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work

    @property
    def gauges(self) -> Gauges:
        scheduler = self.scheduler
        return Gauges(
            len(scheduler.waiting),
            len(scheduler.running) + (scheduler.entering is not None),
            self.cache.used_bytes,
            self._reader.features.bytes,
            self._reader.prefixes.bytes,
        )

    def check_fit(self, prompt: Prompt, max_tokens: int) -> None:
        """Raises ``InvalidRequest`` for a sequence that has no room in the whole cache."""
        places = prompt.places(max_tokens, self.model.max_length)
        cost, field = self.cache.cost(places), prompt.room_field
        if cost > self.cache.budget:
            raise InvalidRequest(
                f"{field}: the prompt's {len(prompt.token_ids)} tokens, pictures included, and"
                f" {places - len(prompt.token_ids)} of the answer take {cost / MIB:.1f} MiB of key-value cache; the"
                f" limit is {self.cache.budget / MIB:.1f} MiB",
                field,
                self.cache.budget,
                cost,
            )

    def step(self) -> list[Output]:
        """A decode step for all that run, then slices of what enters."""
        outputs = self._drop_dead()
        if self.scheduler.running:
            outputs += self._decode()
        return outputs + self._enter()

    def _drop_dead(self) -> list[Output]:
        """Ends what was aborted, and what is past its deadline."""
        now = time.time()
        gone = self._leave(lambda s: s.aborted or s.deadline <= now)
        for sequence in gone:
            sequence.finish_reason = FinishReason.ABORT
            self._metrics.ended("deadline" if sequence.deadline <= now else "abort", sequence.usage, sequence.index)
        return [
            Output(sequence, error=DeadlineExceeded("the deadline passed before the answer was complete", "deadline"))
            for sequence in gone
            if not sequence.aborted
        ]

    def _decode(self) -> list[Output]:
        """One more token for every running sequence."""
        groups = [group for group in self.cache.groups() if any(s.state is State.RUNNING for s in group[0])]
        order = [sequence for holders, _ in groups for sequence in holders]
        # The one that enters may stand among them. It is decoded along, to no effect: what that writes lies behind
        # what its row holds, and is overwritten.
        running = [row for row, sequence in enumerate(order) if sequence.state is State.RUNNING]
        tokens = [s.output_ids[-1] if s.state is State.RUNNING else 0 for s in order]
        positions = [s.next_position if s.state is State.RUNNING else 0 for s in order]
        scores = _attempt(lambda: self.model.decode(tokens, positions, [rows for _, rows in groups]).rows(running))
        self._measure_step(len(running))
        if isinstance(scores, Exception):
            logger.warning("a batch of %d failed and is done again row by row: %r", len(running), scores)
            self._reader.forget()
            return [output for row in running for output in self._decode_alone(order[row])]
        return self._decoded([order[row] for row in running], scores)

    def _decode_alone(self, sequence: Sequence) -> list[Output]:
        """So that only the sequence that breaks the model fails; its row still holds what it held."""
        row, token, position = [self.cache.row(sequence)], sequence.output_ids[-1], sequence.next_position
        scores = _attempt(lambda: self.model.decode([token], [position], row))
        if isinstance(scores, Exception):
            return [self._failed(sequence, scores)]
        return self._decoded([sequence], scores)

    def _measure_step(self, rows: int) -> None:
        now = time.monotonic()
        self._metrics.step(rows, None if self._decoded_at is None else now - self._decoded_at)
        self._decoded_at = now

    def _decoded(self, sequences: list[Sequence], scores: Scores) -> list[Output]:
        """Chooses each row's next token, and ends the rows that are complete."""
        for sequence in sequences:
            self.cache.advance(sequence)
        return self._postprocess(sequences, scores)

    def _postprocess(self, sequences: list[Sequence], scores: Scores) -> list[Output]:
        chosen = _attempt(partial(self._choose, sequences, scores))
        if isinstance(chosen, Exception):
            chosen = [chosen] * len(sequences)
        outputs = []
        for sequence, row, token in zip(sequences, scores.logits, chosen, strict=True):
            delta = token if isinstance(token, Exception) else _attempt(partial(self._advance, sequence, row, token))
            if isinstance(delta, Exception):
                outputs.append(self._failed(sequence, delta))
            elif (released := sequence.release(delta)) is not None:
                outputs.append(Output(sequence, released))
        if any(sequence.finish_reason for sequence in sequences):
            self._leave(lambda s: s.finish_reason is not None)
        return outputs

    def _choose(self, sequences: list[Sequence], scores: Scores) -> Iterable[int | Exception | None]:
        """What is next in each answer, None where it has no room for more, or how its choice failed."""
        samplers, course = [sequence.sampler for sequence in sequences], self.model.course
        if course is None:
            return choose_all(scores.logits, samplers)
        chosen = choose_all(course.forbid(scores.logits, sequences), samplers)
        settled = _attempt(lambda: course.settle(chosen, scores, sequences))
        if not isinstance(settled, Exception):
            return settled
        self._reader.forget()  # and row by row, so that only the one that breaks it fails
        rows = zip(chosen, sequences, range(len(sequences)), strict=True)
        return [_first(_attempt(partial(course.settle, [token], scores.rows([n]), [s]))) for token, s, n in rows]

    def _advance(self, sequence: Sequence, logits: Tensor, token: int | None) -> Delta:
        start = sequence.text.seen
        text = sequence.append(token, self.model.eos_ids, self.model.max_length)
        reason = sequence.finish_reason
        wanted = sequence.params.logprobs
        # The end is no part of the answer: with its token, the tokens would not join to the text.
        if wanted is not None and token is not None and token >= 0 and token not in self.model.eos_ids:
            sequence.hold(start, logprobs_of(logits, token, wanted, self.model.tokenizer))
        if reason is None:
            return Delta(text, sequence.index, logprobs=sequence.told())
        found = self.model.find(sequence.prompt, sequence.output_ids)
        self._metrics.ended(reason.value, sequence.usage, sequence.index)
        return Delta(text, sequence.index, reason, sequence.usage, logprobs=sequence.told(), found=found)

    def _enter(self) -> list[Output]:
        """Slices of what enters, one after another for a while."""
        outputs: list[Output] = []
        until = time.monotonic() + self.limits.stall_s
        # A decode step for a few rows takes nearly as long as one for many: while few run, they wait for two slices.
        least = 2 if 4 * len(self.scheduler.running) <= self.limits.max_batch_size else 1
        while (sequence := self._admit(outputs)) is not None:
            scores = _attempt(partial(self._slice, sequence))
            if isinstance(scores, Exception):
                outputs.append(self._failed(sequence, scores))
            elif scores is not None:
                self.scheduler.entered()
                self._metrics.first_token(time.monotonic() - sequence.arrived_at)
                outputs += self._postprocess([sequence], scores)
            least -= 1
            if least <= 0 and time.monotonic() >= until:
                break
        return outputs

    def _admit(self, outputs: list[Output]) -> Sequence | None:
        """The sequence that enters. One for which there is no memory, though the budget has room, fails."""

        def reserve(sequence: Sequence) -> bool:
            return self.cache.reserve(sequence, sequence.room(self.model.max_length))

        admitted = _attempt(lambda: self.scheduler.admit(reserve))
        if isinstance(admitted, Exception):
            # Others share the device, and take more of it now than when the budget was made.
            self._reader.forget()
            admitted = _attempt(lambda: self.scheduler.admit(reserve))
        if isinstance(admitted, Exception):
            outputs.append(self._failed(self.scheduler.first, admitted))
            return None
        return admitted

    def _slice(self, sequence: Sequence) -> Scores | None:
        """Goes on reading the prompt; the first token's scores once it is read."""
        if self._slices is None:
            self._slices = self._reader.read(sequence)
        try:
            next(self._slices)
        except StopIteration as done:
            self._slices = None
            scores: Scores = done.value
            return scores
        return None

    def _leave(self, gone: Callable[[Sequence], bool]) -> list[Sequence]:
        """Takes sequences out, and frees their rows."""
        entering = self.scheduler.entering
        removed = self.scheduler.remove(gone)
        for sequence in removed:
            if sequence is entering:  # nobody has looked at what was read so far
                self.cache.clear(sequence)
            self.cache.release(sequence)
        if self.scheduler.entering is None:
            self._slices = None
        if not self.scheduler.running:
            self._decoded_at = None
        return removed

    def _failed(self, sequence: Sequence, error: Exception) -> Output:
        """Ends a sequence by an error: its own, or what the model did."""
        self.cache.clear(sequence)
        self._leave(lambda s: s is sequence)
        self._metrics.ended("error", sequence.usage, sequence.index)
        if isinstance(error, RaylensError):
            return Output(sequence, error=error)
        logger.error("the model failed on request %s: %r", sequence.request_id, error)
        return Output(sequence, error=ModelFailed(f"the model failed on this request: {type(error).__name__}"))


def _first(results: list[int | Exception | None] | Exception) -> int | Exception | None:
    return results if isinstance(results, Exception) else results[0]


def _attempt(work: Callable[[], T]) -> T | Exception:
    """What the work gives, or how it failed. A device that is lost ends the engine instead: its replica is replaced.

    Without its traceback an error holds none of the tensors that were being made.
    """
    try:
        return work()
    except torch.AcceleratorError:
        raise
    except Exception as error:
        logger.debug("a failure in the engine", exc_info=True)
        return error.with_traceback(None)
