"""Chooses the next token of each sequence.

Tokens are chosen on the device. They stay there for the next decode step, and are also copied to
the host.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from raylens.engine.attempt import attempt
from raylens.engine.device_sampling import DeviceSampler
from raylens.engine.logprobs import measure_logprobs
from raylens.engine.model import NO_TOKEN, Model, ModelOutput, TokenPolicy
from raylens.engine.sampling import BatchSampler, HostSampler, NonFiniteLogits
from raylens.engine.sequence import Sequence
from raylens.engine.transfer import Download, upload


class MeasuredLogprob(NamedTuple):
    """The logprob of a chosen token, and the most likely tokens, best first."""

    logprob: float
    top_logprobs: list[float]
    top_ids: list[int]


@dataclass(eq=False)
class PendingTokens:
    """The next tokens of some sequences, on their way to the host."""

    sequences: list[Sequence]
    download: Download
    """Token ids, int64 (sequences,); whether each row's logits were finite, bool (sequences,); and
    the logprobs of ``logprob_rows``, if there are any."""
    failures: dict[int, Exception]
    """By row."""
    logprob_rows: list[int]
    from_decode: bool
    """Whether a decode step produced these tokens. If not, they are first tokens, from prefill."""
    deferred: bool = False
    """Whether the tokens had not arrived when they were first due. The next step waits for them."""

    def wait(self) -> list[int | Exception | None]:
        """Wait for the tokens, and return one entry for each sequence.

        An entry is a token id, None if the answer has no room for more, or the row's exception.
        """
        ids, is_finite, *_ = self.download.wait()
        tokens: list[int | Exception | None] = [
            None if token == NO_TOKEN else token for token in ids.tolist()
        ]
        for row in torch.nonzero(~is_finite).flatten().tolist():
            tokens[row] = NonFiniteLogits()
        for row, error in self.failures.items():
            tokens[row] = error
        return tokens

    def logprobs(self) -> dict[int, MeasuredLogprob]:
        """Wait for the logprobs, and return them by row."""
        _, _, *measured = self.download.wait()
        if not self.logprob_rows:
            return {}
        logprobs, top_logprobs, top_ids = (tensor.tolist() for tensor in measured)
        rows = map(MeasuredLogprob, logprobs, top_logprobs, top_ids)
        return dict(zip(self.logprob_rows, rows, strict=True))


class SamplingRunner:
    """Chooses tokens, and keeps the newest token of each sequence on the device.

    Calls ``clear_caches`` after a failure, to free memory.
    """

    def __init__(self, model: Model, max_batch_size: int, clear_caches: Callable[[], None]) -> None:
        self._model = model
        self._clear_caches = clear_caches
        self._unused_slot = max_batch_size
        """An extra slot, which no sequence has."""
        self._newest_tokens = torch.zeros(
            max_batch_size + 1, dtype=torch.int64, device=model.device
        )
        """By slot."""
        self._sampler: BatchSampler = (
            HostSampler()
            if self._newest_tokens.device.type == "cpu"
            else DeviceSampler(max_batch_size, model.vocab_size, model.device)
        )

    def begin(self, sequence: Sequence) -> None:
        """Prepare the sequence's slot for a new answer."""
        self._sampler.begin(sequence.slot, sequence.sampler)

    def newest_tokens(self, sequences: list[Sequence | None]) -> Tensor:
        """Return the newest token of each sequence, int64 (sequences,), on the device.

        The token for None is arbitrary.
        """
        slots = [self._unused_slot if s is None else s.slot for s in sequences]
        return self._newest_tokens[self._upload(slots)]

    def sample(
        self, sequences: list[Sequence], output: ModelOutput, from_decode: bool
    ) -> PendingTokens:
        """Choose the next token of each sequence, from its row of ``output``."""
        policy = self._model.token_policy
        slots = [sequence.slot for sequence in sequences]
        samplers = [sequence.sampler for sequence in sequences]
        logits = output.logits if policy is None else policy.mask_logits(output.logits, sequences)
        sampled = self._sampler.sample(logits, samplers, slots)
        tokens = sampled.tokens
        failures = dict(sampled.failures)
        if policy is not None:
            tokens = self._resolve(policy, tokens, failures, output, sequences)
        self._newest_tokens[self._upload(slots)] = tokens
        is_finite = sampled.is_finite
        if is_finite is None:
            is_finite = torch.ones_like(tokens, dtype=torch.bool)
        logprob_rows = [
            row for row, sequence in enumerate(sequences) if sequence.params.logprobs is not None
        ]
        logprobs = self._measure_logprobs(output, tokens, sequences, logprob_rows)
        download = Download(tokens, is_finite, *logprobs)
        return PendingTokens(sequences, download, failures, logprob_rows, from_decode)

    def _measure_logprobs(
        self, output: ModelOutput, tokens: Tensor, sequences: list[Sequence], rows: list[int]
    ) -> tuple[Tensor, ...]:
        """Return the results of ``measure_logprobs`` for some rows; nothing if there are none."""
        if not rows:
            return ()
        top_count = max(sequences[row].params.logprobs or 0 for row in rows)
        index = self._upload(rows)
        logits = output.logits[index]
        token_ids = tokens[index].clamp(0, self._model.vocab_size - 1)
        return measure_logprobs(logits, token_ids, top_count)

    def _resolve(
        self,
        policy: TokenPolicy,
        tokens: Tensor,
        failures: dict[int, Exception],
        output: ModelOutput,
        sequences: list[Sequence],
    ) -> Tensor:
        """Return the tokens that the policy makes of those sampled.

        If the policy fails, it is called again for each row alone, so that only the row that
        breaks it fails. Adds the errors of these rows to ``failures``.
        """
        resolved = attempt(partial(policy.resolve_tokens, tokens, output, sequences))
        if not isinstance(resolved, Exception):
            return resolved
        self._clear_caches()
        resolved_rows = []
        for row, sequence in enumerate(sequences):
            token = tokens[row : row + 1]
            resolved = attempt(
                partial(policy.resolve_tokens, token, output.select([row]), [sequence])
            )
            if isinstance(resolved, Exception):
                failures.setdefault(row, resolved)
                resolved = token
            resolved_rows.append(resolved)
        return torch.cat(resolved_rows)

    def _upload(self, numbers: list[int]) -> Tensor:
        return upload(numbers, self._model.device)
