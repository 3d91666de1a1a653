"""Samples the next token of each sequence.

Tokens are sampled on the device. They stay there as input of the next decode step, and are also
copied to the host.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from raylens.engine.attempt import attempt
from raylens.engine.device_sampling import DeviceSampler
from raylens.engine.logprobs import compute_logprobs
from raylens.engine.model import NO_TOKEN, Model, ModelOutput, TokenPolicy
from raylens.engine.sampling import BatchSampler, HostSampler, NonFiniteLogits
from raylens.engine.sequence import GenerationSequence
from raylens.engine.transfer import Download, upload


class SampledLogprobs(NamedTuple):
    """Logprob of a sampled token, and the most likely tokens of its row, best first."""

    logprob: float
    top_logprobs: list[float]
    top_ids: list[int]


@dataclass(eq=False)
class PendingTokens:
    """Sampled tokens of a batch that are being copied to the host."""

    sequences: list[GenerationSequence]
    download: Download
    """Token ids, int64 (sequences,); whether each row's logits were finite, bool (sequences,); and
    the logprobs of ``logprob_rows``, if there are any."""
    failures: dict[int, Exception]
    """By row."""
    logprob_rows: list[int]
    from_decode: bool
    """Whether a decode step produced these tokens. If not, they are first tokens, from prefill."""
    deferred: bool = False
    """Whether processing was already postponed once."""

    def wait(self) -> list[int | Exception | None]:
        """Wait for the tokens, and return one entry for each sequence.

        An entry is a token id, None if the :class:`TokenPolicy` ended the answer at a limit of
        its own, or the row's exception.
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

    def logprobs(self) -> dict[int, SampledLogprobs]:
        """Wait for the logprobs, and return them by row."""
        _, _, *copies = self.download.wait()
        if not self.logprob_rows:
            return {}
        logprobs, top_logprobs, top_ids = (tensor.tolist() for tensor in copies)
        entries = map(SampledLogprobs, logprobs, top_logprobs, top_ids)
        return dict(zip(self.logprob_rows, entries, strict=True))


class SamplingRunner:
    """Samples tokens, and keeps the last token of each sequence on the device.

    Calls ``clear_feature_and_prefix_caches`` after a failure, to free memory.
    """

    def __init__(
        self, model: Model, max_batch_size: int, clear_feature_and_prefix_caches: Callable[[], None]
    ) -> None:
        self._model = model
        self._clear_feature_and_prefix_caches = clear_feature_and_prefix_caches
        self._last_tokens = torch.zeros(max_batch_size + 1, dtype=torch.int64, device=model.device)
        """By slot, int64 (slots + 1,). The last slot is for rows without a sequence."""
        self._batch_sampler: BatchSampler = HostSampler()
        if self._last_tokens.device.type != "cpu":
            self._batch_sampler = DeviceSampler(max_batch_size, model.vocab_size, model.device)

    def add_slots(self, num_slots: int) -> None:
        """Have at least ``num_slots`` slots. Those in use keep what is in them."""
        more = num_slots + 1 - len(self._last_tokens)
        if more > 0:
            self._last_tokens = functional.pad(self._last_tokens, (0, more))
            self._batch_sampler.add_slots(num_slots)

    def reset_slot(self, sequence: GenerationSequence) -> None:
        """Reset the sequence's slot for a new answer."""
        self._batch_sampler.reset_slot(sequence.slot, sequence.sampler)

    def last_tokens(self, sequences: list[GenerationSequence | None]) -> Tensor:
        """Return the last token of each sequence, int64 (sequences,), on the device.

        The token for None is arbitrary.
        """
        padding_slot = len(self._last_tokens) - 1
        slots = [padding_slot if s is None else s.slot for s in sequences]
        return self._last_tokens[self._upload(slots)]

    def sample(
        self, sequences: list[GenerationSequence], output: ModelOutput, from_decode: bool
    ) -> PendingTokens:
        """Sample the next token of each sequence from its row of ``output``."""
        policy = self._model.token_policy
        slots = [sequence.slot for sequence in sequences]
        samplers = [sequence.sampler for sequence in sequences]
        logits = output.logits if policy is None else policy.mask_logits(output.logits, sequences)
        sampled = self._batch_sampler.sample(logits, samplers, slots)
        tokens = sampled.tokens
        failures = dict(sampled.failures)
        if policy is not None:
            tokens = self._resolve(policy, tokens, failures, output, sequences)
        self._last_tokens[self._upload(slots)] = tokens
        is_finite = sampled.is_finite
        if is_finite is None:
            is_finite = torch.ones_like(tokens, dtype=torch.bool)
        logprob_rows = [
            row for row, sequence in enumerate(sequences) if sequence.params.logprobs is not None
        ]
        logprobs = self._compute_logprobs(output, tokens, sequences, logprob_rows)
        download = Download(tokens, is_finite, *logprobs)
        return PendingTokens(sequences, download, failures, logprob_rows, from_decode)

    def _compute_logprobs(
        self,
        output: ModelOutput,
        tokens: Tensor,
        sequences: list[GenerationSequence],
        row_indices: list[int],
    ) -> tuple[Tensor, ...]:
        """Return the results of :func:`compute_logprobs` for these rows, or () for none."""
        if not row_indices:
            return ()
        top_count = max(sequences[row].params.logprobs or 0 for row in row_indices)
        index = self._upload(row_indices)
        logits = output.logits[index]
        # Negative ids have no logprob; the value computed for them is ignored later.
        token_ids = tokens[index].clamp(0, self._model.vocab_size - 1)
        return compute_logprobs(logits, token_ids, top_count)

    def _resolve(
        self,
        policy: TokenPolicy,
        tokens: Tensor,
        failures: dict[int, Exception],
        output: ModelOutput,
        sequences: list[GenerationSequence],
    ) -> Tensor:
        """Let the policy turn sampled tokens into final ids.

        If the policy fails, call it again for each row alone, so that only the row that causes the
        failure fails. Adds the errors of these rows to ``failures``.
        """
        resolved = attempt(partial(policy.resolve_tokens, tokens, output, sequences))
        if not isinstance(resolved, Exception):
            return resolved
        self._clear_feature_and_prefix_caches()
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
