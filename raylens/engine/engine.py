"""``step()``: schedule, run, postprocess.

A step decodes one token for every running sequence, and then does a slice of what newcomers need: a
tile through the vision tower, or a part of their prompts. So sequences join and leave between
decode steps, and what runs waits for one slice at a time, or for a few small ones.

Tokens are chosen on the device, and the next step takes them from there. On a GPU the host launches
a step before it has seen the tokens of the one before (``EngineLimits.look_ahead``), and looks at
these while the GPU is at work.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial

import torch

from raylens.core.errors import DeadlineExceeded, InvalidRequest, ModelFailed, RaylensError
from raylens.core.types import Delta, FinishReason
from raylens.engine.attempt import attempt
from raylens.engine.kv_cache import KVCache
from raylens.engine.limits import MIB, EngineLimits
from raylens.engine.logprobs import token_logprob
from raylens.engine.metrics import EngineMetrics, Gauges
from raylens.engine.model import Model, ModelOutput, Prompt
from raylens.engine.next_tokens import Logprob, NextTokens, PendingTokens
from raylens.engine.prefill_runner import PrefillRunner
from raylens.engine.sampling import NonFiniteLogits
from raylens.engine.scheduler import Scheduler
from raylens.engine.sequence import Sequence, State

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepOutput:
    """What a step made for one sequence: a delta, or the error that ended it."""

    sequence: Sequence
    delta: Delta | None = None
    error: RaylensError | None = None


class Engine:
    """Runs sequences through a model. Not thread-safe: one thread owns it."""

    def __init__(
        self, model: Model, limits: EngineLimits, metrics: EngineMetrics | None = None
    ) -> None:
        self.model = model
        self.limits = limits = limits.on(model.device)
        assert limits.prefill_batch is not None
        assert limits.prefill_tokens is not None
        self.scheduler = Scheduler(
            limits.max_batch_size, limits.prefill_batch, limits.prefill_tokens
        )
        self.cache: KVCache[Sequence] = KVCache(
            model.kv_shape, limits.kv_bytes, limits.max_batch_size
        )
        self._metrics = metrics or EngineMetrics()
        self._prefill_runner = PrefillRunner(model, self.cache, limits, self._metrics)
        self._slices: Generator[None, None, ModelOutput] | None = None
        """The work of the sequences that enter."""
        self._one_by_one = False
        """Those that enter have failed together, and are read each alone."""
        self._decoded_at: float | None = None
        self._next = NextTokens(model, limits.max_batch_size, self._prefill_runner.forget)
        self._pending: list[PendingTokens] = []
        """What was launched, and the host has not looked at."""

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work

    @property
    def gauges(self) -> Gauges:
        scheduler = self.scheduler
        return Gauges(
            len(scheduler.waiting),
            len(scheduler.running) + len(scheduler.prefilling),
            self.cache.used_bytes,
            self._prefill_runner.features.bytes,
            self._prefill_runner.prefixes.bytes,
        )

    def check_fit(self, prompt: Prompt, max_tokens: int) -> None:
        """Raises ``InvalidRequest`` for a sequence that has no room in the whole cache."""
        places = prompt.max_total_tokens(max_tokens, self.model.max_length)
        cost, field = self.cache.cost(places), prompt.limit_field
        if cost > self.cache.budget:
            raise InvalidRequest(
                f"{field}: the prompt's {len(prompt.token_ids)} tokens, pictures included, and"
                f" {places - len(prompt.token_ids)} of the answer take {cost / MIB:.1f} MiB of key-value cache; the"
                f" limit is {self.cache.budget / MIB:.1f} MiB",
                field,
                self.cache.budget,
                cost,
            )

    @torch.inference_mode()
    def step(self) -> list[StepOutput]:
        """A decode step for all that run, then slices of what enters."""
        outputs = self._drop_dead()
        if not self._looks_ahead:
            outputs += self._collect()
        pending, self._pending = self._pending, []
        outputs += self._decode()
        outputs += self._look_at(pending) + self._prefill()
        if not self.has_work:  # what is pending is nobody's any more
            self._pending.clear()
        return outputs

    def _look_at(self, pending: list[PendingTokens]) -> list[StepOutput]:
        """Tokens that were launched before this step. First tokens that aren't there yet, those of
        the last step's prompts, are left for the next one, so that what has been decoded before
        them needn't wait for them."""
        outputs: list[StepOutput] = []
        for number, tokens in enumerate(pending):
            if not (tokens.decoded or tokens.deferred or tokens.download.ready):
                tokens.deferred = True
                self._pending[:0] = pending[number:]
                break
            outputs += self._postprocess(tokens)
        return outputs

    @property
    def _looks_ahead(self) -> bool:
        return bool(self.limits.look_ahead) and not any(
            s.prompt.depends_on_tokens for s in self.scheduler.running
        )

    def _collect(self) -> list[StepOutput]:
        """Looks at all that was launched."""
        pending, self._pending = self._pending, []
        return [output for tokens in pending for output in self._postprocess(tokens)]

    def _drop_dead(self) -> list[StepOutput]:
        """Ends what was aborted, and what is past its deadline."""
        now = time.time()
        gone = self._leave(lambda s: s.aborted or s.deadline <= now)
        for sequence in gone:
            sequence.finish_reason = FinishReason.ABORT
            self._metrics.ended(
                "deadline" if sequence.deadline <= now else "abort", sequence.usage, sequence.index
            )
        return [
            StepOutput(
                sequence,
                error=DeadlineExceeded(
                    "the deadline passed before the answer was complete", "deadline"
                ),
            )
            for sequence in gone
            if not sequence.aborted
        ]

    def _decode(self) -> list[StepOutput]:
        """One more token for every running sequence that has room for it."""
        decoding = {
            sequence
            for sequence in self.scheduler.running
            if not sequence.is_full(self.model.max_length)
        }
        if not decoding:
            return []
        groups = [group for group in self.cache.groups() if not decoding.isdisjoint(group[0])]
        order = [sequence for holders, _ in groups for sequence in holders]
        # Others may stand among them, such as those that enter. They are decoded along, to no
        # effect: what that writes lies behind what their rows hold, and is overwritten.
        running = [row for row, sequence in enumerate(order) if sequence in decoding]
        positions = [s.next_position if s in decoding else 0 for s in order]
        rows = [rows for _, rows in groups]
        scores = attempt(
            lambda: self.model.decode(
                self._next.newest([s if s in decoding else None for s in order]), positions, rows
            ).rows(running)
        )
        if isinstance(scores, Exception):
            logger.warning(
                "a batch of %d failed and is done again row by row: %r", len(running), scores
            )
            self._prefill_runner.forget()
            return [output for row in running for output in self._decode_alone(order[row])]
        return self._decoded([order[row] for row in running], scores)

    def _decode_alone(self, sequence: Sequence) -> list[StepOutput]:
        """So that only the sequence that breaks the model fails; its row still holds what it held."""
        row, position = [self.cache.row(sequence)], sequence.next_position
        scores = attempt(lambda: self.model.decode(self._next.newest([sequence]), [position], row))
        if isinstance(scores, Exception):
            return [self._failed(sequence, scores)]
        return self._decoded([sequence], scores)

    def _decoded(self, sequences: list[Sequence], scores: ModelOutput) -> list[StepOutput]:
        for sequence in sequences:
            self.cache.advance(sequence)
        return self._choose_next(sequences, scores, decoded=True)

    def _choose_next(
        self, sequences: list[Sequence], scores: ModelOutput, decoded: bool
    ) -> list[StepOutput]:
        """Chooses each row's next token, and looks at it now, or after the next launch."""
        tokens = attempt(partial(self._next.choose, sequences, scores, decoded))
        if isinstance(tokens, Exception):  # samplers have moved: it can't be tried again
            self._prefill_runner.forget()
            return [self._failed(sequence, tokens) for sequence in sequences]
        for sequence in sequences:
            sequence.tokens_chosen += 1
        if self.limits.look_ahead:
            self._pending.append(tokens)
            return []
        return self._postprocess(tokens)

    def _postprocess(self, pending: PendingTokens) -> list[StepOutput]:
        """Looks at tokens once they are there, and ends the answers that are complete."""
        tokens, logprobs = pending.wait(), pending.logprobs()
        # Others have ended by the token before, or from outside, while this one was made.
        alive = sum(sequence.state is not State.FINISHED for sequence in pending.sequences)
        if pending.decoded and alive:
            self._measure_step(alive)
        outputs = []
        for row, (sequence, token) in enumerate(zip(pending.sequences, tokens, strict=True)):
            if sequence.state is State.FINISHED:
                continue
            if not pending.decoded:
                self._on_first_token(sequence, token)
            delta = (
                token
                if isinstance(token, Exception)
                else attempt(partial(self._advance, sequence, token, logprobs.get(row)))
            )
            if isinstance(delta, Exception):
                outputs.append(self._failed(sequence, delta))
            elif (released := sequence.release(delta)) is not None:
                outputs.append(StepOutput(sequence, released))
        if any(sequence.finish_reason for sequence in pending.sequences):
            self._leave(lambda s: s.finish_reason is not None)
        return outputs

    def _measure_step(self, rows: int) -> None:
        now = time.monotonic()
        self._metrics.step(rows, None if self._decoded_at is None else now - self._decoded_at)
        self._decoded_at = now

    def _on_first_token(self, sequence: Sequence, token: int | Exception | None) -> None:
        """Its first token is there: what was read to choose it was sound, or not."""
        self._metrics.first_token(time.monotonic() - sequence.arrived_at)
        if isinstance(token, NonFiniteLogits):
            self._prefill_runner.drop(sequence)
        else:
            self._prefill_runner.keep(sequence)

    def _advance(self, sequence: Sequence, token: int | None, logprob: Logprob | None) -> Delta:
        start = sequence.text.seen
        text = sequence.append(token, self.model.eos_ids, self.model.max_length)
        reason = sequence.finish_reason
        # The end is no part of the answer: with its token, the tokens would not join to the text.
        if (
            logprob is not None
            and token is not None
            and token >= 0
            and token not in self.model.eos_ids
        ):
            value, top, ids = logprob
            count = sequence.params.logprobs
            sequence.add_logprob(
                start, token_logprob(token, value, top[:count], ids[:count], self.model.tokenizer)
            )
        if reason is None:
            return Delta(text, sequence.index, logprobs=sequence.take_logprobs())
        found = self.model.parse_findings(sequence.prompt, sequence.output_ids)
        self._metrics.ended(reason.value, sequence.usage, sequence.index)
        return Delta(
            text,
            sequence.index,
            reason,
            sequence.usage,
            logprobs=sequence.take_logprobs(),
            findings=found,
        )

    def _prefill(self) -> list[StepOutput]:
        """Slices of what enters, one after another for a while."""
        outputs: list[StepOutput] = []
        until = time.monotonic() + self.limits.max_prefill_slice_s
        # A decode step for a few rows takes nearly as long as one for many: while few run, they
        # wait for two slices. The host's clock says nothing of what a GPU does later: there it is
        # one.
        few = (
            not self.limits.look_ahead
            and 4 * len(self.scheduler.running) <= self.limits.max_batch_size
        )
        least = 2 if few else 1
        while group := self._admit(outputs):
            outputs += self._read(group)
            least -= 1
            if least <= 0 and (self.limits.look_ahead or time.monotonic() >= until):
                break
        return outputs

    def _read(self, group: list[Sequence]) -> list[StepOutput]:
        """A slice of a group's prompts. What fails is read again, each prompt alone and with empty
        caches, so that only the one that breaks the model fails."""
        scores = attempt(partial(self._slice, group))
        if isinstance(scores, Exception) and not self._one_by_one:
            logger.warning(
                "what was read of %d prompts failed, and is read one by one: %r", len(group), scores
            )
            self._prefill_runner.forget()
            self._read_again()
            self._one_by_one = True
            return []
        if isinstance(scores, Exception):
            self._slices = None
            return [self._failed(sequence, scores) for sequence in group]
        if scores is None:
            return []
        self.scheduler.start_decoding(group)
        return self._choose_next(group, scores, decoded=False)

    def _read_again(self) -> None:
        """Has those that enter begin anew."""
        self._slices = None
        for sequence in self.scheduler.prefilling:
            self.cache.rewind(sequence)

    def _admit(self, outputs: list[StepOutput]) -> list[Sequence]:
        """The sequences that enter. One for which there is no memory, though the budget has room,
        fails."""
        self._one_by_one = self._one_by_one and bool(self.scheduler.prefilling)

        def reserve(sequence: Sequence) -> bool:
            return self.cache.reserve(sequence, sequence.max_total_tokens(self.model.max_length))

        admitted = attempt(lambda: self.scheduler.admit(reserve))
        if isinstance(admitted, Exception):
            # Others share the device, and take more of it now than when the budget was made.
            self._prefill_runner.forget()
            admitted = attempt(lambda: self.scheduler.admit(reserve))
        if isinstance(admitted, Exception):
            outputs.append(self._failed(self.scheduler.first, admitted))
            admitted = self.scheduler.prefilling
        return admitted[:1] if self._one_by_one else list(admitted)

    def _slice(self, group: list[Sequence]) -> ModelOutput | None:
        """Goes on reading the prompts; the first tokens' scores once they are read."""
        if self._slices is None:
            for sequence in group:
                self._next.begin(sequence)
            self._slices = self._prefill_runner.read(group)
        try:
            next(self._slices)
        except StopIteration as done:
            self._slices = None
            scores: ModelOutput = done.value
            return scores
        return None

    def _leave(self, gone: Callable[[Sequence], bool]) -> list[Sequence]:
        """Takes sequences out, and frees their rows."""
        prefilling = list(self.scheduler.prefilling)
        removed = self.scheduler.remove(gone)
        for sequence in removed:
            if sequence in prefilling:  # nobody has looked at what was read so far
                self.cache.clear(sequence)
            self.cache.release(sequence)
        if len(self.scheduler.prefilling) < len(prefilling):
            self._read_again()
        if not self.scheduler.running:
            self._decoded_at = None
        return removed

    def _failed(self, sequence: Sequence, error: Exception) -> StepOutput:
        """Ends a sequence by an error: its own, or what the model did."""
        self.cache.clear(sequence)
        self._leave(lambda s: s is sequence)
        self._metrics.ended("error", sequence.usage, sequence.index)
        if isinstance(error, RaylensError):
            return StepOutput(sequence, error=error)
        logger.error("the model failed on request %s: %r", sequence.request_id, error)
        return StepOutput(
            sequence, error=ModelFailed(f"the model failed on this request: {type(error).__name__}")
        )
