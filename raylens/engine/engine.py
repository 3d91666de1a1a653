"""The engine's step: schedule, run, postprocess.

A step decodes one token for each running sequence. It then runs a slice of prefill: a tile in the
vision encoder, or a chunk of a prompt. Sequences thus join and leave between decode steps, and
running sequences wait for one slice at a time, or for a few short ones.

Tokens are chosen on the device, and the next step reads them there. On a GPU the host launches a
step before it knows the tokens of the previous one (``EngineLimits.look_ahead``), and processes
those while the GPU is busy.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from raylens.core.errors import DeadlineExceeded, InvalidRequest, ModelFailed, RaylensError
from raylens.core.types import Delta, FinishReason
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
from raylens.engine.sequence import Sequence

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepOutput:
    """Result of a step for one sequence: a delta, or the error that ended the sequence."""

    sequence: Sequence
    delta: Delta | None = None
    error: RaylensError | None = None


class Engine:
    """Runs sequences through a model. Not thread-safe."""

    def __init__(
        self, model: Model, limits: EngineLimits, metrics: EngineMetrics | None = None
    ) -> None:
        limits = limits.with_device_defaults(model.device)
        assert limits.prefill_batch is not None
        assert limits.prefill_tokens is not None
        self.model = model
        self.limits = limits
        self.scheduler = Scheduler(
            limits.max_batch_size, limits.prefill_batch, limits.prefill_tokens
        )
        self.cache: KVCache[Sequence] = KVCache(
            model.kv_shape, limits.kv_bytes, limits.max_batch_size
        )
        self._metrics = metrics or EngineMetrics()
        self._prefill_runner = PrefillRunner(model, self.cache, limits, self._metrics)
        self._sampling_runner = SamplingRunner(
            model, limits.max_batch_size, self._prefill_runner.clear_caches
        )
        self._decode_runner = DecodeRunner(
            model, self.cache, self._sampling_runner, self._prefill_runner.clear_caches
        )
        self._output_processor = OutputProcessor(model, self._prefill_runner, self._metrics)
        self._prefills_one_by_one = False
        """Whether the admitted sequences have failed together, and are prefilled one by one."""
        self._pending: list[PendingTokens] = []
        """Tokens that have been launched and not been processed yet."""

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
        """Raise ``InvalidRequest`` if a sequence does not fit in the whole KV cache."""
        total_tokens = prompt.max_total_tokens(max_tokens, self.model.max_length)
        prompt_tokens = len(prompt.token_ids)
        cost = self.cache.cost(total_tokens)
        budget = self.cache.budget
        if cost > budget:
            raise InvalidRequest(
                f"{prompt.limit_field}: {prompt_tokens} tokens of the prompt, pictures included,"
                f" and {total_tokens - prompt_tokens} of the answer take {cost / MIB:.1f} MiB of"
                f" KV cache; the limit is {budget / MIB:.1f} MiB",
                prompt.limit_field,
                budget,
                cost,
            )

    @torch.inference_mode()
    def step(self) -> list[StepOutput]:
        """Decode one token for each running sequence, then run slices of prefill."""
        outputs = self._end_aborted_and_expired()
        if not self._can_look_ahead:
            outputs += self._process_all_pending()
        pending = self._pending
        self._pending = []
        outputs += self._decode()
        outputs += self._process_pending(pending)
        outputs += self._prefill()
        if not self.has_work:  # all sequences with pending tokens have finished
            self._pending.clear()
        return outputs

    @property
    def _can_look_ahead(self) -> bool:
        return bool(self.limits.look_ahead) and not any(
            sequence.prompt.depends_on_tokens for sequence in self.scheduler.running
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

    def _process_all_pending(self) -> list[StepOutput]:
        pending = self._pending
        self._pending = []
        return [output for tokens in pending for output in self._postprocess(tokens)]

    def _process_pending(self, pending: list[PendingTokens]) -> list[StepOutput]:
        """Process tokens that were launched before this step's decode step.

        First tokens of the previous step's prompts may not have arrived yet. They are deferred to
        the next step, so that tokens that were decoded before them are returned without delay.
        """
        outputs: list[StepOutput] = []
        for index, tokens in enumerate(pending):
            if not (tokens.from_decode or tokens.deferred or tokens.download.ready):
                tokens.deferred = True
                self._pending[:0] = pending[index:]
                break
            outputs += self._postprocess(tokens)
        return outputs

    def _decode(self) -> list[StepOutput]:
        """Decode one token for each running sequence that has room for it."""
        decoding = {
            sequence
            for sequence in self.scheduler.running
            if not sequence.is_full(self.model.max_length)
        }
        if not decoding:
            return []
        outputs: list[StepOutput] = []
        for sequences, output in self._decode_runner.run(decoding):
            if isinstance(output, Exception):
                outputs += [self._fail(sequence, output) for sequence in sequences]
            else:
                outputs += self._sample(sequences, output, from_decode=True)
        return outputs

    def _sample(
        self, sequences: list[Sequence], output: ModelOutput, from_decode: bool
    ) -> list[StepOutput]:
        """Choose the next tokens. Process them now or, with look-ahead, in the next step."""
        tokens = attempt(partial(self._sampling_runner.sample, sequences, output, from_decode))
        if isinstance(tokens, Exception):  # no retry: the samplers' state has changed
            self._prefill_runner.clear_caches()
            return [self._fail(sequence, tokens) for sequence in sequences]
        for sequence in sequences:
            sequence.tokens_chosen += 1
        if self.limits.look_ahead:
            self._pending.append(tokens)
            return []
        return self._postprocess(tokens)

    def _postprocess(self, pending: PendingTokens) -> list[StepOutput]:
        """Wait for tokens, and return their deltas. Removes the sequences that end."""
        outputs = []
        for sequence, delta in self._output_processor.process(pending):
            if isinstance(delta, Exception):
                outputs.append(self._fail(sequence, delta))
            elif (emitted := sequence.emit(delta)) is not None:
                outputs.append(StepOutput(sequence, emitted))
        if any(sequence.finish_reason for sequence in pending.sequences):
            self._remove(lambda s: s.finish_reason is not None)
        return outputs

    def _prefill(self) -> list[StepOutput]:
        """Run slices of prefill, one after another for a limited time."""
        outputs: list[StepOutput] = []
        look_ahead = self.limits.look_ahead
        until = time.monotonic() + self.limits.max_prefill_slice_s
        # A decode step of a few rows takes nearly as long as one of many. While few sequences run,
        # they therefore wait for two slices. With look-ahead they wait for one, because the host's
        # clock does not show how long the GPU takes.
        few_are_running = 4 * len(self.scheduler.running) <= self.limits.max_batch_size
        min_slices = 2 if few_are_running and not look_ahead else 1
        while group := self._admit(outputs):
            outputs += self._run_prefill_slice(group)
            min_slices -= 1
            if min_slices <= 0 and (look_ahead or time.monotonic() >= until):
                break
        return outputs

    def _admit(self, outputs: list[StepOutput]) -> list[Sequence]:
        """Admit sequences if none is in prefill, and return those to prefill together.

        A sequence fails if the budget has room for its row but the device has no memory. Its error
        is added to ``outputs``.
        """
        if not self.scheduler.prefilling:
            self._prefills_one_by_one = False
        admitted = attempt(partial(self.scheduler.admit, self._reserve))
        if isinstance(admitted, Exception):
            # Other processes share the device. They may use more of it than when the budget was
            # set.
            self._prefill_runner.clear_caches()
            admitted = attempt(partial(self.scheduler.admit, self._reserve))
        if isinstance(admitted, Exception):
            outputs.append(self._fail(self.scheduler.next_waiting, admitted))
            admitted = self.scheduler.prefilling
        return admitted[:1] if self._prefills_one_by_one else list(admitted)

    def _reserve(self, sequence: Sequence) -> bool:
        return self.cache.reserve(sequence, sequence.max_total_tokens(self.model.max_length))

    def _run_prefill_slice(self, group: list[Sequence]) -> list[StepOutput]:
        """Run the next slice of a group's prefill.

        A group that fails is prefilled again with empty caches, one sequence at a time, so that
        only the sequence that breaks the model fails.
        """
        output = attempt(partial(self._begin_and_run_slice, group))
        if isinstance(output, Exception) and not self._prefills_one_by_one:
            logger.warning(
                "prefilling %d prompts failed and is retried one by one: %r", len(group), output
            )
            self._prefill_runner.clear_caches()
            self._prefill_runner.restart(self.scheduler.prefilling)
            self._prefills_one_by_one = True
            return []
        if isinstance(output, Exception):
            return [self._fail(sequence, output) for sequence in group]
        if output is None:
            return []
        self.scheduler.start_decoding(group)
        return self._sample(group, output, from_decode=False)

    def _begin_and_run_slice(self, group: list[Sequence]) -> ModelOutput | None:
        if not self._prefill_runner.has_started:
            for sequence in group:
                self._sampling_runner.begin(sequence)
        return self._prefill_runner.run_slice(group)

    def _remove(self, should_remove: Callable[[Sequence], bool]) -> list[Sequence]:
        """Remove and return sequences, and free their rows."""
        prefilling = list(self.scheduler.prefilling)
        removed = self.scheduler.remove(should_remove)
        for sequence in removed:
            if sequence in prefilling:  # its row may contain NaN: its logits were never checked
                self.cache.clear(sequence)
            self.cache.release(sequence)
        if len(self.scheduler.prefilling) < len(prefilling):
            self._prefill_runner.restart(self.scheduler.prefilling)
        if not self.scheduler.running:
            self._output_processor.reset_step_time()
        return removed

    def _fail(self, sequence: Sequence, error: Exception) -> StepOutput:
        """End a sequence with an error, its own or the model's."""
        self.cache.clear(sequence)
        self._remove(lambda s: s is sequence)
        self._metrics.record_end("error", sequence.usage, sequence.index)
        if isinstance(error, RaylensError):
            return StepOutput(sequence, error=error)
        logger.error("the model failed on request %s: %r", sequence.request_id, error)
        return StepOutput(
            sequence, error=ModelFailed(f"the model failed on this request: {type(error).__name__}")
        )
