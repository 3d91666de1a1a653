"""Turns sampled tokens into deltas."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from raylens.core.types import Delta, FinishReason
from raylens.engine.attempt import attempt
from raylens.engine.logprobs import make_token_logprob
from raylens.engine.metrics import EngineMetrics
from raylens.engine.model import Model
from raylens.engine.prefill_runner import PrefillRunner
from raylens.engine.sampling import NonFiniteLogits
from raylens.engine.sampling_runner import PendingTokens, SampledLogprobs
from raylens.engine.sequence import GenerationSequence, SequenceState


class OutputProcessor:
    """Appends tokens to their sequences, and measures when they arrive."""

    def __init__(self, model: Model, prefill_runner: PrefillRunner, metrics: EngineMetrics) -> None:
        self._model = model
        self._prefill_runner = prefill_runner
        self._metrics = metrics
        self._last_step_at: float | None = None
        """Time at which the previous decode step's tokens arrived (``time.monotonic()``, in
        seconds). None before the first step, and after a moment
        in which no sequence was running."""

    def process(
        self, batch: PendingTokens
    ) -> Iterator[tuple[GenerationSequence, Delta | Exception]]:
        """Wait for the tokens, and yield the delta or the exception of each sequence.

        Sets the ``finish_reason`` of a sequence whose answer ends. Skips sequences that finished
        after the step was launched: their previous token ended them, or they were aborted, expired
        or failed.
        """
        tokens = batch.wait()
        logprobs = batch.logprobs()
        num_unfinished = sum(
            sequence.state is not SequenceState.FINISHED for sequence in batch.sequences
        )
        if batch.from_decode and num_unfinished:
            self._measure_step(num_unfinished)
        for row, (sequence, token) in enumerate(zip(batch.sequences, tokens, strict=True)):
            if sequence.state is SequenceState.FINISHED:
                continue
            if not batch.from_decode:
                self._on_first_token(sequence, token)
            if isinstance(token, Exception):
                yield sequence, token
            else:
                yield sequence, attempt(partial(self._append, sequence, token, logprobs.get(row)))

    def reset_step_time(self) -> None:
        """Exclude idle time from the step metrics."""
        self._last_step_at = None

    def _measure_step(self, num_rows: int) -> None:
        now = time.monotonic()
        seconds = None if self._last_step_at is None else now - self._last_step_at
        self._metrics.record_step(num_rows, seconds)
        self._last_step_at = now

    def _on_first_token(self, sequence: GenerationSequence, token: int | Exception | None) -> None:
        """Record TTFT. Add the prompt to the prefix cache; after non-finite logits, evict its
        pictures' features instead."""
        sequence.first_token_at = time.monotonic()
        timings = sequence.timings(sequence.first_token_at)
        self._metrics.record_first_token(timings.queue + timings.prefill)
        self._metrics.record_stage("queue", timings.queue)
        self._metrics.record_stage("prefill", timings.prefill)
        if isinstance(token, NonFiniteLogits):
            self._prefill_runner.evict_features(sequence)
        else:
            self._prefill_runner.store_prompt(sequence)

    def _append(
        self, sequence: GenerationSequence, token: int | None, logprobs: SampledLogprobs | None
    ) -> Delta:
        """Append a token to its sequence, and return the delta.

        None means that the :class:`TokenPolicy` ended the answer at a limit of its own.
        """
        start = sequence.detokenizer.decoded_chars
        text = sequence.append(token, self._model.eos_ids, self._model.max_length)
        if logprobs is not None and token is not None:
            self._add_logprob(sequence, start, token, logprobs)
        text, tool_calls = sequence.parse_tool_calls(text)
        reason = sequence.finish_reason
        delta = Delta(
            text,
            sequence.index,
            usage=sequence.usage,
            logprobs=sequence.take_logprobs(),
            tool_calls=tool_calls,
        )
        if reason is not None or len(sequence.output_ids) == 1:
            delta = replace(delta, timings=sequence.timings(time.monotonic()))
        if reason is None:
            return delta
        if reason is FinishReason.STOP and sequence.ends_with_calls:
            reason = FinishReason.TOOL_CALLS
        findings = self._model.parse_findings(sequence.prompt, sequence.output_ids)
        self._metrics.record_end(reason.value, sequence.usage, sequence.index)
        if delta.timings is not None:
            self._metrics.record_stage("decode", delta.timings.decode)
        return replace(delta, finish_reason=reason, findings=findings)

    def _add_logprob(
        self, sequence: GenerationSequence, start: int, token: int, logprobs: SampledLogprobs
    ) -> None:
        # An EOS token has a text, but it is not part of the answer's text.
        if token < 0 or token in self._model.eos_ids:
            return
        count = sequence.params.logprobs
        logprob = make_token_logprob(
            token,
            logprobs.logprob,
            logprobs.top_logprobs[:count],
            logprobs.top_ids[:count],
            self._model.tokenizer,
        )
        sequence.add_logprob(start, logprob)
