"""``step()``: schedule, run, postprocess.

A step decodes one token for every running sequence, and then does a slice of what a newcomer needs: a tile through the
vision tower, or a part of its prompt. So sequences join and leave between decode steps, and none that runs waits longer
than for a slice.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass

import torch
from torch import Tensor

from raylens.engine.kv_cache import KVCache
from raylens.engine.limits import MIB, Limits
from raylens.engine.logprobs import logprobs_of
from raylens.engine.metrics import Gauges, Metrics
from raylens.engine.model import Model, Prompt
from raylens.engine.reader import Reader
from raylens.engine.sampling import choose_all
from raylens.engine.scheduler import Scheduler
from raylens.engine.sequence import Sequence, State
from raylens.errors import DeadlineExceeded, InvalidRequest, ModelFailed, RaylensError
from raylens.types import Delta, FinishReason

logger = logging.getLogger(__name__)


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
        self._slices: Generator[None, None, Tensor] | None = None
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
        tokens = min(self.model.max_length, len(prompt.token_ids) + max_tokens)
        cost = self.cache.cost(tokens)
        if cost > self.cache.budget:
            raise InvalidRequest(
                f"max_tokens: the prompt's {len(prompt.token_ids)} tokens, pictures included, and {max_tokens} of"
                f" the answer take {cost / MIB:.1f} MiB of key-value cache; the limit is"
                f" {self.cache.budget / MIB:.1f} MiB",
                "max_tokens",
                self.cache.budget,
                cost,
            )

    def step(self) -> list[Output]:
        """A decode step for all that run, then slices of what enters."""
        outputs = self._drop_dead()
        if self.scheduler.running:
            outputs += self._decode()
        else:
            self._decoded_at = None
        return outputs + self._enter()

    def _drop_dead(self) -> list[Output]:
        """Ends what was aborted, and what is past its deadline."""
        now = time.time()
        gone = self._leave(lambda s: s.aborted or s.deadline <= now)
        for sequence in gone:
            sequence.finish_reason = FinishReason.ABORT
            self._metrics.ended("abort" if sequence.aborted else "deadline", sequence.usage)
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
        try:
            logits = self.model.decode(tokens, positions, [rows for _, rows in groups])
        except Exception as error:
            return self._decode_each(error)
        if len(running) < len(order):
            logits = logits[running]
        return self._decoded([order[row] for row in running], logits)

    def _decode_each(self, error: Exception) -> list[Output]:
        """A step that failed is done again row by row, so that only the sequence that breaks the model fails."""
        logger.warning("a batch of %d failed: %r", len(self.scheduler.running), error)
        outputs = []
        for sequence in list(self.scheduler.running):
            try:
                row = [self.cache.row(sequence)]
                logits = self.model.decode([sequence.output_ids[-1]], [sequence.next_position], row)
            except Exception as own:
                outputs.append(self._failed(sequence, own))
            else:
                outputs += self._decoded([sequence], logits)
        return outputs

    def _decoded(self, sequences: list[Sequence], logits: Tensor) -> list[Output]:
        """Chooses each row's next token and ends the rows that are complete, or that can't go on."""
        now = time.monotonic()
        self._metrics.step(len(sequences), None if self._decoded_at is None else now - self._decoded_at)
        self._decoded_at = now
        for sequence in sequences:
            self.cache.advance(sequence)
        return self._postprocess(sequences, logits)

    def _postprocess(self, sequences: list[Sequence], logits: Tensor) -> list[Output]:
        chosen = choose_all(logits, [sequence.sampler for sequence in sequences])
        outputs = [
            self._advance(sequence, logits[row], token)
            for row, (sequence, token) in enumerate(zip(sequences, chosen, strict=True))
        ]
        ended = {output.sequence for output in outputs if output.error or output.sequence.finish_reason}
        if ended:
            self._leave(lambda s: s in ended)
        return [output for output in outputs if output.error is not None or _says_something(output.delta)]

    def _advance(self, sequence: Sequence, logits: Tensor, token: int | Exception) -> Output:
        if isinstance(token, Exception):
            return self._failed(sequence, token)
        text = sequence.append(token, self.model.eos_ids, self.model.max_length)
        reason = sequence.finish_reason
        wanted = sequence.params.logprobs
        # The end is no part of the answer: with its token, the tokens would not join to the text.
        is_told = wanted is not None and token not in self.model.eos_ids
        told = (logprobs_of(logits, token, wanted or 0, self.model.tokenizer),) if is_told else ()
        if reason:
            self._metrics.ended(reason.value, sequence.usage)
        return Output(sequence, Delta(text, sequence.index, reason, sequence.usage if reason else None, logprobs=told))

    def _enter(self) -> list[Output]:
        """Slices of what enters, one after another for a while."""
        outputs: list[Output] = []
        until = time.monotonic() + self.limits.stall_s
        while (sequence := self.scheduler.admit(self._reserve)) is not None:
            try:
                logits = self._slice(sequence)
            except Exception as error:
                outputs.append(self._failed(sequence, error))
            else:
                if logits is not None:
                    self.scheduler.entered()
                    self._metrics.first_token(time.monotonic() - sequence.arrived_at)
                    outputs += self._postprocess([sequence], logits[None])
            if time.monotonic() >= until:
                break
        return outputs

    def _reserve(self, sequence: Sequence) -> bool:
        try:
            return self.cache.reserve(sequence, sequence.room(self.model.max_length))
        except torch.OutOfMemoryError:
            # Others share the device, and take more of it now than when the budget was made.
            logger.warning("no memory for a sequence of request %s; it waits", sequence.request_id)
            return False

    def _slice(self, sequence: Sequence) -> Tensor | None:
        """Goes on reading the prompt; the next token's logits once it is read."""
        if self._slices is None:
            self._slices = self._reader.read(sequence)
        try:
            next(self._slices)
        except StopIteration as done:
            self._slices = None
            logits: Tensor = done.value
            return logits
        return None

    def _leave(self, gone: Callable[[Sequence], bool]) -> list[Sequence]:
        """Takes sequences out, and frees their rows."""
        removed = self.scheduler.remove(gone)
        for sequence in removed:
            self.cache.release(sequence)
        if self.scheduler.entering is None:
            self._slices = None
        return removed

    def _failed(self, sequence: Sequence, error: Exception) -> Output:
        logger.error("the model failed on request %s", sequence.request_id, exc_info=error)
        self._leave(lambda s: s is sequence)
        self._metrics.ended("error", sequence.usage)
        if isinstance(error, torch.OutOfMemoryError):
            torch.cuda.empty_cache()
        return Output(sequence, error=ModelFailed(f"the model failed on this request: {type(error).__name__}"))


def _says_something(delta: Delta | None) -> bool:
    return delta is not None and bool(delta.text or delta.finish_reason or delta.logprobs)
