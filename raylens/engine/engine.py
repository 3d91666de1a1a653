"""The engine's step: schedule, run, process.

A step decodes one token for each running sequence. It then runs one or more *slices* of prefill. A
slice is a bounded amount of work: part of the vision encoder's work, or the forward pass over a
*chunk* (consecutive prompt tokens). A chunk that is too large for one slice is split between
layers. Sequences thus join and leave the batch between decode steps. This is continuous batching
with chunked prefill.

Tokens are sampled on the device, where the next step reads them. With async scheduling
(``EngineLimits.async_scheduling``, the default on a GPU), the host launches a step before it knows
the previous step's tokens, and processes those while the GPU is busy.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch

from raylens.core.errors import DeadlineExceeded, InvalidRequest, ModelFailed, RaylensError
from raylens.core.types import Delta, FinishReason, VisionRequest
from raylens.engine.attempt import attempt
from raylens.engine.decode_runner import DecodeRunner
from raylens.engine.kv_cache import KVCache
from raylens.engine.limits import MIB, EngineLimits
from raylens.engine.metrics import EngineMetrics, Gauges
from raylens.engine.model import Model, ModelOutput, Prompt
from raylens.engine.output_processor import OutputProcessor
from raylens.engine.prefill_runner import PrefillRunner
from raylens.engine.sampling_runner import PendingTokens, SamplingRunner
from raylens.engine.scheduler import Scheduler
from raylens.engine.sequence import GenerationSequence

logger = logging.getLogger(__name__)
MAX_DELTA_INTERVAL_S = 0.2
"""A person still reads along easily, however many answers are streamed."""


@dataclass(frozen=True)
class StepOutput:
    """What a step returns for one sequence: a delta, or the error that ended the sequence."""

    sequence: GenerationSequence
    delta: Delta | None = None
    error: RaylensError | None = None


class Engine:
    """Runs sequences through a model. Not thread-safe."""

    def __init__(
        self, model: Model, limits: EngineLimits, metrics: EngineMetrics | None = None
    ) -> None:
        self._given_limits = limits
        limits = limits.with_device_defaults(model.device)
        assert limits.max_prefill_batch_size is not None
        assert limits.max_prefill_tokens is not None
        self.model = model
        self.limits = limits
        self.scheduler = Scheduler(
            limits.max_batch_size, limits.max_prefill_batch_size, limits.max_prefill_tokens
        )
        self.kv_cache: KVCache[GenerationSequence] = KVCache(
            model.kv_spec, limits.kv_bytes, limits.max_batch_size
        )
        self._metrics = metrics or EngineMetrics()
        self._prefill_runner = PrefillRunner(model, self.kv_cache, limits, self._metrics)
        self._sampling_runner = SamplingRunner(
            model, limits.max_batch_size, self._prefill_runner.clear_feature_and_prefix_caches
        )
        self._decode_runner = DecodeRunner(
            model,
            self.kv_cache,
            self._sampling_runner,
            self._prefill_runner.clear_feature_and_prefix_caches,
        )
        self._output_processor = OutputProcessor(model, self._prefill_runner, self._metrics)
        self._prefill_one_by_one = False
        """Whether prefill of the admitted sequences failed, so that each is retried on its own."""
        self._memory_is_short = False
        """Whether a running sequence waits for memory."""
        self._pending: list[PendingTokens] = []
        """Sampled tokens whose copy to the host has started but which are not processed yet."""

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work

    @property
    def gauges(self) -> Gauges:
        scheduler = self.scheduler
        waiting = list(scheduler.waiting)
        admitted = len(scheduler.running) + len(scheduler.prefilling)
        used_bytes = self.kv_cache.used_bytes
        wanted_bytes = used_bytes + sum(map(self._cost, waiting))
        slots = (len(waiting) + admitted) / self.limits.max_batch_size
        return Gauges(
            len(waiting),
            admitted,
            used_bytes,
            self._prefill_runner.feature_cache.bytes,
            self._prefill_runner.prefix_cache.bytes,
            max(slots, wanted_bytes / self.kv_cache.budget),
            max_kv_bytes=self.kv_cache.budget,
        )

    def _cost(self, sequence: GenerationSequence) -> int:
        """Return the bytes of the KV cache that a sequence may take."""
        max_tokens = sequence.params.max_tokens
        num_tokens = sequence.prompt.max_total_tokens(max_tokens, self.model.max_length)
        return self.kv_cache.cost(num_tokens)

    def change_limits(self, max_batch_size: int, max_prefill_slice_s: float) -> None:
        """Change these limits, between two steps. Sequences that are admitted go on."""
        self._given_limits = replace(
            self._given_limits,
            max_batch_size=max_batch_size,
            max_prefill_slice_s=max_prefill_slice_s,
        )
        self.limits = self._given_limits.with_device_defaults(self.model.device)
        assert self.limits.max_prefill_batch_size is not None
        self._sampling_runner.add_slots(max_batch_size)
        self.kv_cache.max_rows = max_batch_size
        self.scheduler.resize(max_batch_size, self.limits.max_prefill_batch_size)

    def clear_caches(self) -> None:
        """Empty the caches of features and prefixes, but not that of running sequences."""
        self._prefill_runner.clear_feature_and_prefix_caches()

    def shrink_caches(self) -> bool:
        """Drop the older half of the caches of features and prefixes. Return False if they are
        empty already."""
        runner = self._prefill_runner
        caches = (runner.feature_cache, runner.prefix_cache)
        has_entries = any(cache.bytes for cache in caches)
        for cache in caches:
            cache.shrink(cache.bytes // 2)
        return has_entries

    def fit_to_memory(self, request: VisionRequest, prompt: Prompt) -> VisionRequest:
        """Return the request with no more tokens for its answer than the KV cache can hold.

        Raises ``InvalidRequest`` if that is none, or less than a list of objects needs.
        """
        params = request.sampling
        room = max(1, self.kv_cache.max_capacity - len(prompt.token_ids))
        max_tokens = min(params.max_tokens, room)
        self.check_fit(prompt, max_tokens, request.task.prompt_field)
        return replace(request, sampling=replace(params, max_tokens=max_tokens))

    def check_fit(self, prompt: Prompt, max_tokens: int, prompt_field: str) -> None:
        """Raise ``InvalidRequest`` if a sequence could not fit even in an empty KV cache.

        ``prompt_field`` is the request's name of the prompt.
        """
        num_tokens = prompt.max_total_tokens(max_tokens, self.model.max_length)
        prompt_tokens = len(prompt.token_ids)
        cost = self.kv_cache.cost(num_tokens)
        budget = self.kv_cache.budget
        if cost > budget:
            field = prompt.limit_field or prompt_field
            raise InvalidRequest(
                f"{field}: {prompt_tokens} prompt tokens (pictures included) and"
                f" {num_tokens - prompt_tokens} answer tokens need {cost / MIB:.1f} MiB of"
                f" KV cache; the limit is {budget / MIB:.1f} MiB",
                field,
                budget,
                cost,
            )

    @torch.inference_mode()
    def step(self) -> list[StepOutput]:
        """Decode one token for each running sequence, then run slices of prefill.

        Returns the outputs that became available; with async scheduling, mostly those of the
        previous step's tokens.
        """
        outputs = self._end_aborted_and_expired()
        if not self._can_overlap_step:
            for batch in self._take_pending():
                outputs += self._process(batch)
        batches = self._take_pending()
        outputs += self._decode(tokens_are_pending=bool(batches))
        outputs += self._process_or_defer(batches)
        outputs += self._prefill()
        if not self.has_work:  # any tokens left belong to finished sequences
            self._pending.clear()
        return [part for output in outputs for part in _after_held_delta(output)]

    @property
    def _can_overlap_step(self) -> bool:
        """Whether this step may start before the previous step's tokens reach the host.

        If not, all pending tokens are processed before the step starts.
        """
        return bool(self.limits.async_scheduling) and not any(
            sequence.prompt.policy_reads_token_ids for sequence in self.scheduler.running
        )

    def _end_aborted_and_expired(self) -> list[StepOutput]:
        """End sequences that were aborted, or whose deadline has passed."""
        now = time.time()
        outputs = []
        for sequence in self._remove(lambda s: s.aborted or s.deadline <= now):
            sequence.finish_reason = FinishReason.ABORT
            reason = "deadline" if sequence.deadline <= now else "abort"
            self._metrics.record_end(reason, sequence.usage, sequence.index)
            if not sequence.aborted:
                message = "the deadline passed before the answer was complete"
                outputs.append(StepOutput(sequence, error=DeadlineExceeded(message, "deadline")))
        return outputs

    def _take_pending(self) -> list[PendingTokens]:
        """Remove and return the pending tokens, oldest first."""
        batches = self._pending
        self._pending = []
        return batches

    def _process_or_defer(self, batches: list[PendingTokens]) -> list[StepOutput]:
        """Process the tokens of earlier steps.

        Batches are processed in order. A batch of first tokens (from prefill) that is still being
        copied is deferred to the next step, together with all later batches, but only once. The
        batches before it are thus returned without delay.
        """
        outputs: list[StepOutput] = []
        for index, batch in enumerate(batches):
            may_defer = not batch.from_decode and not batch.deferred
            if may_defer and not batch.download.is_ready:
                batch.deferred = True
                self._pending[:0] = batches[index:]
                break
            outputs += self._process(batch)
        return outputs

    def _process(self, batch: PendingTokens) -> list[StepOutput]:
        """Wait for tokens, and return their deltas. Removes sequences whose answers end."""
        outputs = []
        interval = self._delta_interval()
        for sequence, result in self._output_processor.process(batch):
            if isinstance(result, Exception):
                outputs.append(self._fail(sequence, result))
                continue
            delta = sequence.next_delta(result, time.monotonic(), interval)
            if delta is not None:
                outputs.append(StepOutput(sequence, delta))
        if any(sequence.finish_reason for sequence in batch.sequences):
            self._remove(lambda s: s.finish_reason is not None)
        return outputs

    def _delta_interval(self) -> float:
        """Return the seconds between two deltas of a stream."""
        assert self.limits.max_deltas_per_s is not None
        streams = sum(sequence.stream for sequence in self.scheduler.running)
        return min(MAX_DELTA_INTERVAL_S, streams / self.limits.max_deltas_per_s)

    def _decode(self, tokens_are_pending: bool) -> list[StepOutput]:
        """Decode one token for each running sequence that has not reached its token limit.

        Sequences whose row is full wait until there is memory for a larger one. If all do, and no
        pending token can end one of them, the newest one ends.
        """
        unfinished = [
            sequence
            for sequence in self.scheduler.running
            if not sequence.is_full(self.model.max_length)
        ]
        decoding = {sequence for sequence in unfinished if self._has_room(sequence)}
        self._memory_is_short = len(decoding) < len(unfinished)
        others_go_on = decoding or self.scheduler.prefilling or tokens_are_pending
        if self._memory_is_short and not others_go_on:
            decoding = {self._end_newest(unfinished)}
        if not decoding:
            return []
        outputs: list[StepOutput] = []
        for sequences, output in self._decode_runner.run(decoding):
            if isinstance(output, Exception):
                outputs += [self._fail(sequence, output) for sequence in sequences]
            else:
                outputs += self._sample(sequences, output, from_decode=True)
        return outputs

    def _has_room(self, sequence: GenerationSequence) -> bool:
        """Return whether a sequence's row has room for the next token and the one after it.

        If not, try to enlarge the row. The room of a last token is left, so that the sequence can
        still be ended with it.
        """
        next_length = len(sequence.prompt.token_ids) + sequence.num_output_tokens + 1
        if next_length >= sequence.max_total_tokens(self.model.max_length):
            return True
        if next_length < self.kv_cache.capacity_of(sequence):
            return True
        return attempt(partial(self.kv_cache.enlarge, sequence)) is True

    def _end_newest(self, sequences: list[GenerationSequence]) -> GenerationSequence:
        """Let the newest sequence end with its next token, which frees its memory for the others.

        All running sequences have what they were guaranteed, and none can go on.
        """
        newest = max(sequences, key=lambda sequence: sequence.arrival_number)
        newest.token_limit = len(newest.prompt.token_ids) + newest.num_output_tokens + 1
        return newest

    def _sample(
        self, sequences: list[GenerationSequence], output: ModelOutput, from_decode: bool
    ) -> list[StepOutput]:
        """Sample the next tokens. With async scheduling, leave them pending; otherwise process
        them."""
        batch = attempt(partial(self._sampling_runner.sample, sequences, output, from_decode))
        if isinstance(batch, Exception):  # not retried: some samplers may already have advanced
            self._prefill_runner.clear_feature_and_prefix_caches()
            return [self._fail(sequence, batch) for sequence in sequences]
        for sequence in sequences:
            sequence.num_output_tokens += 1
        if self.limits.async_scheduling:
            self._pending.append(batch)
            return []
        return self._process(batch)

    def _prefill(self) -> list[StepOutput]:
        """Run slices of prefill, one after another for a limited time."""
        outputs: list[StepOutput] = []
        async_scheduling = self.limits.async_scheduling
        until = time.monotonic() + self.limits.max_prefill_slice_s
        # Decode cost hardly depends on the batch size, so while few sequences run it pays to
        # prefill more between decode steps: at least two slices, even past the time limit. With
        # async scheduling exactly one slice runs, because host time says nothing about GPU time.
        few_are_running = 4 * len(self.scheduler.running) <= self.limits.max_batch_size
        min_slices = 2 if few_are_running and not async_scheduling else 1
        while True:
            group, errors = self._next_prefill_group()
            outputs += errors
            if not group:
                break
            outputs += self._run_prefill_slice(group)
            min_slices -= 1
            if min_slices <= 0 and (async_scheduling or time.monotonic() >= until):
                break
        return outputs

    def _next_prefill_group(self) -> tuple[list[GenerationSequence], list[StepOutput]]:
        """Return the sequences to prefill together, and the errors of sequences that failed.

        If no sequence is in prefill, admits waiting ones. A sequence fails if the budget has room
        for its row but the device is out of memory.
        """
        if not self.scheduler.prefilling:
            self._prefill_one_by_one = False
        prefilling = attempt(partial(self.scheduler.admit, self._reserve_row))
        if isinstance(prefilling, Exception):
            # Other processes share the device. They may use more of its memory than when the
            # budget was set.
            self._prefill_runner.clear_feature_and_prefix_caches()
            prefilling = attempt(partial(self.scheduler.admit, self._reserve_row))
        errors = []
        if isinstance(prefilling, Exception):
            errors.append(self._fail(self.scheduler.next_waiting, prefilling))
            prefilling = self.scheduler.prefilling
        group = prefilling[:1] if self._prefill_one_by_one else list(prefilling)
        return group, errors

    def _reserve_row(self, sequence: GenerationSequence) -> bool:
        """Take a row for the guaranteed part of an answer, unless running answers need memory."""
        if self._memory_is_short:
            return False
        num_tokens = sequence.guaranteed_total_tokens(self.model.max_length)
        return self.kv_cache.reserve(sequence, num_tokens)

    def _run_prefill_slice(self, group: list[GenerationSequence]) -> list[StepOutput]:
        """Run the next slice of a group's prefill.

        If it fails, the feature and prefix caches are emptied and the sequences are prefilled
        again, one by one, so that only the sequence that causes the failure fails.
        """
        output = attempt(partial(self._run_slice, group))
        if isinstance(output, Exception) and not self._prefill_one_by_one:
            logger.warning(
                "prefill failed for a group of %d; retrying one sequence at a time: %r",
                len(group),
                output,
            )
            self._prefill_runner.clear_feature_and_prefix_caches()
            self._prefill_runner.cancel(self.scheduler.prefilling)
            self._prefill_one_by_one = True
            return []
        if isinstance(output, Exception):
            return [self._fail(sequence, output) for sequence in group]
        if output is None:
            return []
        self.scheduler.start_decoding(group)
        return self._sample(group, output, from_decode=False)

    def _run_slice(self, group: list[GenerationSequence]) -> ModelOutput | None:
        if not self._prefill_runner.in_progress:
            for sequence in group:
                self._sampling_runner.reset_slot(sequence)
        return self._prefill_runner.run_slice(group)

    def _remove(
        self, should_remove: Callable[[GenerationSequence], bool]
    ) -> list[GenerationSequence]:
        """Remove and return sequences, and release their rows."""
        prefilling = list(self.scheduler.prefilling)
        removed = self.scheduler.remove(should_remove)
        for sequence in removed:
            if sequence in prefilling:  # its logits were never checked, so its row may contain NaN
                self.kv_cache.zero_row(sequence)
            self.kv_cache.release_row(sequence)
        if len(self.scheduler.prefilling) < len(prefilling):
            # The group has changed, so the rest of it is prefilled from the start.
            self._prefill_runner.cancel(self.scheduler.prefilling)
        if not self.scheduler.running:
            self._output_processor.reset_step_time()
        return removed

    def _fail(self, sequence: GenerationSequence, error: Exception) -> StepOutput:
        """End a sequence with an error.

        A ``RaylensError`` is returned as it is; anything else becomes ``ModelFailed``.
        """
        self.kv_cache.zero_row(sequence)
        self._remove(lambda s: s is sequence)
        self._metrics.record_end("error", sequence.usage, sequence.index)
        if isinstance(error, RaylensError):
            return StepOutput(sequence, error=error)
        logger.error("the model failed on request %s: %r", sequence.request_id, error)
        return StepOutput(
            sequence, error=ModelFailed(f"the model failed on this request: {type(error).__name__}")
        )


def _after_held_delta(output: StepOutput) -> list[StepOutput]:
    """Return the output; before an error, also what its stream has held back."""
    held = None if output.error is None else output.sequence.held_delta()
    return [output] if held is None else [StepOutput(output.sequence, held), output]
