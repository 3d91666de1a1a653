"""Sampling for a whole batch on a GPU, with the semantics of :mod:`raylens.engine.sampling`.

Rows without a grammar are sampled without host synchronization. A grammar's mask depends on the
token before, and only the host knows the grammar, so rows that follow one wait for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raylens.engine.sampling import BatchSampler, SampledTokens, Sampler
from raylens.engine.transfer import upload

_CHUNK_ROWS = 16
"""Rows that are drawn at a time. Each takes a dozen float64 copies of its logits."""


@dataclass(frozen=True)
class _TokenCounts:
    """State of the penalties, one row for each slot."""

    output_counts: Tensor
    """How often the answer contains each token, int32 (slots, vocabulary)."""
    is_in_prompt: Tensor
    """bool (slots, vocabulary)."""


class DeviceSampler(BatchSampler):
    """Samples on the device. Keeps the token counts of each slot there, for penalties."""

    def __init__(self, slots: int, vocabulary: int, device: str) -> None:
        self._slots = slots
        self._vocabulary = vocabulary
        self._device = device
        self._token_counts: _TokenCounts | None = None
        """None until a sampler with penalties begins."""

    def begin(self, slot: int, sampler: Sampler) -> None:
        if not sampler.has_penalties:
            return
        if self._token_counts is None:
            shape = (self._slots, self._vocabulary)
            self._token_counts = _TokenCounts(
                torch.zeros(shape, dtype=torch.int32, device=self._device),
                torch.zeros(shape, dtype=torch.bool, device=self._device),
            )
        self._token_counts.output_counts[slot].zero_()
        self._token_counts.is_in_prompt[slot].zero_()
        ids = sampler.prompt_ids[sampler.prompt_ids < self._vocabulary]
        self._token_counts.is_in_prompt[slot].index_fill_(0, upload(ids, self._device), True)

    def sample(
        self, logits: Tensor, samplers: Sequence[Sampler], slots: Sequence[int]
    ) -> SampledTokens:
        if all(sampler.is_plain_argmax for sampler in samplers):
            return SampledTokens(logits.argmax(-1), {}, logits.amax(-1).isfinite())
        processed = logits.clone()
        failures = self._mask_with_grammars(processed, samplers)
        self._penalize(processed, samplers, slots)
        best_logits = processed.amax(-1)
        tokens = processed.argmax(-1)
        self._draw_tokens(tokens, processed, samplers)
        self._record(tokens, samplers, slots, failures)
        is_finite = best_logits.isfinite() & logits.amax(-1).isfinite()
        return SampledTokens(tokens, failures, is_finite)

    def _mask_with_grammars(
        self, logits: Tensor, samplers: Sequence[Sampler]
    ) -> dict[int, Exception]:
        """Set the logits of tokens that a row's grammar forbids to −∞.

        Returns the exceptions of grammars that failed, by row.
        """
        failures: dict[int, Exception] = {}
        rows, bitmasks = [], []
        for row, sampler in enumerate(samplers):
            if sampler.grammar is None:
                continue
            try:
                bitmasks.append(sampler.grammar.bitmask())
                rows.append(row)
            except Exception as error:
                failures[row] = error
        if rows:
            bits = upload(np.stack(bitmasks), self._device)
            shifts = torch.arange(8, device=self._device, dtype=torch.uint8)
            is_allowed = (bits[:, :, None] >> shifts & 1).flatten(1)[:, : self._vocabulary].bool()
            index = upload(rows, self._device)
            logits[index] = logits[index].masked_fill(~is_allowed, -torch.inf)
        return failures

    def _penalize(self, logits: Tensor, samplers: Sequence[Sampler], slots: Sequence[int]) -> None:
        """Apply the penalties of all rows that have some. See :meth:`Sampler._penalize`."""
        penalized_rows = [row for row, sampler in enumerate(samplers) if sampler.has_penalties]
        if not penalized_rows:
            return
        assert self._token_counts is not None
        rows = upload(penalized_rows, self._device)
        row_slots = upload([slots[row] for row in penalized_rows], self._device)
        params = [samplers[row].params for row in penalized_rows]
        repetition, presence, frequency = upload(
            np.array(
                [[p.repetition_penalty, p.presence_penalty, p.frequency_penalty] for p in params],
                np.float32,
            ).T[:, :, None],
            self._device,
        )
        counts = self._token_counts.output_counts[row_slots]
        penalized = logits[rows]
        repeated = torch.where(penalized < 0, penalized * repetition, penalized / repetition)
        is_repeated = self._token_counts.is_in_prompt[row_slots] | (counts > 0)
        penalized = torch.where(is_repeated, repeated, penalized)
        logits[rows] = penalized - (counts * frequency + (counts > 0) * presence)

    def _draw_tokens(self, tokens: Tensor, logits: Tensor, samplers: Sequence[Sampler]) -> None:
        """Replace the most likely token by a random one, in all rows with a temperature."""
        random_rows = [row for row, s in enumerate(samplers) if s.params.temperature > 0]
        if not random_rows:
            return
        rows = upload(random_rows, self._device)
        for first in range(0, len(random_rows), _CHUNK_ROWS):
            end = first + _CHUNK_ROWS
            chunk = rows[first:end]
            chunk_samplers = [samplers[row] for row in random_rows[first:end]]
            tokens[chunk] = _draw(logits[chunk], chunk_samplers, tokens[chunk])

    def _record(
        self,
        tokens: Tensor,
        samplers: Sequence[Sampler],
        slots: Sequence[int],
        failures: dict[int, Exception],
    ) -> None:
        """Add the tokens to the counts and the grammars. Adds failing rows to ``failures``."""
        penalized_rows = [row for row, sampler in enumerate(samplers) if sampler.has_penalties]
        if penalized_rows and self._token_counts is not None:
            rows = upload(penalized_rows, self._device)
            row_slots = upload([slots[row] for row in penalized_rows], self._device)
            self._token_counts.output_counts[row_slots, tokens[rows]] += 1
        if any(sampler.grammar is not None for sampler in samplers):
            for row, (sampler, token) in enumerate(zip(samplers, tokens.tolist(), strict=True)):
                if sampler.grammar is not None and row not in failures:
                    try:
                        sampler.grammar.accept(token)
                    except Exception as error:
                        failures[row] = error


def _draw(logits: Tensor, samplers: Sequence[Sampler], best_tokens: Tensor) -> Tensor:
    """Draw a token for each row, (rows,), by inverse transform sampling.

    Each row takes one uniform random number, and adds up its tokens' weights in the order of their
    ids. ``best_tokens``, (rows,), are the most likely ones.
    """
    parameters = np.array([_draw_parameters(sampler, logits.shape[1]) for sampler in samplers])
    temperature, top_k, top_p, min_p, uniform = upload(parameters.T[:, :, None], logits.device)
    weights = ((logits.double() - logits.gather(1, best_tokens[:, None])) / temperature).exp()
    filtered_rows = [
        row for row, s in enumerate(samplers) if s.params.top_p < 1 or s.params.top_k > 0
    ]
    if filtered_rows:
        rows = upload(filtered_rows, logits.device)
        weights[rows] = _apply_top_k_top_p(weights[rows], top_k[rows], top_p[rows])
    weights = torch.where(weights >= min_p, weights, 0)
    bounds = weights.cumsum(-1)
    tokens = torch.searchsorted(bounds, uniform * bounds[:, -1:], right=True).clamp_(
        max=logits.shape[1] - 1
    )
    # A parallel sum may round past a bound, to a token that has no weight.
    return torch.where(weights.gather(1, tokens)[:, 0] > 0, tokens[:, 0], best_tokens)


def _draw_parameters(sampler: Sampler, vocabulary: int) -> tuple[float, float, float, float, float]:
    """Return temperature, top-k, top-p, min-p, and the next random number."""
    params = sampler.params
    top_k = params.top_k if 0 < params.top_k < vocabulary else vocabulary
    return params.temperature, top_k, params.top_p, params.min_p, sampler.next_uniform()


def _apply_top_k_top_p(weights: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Return the weights (rows, vocabulary), with zeros for tokens outside of top-k or top-p.

    Of each row's ``top_k`` largest weights, keeps the fewest that reach ``top_p`` of their sum; at
    least one.
    """
    ordered, ids = weights.sort(stable=True, descending=True)
    rank = torch.arange(weights.shape[1], device=weights.device)
    ordered = torch.where(rank < top_k, ordered, 0)
    sum_before = ordered.cumsum(-1) - ordered
    is_kept = (sum_before < top_p * ordered.sum(-1, keepdim=True)) | (top_p >= 1)
    is_kept[:, 0] = True
    return torch.zeros_like(weights).scatter_(1, ids, torch.where(is_kept, ordered, 0))
