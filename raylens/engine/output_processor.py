"""Turns chosen tokens into deltas."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

from raylens.core.types import Delta
from raylens.engine.attempt import attempt
from raylens.engine.logprobs import make_token_logprob
from raylens.engine.metrics import EngineMetrics
from raylens.engine.model import Model
from raylens.engine.prefill_runner import PrefillRunner
from raylens.engine.sampling import NonFiniteLogits
from raylens.engine.sampling_runner import MeasuredLogprob, PendingTokens
from raylens.engine.sequence import Sequence, State


class OutputProcessor:
    """Appends tokens to their sequences, and measures when they arrive."""

    def __init__(self, model: Model, prefill_runner: PrefillRunner, metrics: EngineMetrics) -> None:
        self._model = model
        self._prefill_runner = prefill_runner
        self._metrics = metrics
        self._last_step_at: float | None = None
        """When the tokens of the previous decode step arrived. None if no answer has continued
        since then."""

    def process(self, pending: PendingTokens) -> Iterator[tuple[Sequence, Delta | Exception]]:
        """Wait for the tokens, and yield the delta or the exception of each sequence.

        Sets the ``finish_reason`` of a sequence whose answer ends. Skips sequences that have ended
        since the launch, by their previous token or from outside.
        """
        tokens = pending.wait()
        logprobs = pending.logprobs()
        unfinished = sum(sequence.state is not State.FINISHED for sequence in pending.sequences)
        if pending.from_decode and unfinished:
            self._measure_step(unfinished)
        for row, (sequence, token) in enumerate(zip(pending.sequences, tokens, strict=True)):
            if sequence.state is State.FINISHED:
                continue
            if not pending.from_decode:
                self._on_first_token(sequence, token)
            if isinstance(token, Exception):
                yield sequence, token
            else:
                yield sequence, attempt(partial(self._append, sequence, token, logprobs.get(row)))

    def reset_step_time(self) -> None:
        """Leave the time until the next decode step out of the metrics: nothing is running."""
        self._last_step_at = None

    def _measure_step(self, rows: int) -> None:
        now = time.monotonic()
        seconds = None if self._last_step_at is None else now - self._last_step_at
        self._metrics.record_step(rows, seconds)
        self._last_step_at = now

    def _on_first_token(self, sequence: Sequence, token: int | Exception | None) -> None:
        """Cache the prompt's prefix. If its logits were not finite, evict its features instead."""
        self._metrics.record_first_token(time.monotonic() - sequence.arrived_at)
        if isinstance(token, NonFiniteLogits):
            self._prefill_runner.evict_features(sequence)
        else:
            self._prefill_runner.store_prefix(sequence)

    def _append(
        self, sequence: Sequence, token: int | None, measured: MeasuredLogprob | None
    ) -> Delta:
        """Append a token to its sequence, and return the delta.

        None means that the answer has no room for more.
        """
        start = sequence.detokenizer.decoded_chars
        text = sequence.append(token, self._model.eos_ids, self._model.max_length)
        if measured is not None and token is not None:
            self._add_logprob(sequence, start, token, measured)
        reason = sequence.finish_reason
        if reason is None:
            return Delta(text, sequence.index, logprobs=sequence.take_logprobs())
        findings = self._model.parse_findings(sequence.prompt, sequence.output_ids)
        self._metrics.record_end(reason.value, sequence.usage, sequence.index)
        return Delta(
            text,
            sequence.index,
            reason,
            sequence.usage,
            logprobs=sequence.take_logprobs(),
            findings=findings,
        )

    def _add_logprob(
        self, sequence: Sequence, start: int, token: int, measured: MeasuredLogprob
    ) -> None:
        # EOS tokens have a text, but it is not part of the answer's text.
        if token < 0 or token in self._model.eos_ids:
            return
        count = sequence.params.logprobs
        logprob = make_token_logprob(
            token,
            measured.logprob,
            measured.top_logprobs[:count],
            measured.top_ids[:count],
            self._model.tokenizer,
        )
        sequence.add_logprob(start, logprob)
