"""Sampling for a whole batch on a GPU, with the semantics of :mod:`raylens.engine.sampling`.

Without grammars, sampling does not synchronize with the host. A grammar's mask depends on the
previous token and is computed on the host, so a batch with any grammar-constrained row waits for
the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from raylens.engine.sampling import AnswerSampler, BatchSampler, SampledTokens
from raylens.engine.transfer import upload

_ROWS_PER_DRAW = 16
"""Rows sampled at a time, to limit memory: each needs about twelve float64 buffers of vocabulary
size."""


@dataclass(frozen=True)
class _PenaltyState:
    """Tokens that penalties apply to, by slot."""

    output_counts: Tensor
    """How often the answer contains each token, int32 (slots, vocabulary)."""
    is_in_prompt: Tensor
    """Whether the prompt contains each token, bool (slots, vocabulary)."""


class DeviceSampler(BatchSampler):
    """Samples on the device, and keeps the penalty state of each slot there."""

    def __init__(self, num_slots: int, vocab_size: int, device: str) -> None:
        self._num_slots = num_slots
        self._vocab_size = vocab_size
        self._device = device
        self._penalty_state: _PenaltyState | None = None
        """Allocated when the first answer with penalties begins."""

    def reset_slot(self, slot: int, sampler: AnswerSampler) -> None:
        if not sampler.has_penalties:
            return
        if self._penalty_state is None:
            shape = (self._num_slots, self._vocab_size)
            self._penalty_state = _PenaltyState(
                torch.zeros(shape, dtype=torch.int32, device=self._device),
                torch.zeros(shape, dtype=torch.bool, device=self._device),
            )
        self._penalty_state.output_counts[slot].zero_()
        self._penalty_state.is_in_prompt[slot].zero_()
        ids = sampler.prompt_ids[sampler.prompt_ids < self._vocab_size]
        self._penalty_state.is_in_prompt[slot].index_fill_(0, upload(ids, self._device), True)

    def add_slots(self, num_slots: int) -> None:
        more = num_slots - self._num_slots
        self._num_slots = num_slots
        if self._penalty_state is not None:
            self._penalty_state = _PenaltyState(
                functional.pad(self._penalty_state.output_counts, (0, 0, 0, more)),
                functional.pad(self._penalty_state.is_in_prompt, (0, 0, 0, more)),
            )

    def sample(
        self, logits: Tensor, samplers: Sequence[AnswerSampler], slots: Sequence[int]
    ) -> SampledTokens:
        if all(sampler.is_plain_argmax for sampler in samplers):
            return SampledTokens(logits.argmax(-1), {}, logits.amax(-1).isfinite())
        processed = logits.clone()
        failures = self._mask_with_grammars(processed, samplers)
        self._adjust(processed, samplers)
        self._penalize(processed, samplers, slots)
        best_logits = processed.amax(-1)
        tokens = processed.argmax(-1)
        self._draw_tokens(tokens, processed, samplers)
        self._record(tokens, samplers, slots, failures)
        is_finite = best_logits.isfinite() & logits.amax(-1).isfinite()
        return SampledTokens(tokens, failures, is_finite)

    def _mask_with_grammars(
        self, logits: Tensor, samplers: Sequence[AnswerSampler]
    ) -> dict[int, Exception]:
        """Set to −∞ the logits of tokens that a row's grammar forbids.

        Returns the exceptions of grammars that failed, by row.
        """
        failures: dict[int, Exception] = {}
        constrained_rows = []
        bitmasks = []
        for row, sampler in enumerate(samplers):
            if sampler.grammar is None:
                continue
            try:
                bitmasks.append(sampler.grammar.bitmask())
                constrained_rows.append(row)
            except Exception as error:
                failures[row] = error
        if constrained_rows:
            bits = upload(np.stack(bitmasks), self._device)
            shifts = torch.arange(8, device=self._device, dtype=torch.uint8)
            is_allowed = (bits[:, :, None] >> shifts & 1).flatten(1)[:, : self._vocab_size].bool()
            row_indices = upload(constrained_rows, self._device)
            logits[row_indices] = logits[row_indices].masked_fill(~is_allowed, -torch.inf)
        return failures

    def _adjust(self, logits: Tensor, samplers: Sequence[AnswerSampler]) -> None:
        """Add the biases, and rule out the ends of answers that are too short."""
        for row, sampler in enumerate(samplers):
            if len(sampler.bias_ids):
                ids = upload(sampler.bias_ids, self._device)
                logits[row].index_add_(0, ids, upload(sampler.biases, self._device))
            if sampler.must_go_on:
                longer = logits[row].index_fill(
                    0, upload(sampler.end_ids, self._device), -torch.inf
                )
                # A grammar may allow nothing but a token that would end the answer.
                logits[row] = torch.where(longer.isfinite().any(), longer, logits[row])

    def _penalize(
        self, logits: Tensor, samplers: Sequence[AnswerSampler], slots: Sequence[int]
    ) -> None:
        """Apply the penalties of all rows that have some. See :meth:`AnswerSampler._penalize`."""
        penalized_rows = [row for row, sampler in enumerate(samplers) if sampler.has_penalties]
        if not penalized_rows:
            return
        assert self._penalty_state is not None
        row_indices = upload(penalized_rows, self._device)
        row_slots = upload([slots[row] for row in penalized_rows], self._device)
        params = [samplers[row].params for row in penalized_rows]
        # Each (rows, 1).
        repetition, presence, frequency = upload(
            np.array(
                [[p.repetition_penalty, p.presence_penalty, p.frequency_penalty] for p in params],
                np.float32,
            ).T[:, :, None],
            self._device,
        )
        counts = self._penalty_state.output_counts[row_slots]
        penalized = logits[row_indices]
        repeated = torch.where(penalized < 0, penalized * repetition, penalized / repetition)
        is_repeated = self._penalty_state.is_in_prompt[row_slots] | (counts > 0)
        penalized = torch.where(is_repeated, repeated, penalized)
        logits[row_indices] = penalized - (counts * frequency + (counts > 0) * presence)

    def _draw_tokens(
        self, tokens: Tensor, logits: Tensor, samplers: Sequence[AnswerSampler]
    ) -> None:
        """Replace the most likely token with a sampled one, in rows whose temperature is above
        0."""
        sampled_rows = [row for row, s in enumerate(samplers) if s.params.temperature > 0]
        if not sampled_rows:
            return
        row_indices = upload(sampled_rows, self._device)
        for first in range(0, len(sampled_rows), _ROWS_PER_DRAW):
            end = first + _ROWS_PER_DRAW
            index = row_indices[first:end]
            draw_samplers = [samplers[row] for row in sampled_rows[first:end]]
            tokens[index] = _draw(logits[index], draw_samplers, tokens[index])

    def _record(
        self,
        tokens: Tensor,
        samplers: Sequence[AnswerSampler],
        slots: Sequence[int],
        failures: dict[int, Exception],
    ) -> None:
        """Add the tokens to the counts and the grammars. Adds failing rows to ``failures``."""
        for sampler in samplers:
            sampler.count_token()
        penalized_rows = [row for row, sampler in enumerate(samplers) if sampler.has_penalties]
        if penalized_rows and self._penalty_state is not None:
            row_indices = upload(penalized_rows, self._device)
            row_slots = upload([slots[row] for row in penalized_rows], self._device)
            self._penalty_state.output_counts[row_slots, tokens[row_indices]] += 1
        if any(sampler.grammar is not None for sampler in samplers):
            for row, (sampler, token) in enumerate(zip(samplers, tokens.tolist(), strict=True)):
                if sampler.grammar is not None and row not in failures:
                    try:
                        sampler.grammar.accept(token)
                    except Exception as error:
                        failures[row] = error


def _draw(logits: Tensor, samplers: Sequence[AnswerSampler], best_tokens: Tensor) -> Tensor:
    """Draw a token for each row, (rows,), by inverse transform sampling.

    Each row takes one uniform random number, and adds up its tokens' weights in the order of their
    ids. ``best_tokens``, (rows,), are the most likely ones.
    """
    parameters = np.array([_draw_parameters(sampler, logits.shape[1]) for sampler in samplers])
    # Each (rows, 1).
    temperature, top_k, top_p, min_p, uniform = upload(parameters.T[:, :, None], logits.device)
    # Weights are probabilities relative to the best token's.
    weights = ((logits.double() - logits.gather(1, best_tokens[:, None])) / temperature).exp()
    filtered_rows = [
        row for row, s in enumerate(samplers) if s.params.top_p < 1 or s.params.top_k > 0
    ]
    if filtered_rows:
        row_indices = upload(filtered_rows, logits.device)
        weights[row_indices] = _apply_top_k_top_p(
            weights[row_indices], top_k[row_indices], top_p[row_indices]
        )
    weights = torch.where(weights >= min_p, weights, 0)
    bounds = weights.cumsum(-1)
    tokens = torch.searchsorted(bounds, uniform * bounds[:, -1:], right=True).clamp_(
        max=logits.shape[1] - 1
    )
    # Rounding in the parallel cumsum can select a token of weight 0. Use the best token then.
    return torch.where(weights.gather(1, tokens)[:, 0] > 0, tokens[:, 0], best_tokens)


def _draw_parameters(
    sampler: AnswerSampler, vocab_size: int
) -> tuple[float, float, float, float, float]:
    """Return temperature, top-k, top-p, min-p, and the next random number."""
    params = sampler.params
    top_k = params.top_k if 0 < params.top_k < vocab_size else vocab_size
    return params.temperature, top_k, params.top_p, params.min_p, sampler.next_uniform()


def _apply_top_k_top_p(weights: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Return the weights (rows, vocabulary), with zeros for tokens outside top-k or top-p.

    ``top_k`` and ``top_p`` are (rows, 1). Of each row's ``top_k`` largest weights, keeps the
    smallest set whose sum reaches ``top_p`` of their total, at least one token.
    """
    ordered, ids = weights.sort(stable=True, descending=True)
    rank = torch.arange(weights.shape[1], device=weights.device)
    ordered = torch.where(rank < top_k, ordered, 0)
    sum_before = ordered.cumsum(-1) - ordered
    is_kept = (sum_before < top_p * ordered.sum(-1, keepdim=True)) | (top_p >= 1)
    is_kept[:, 0] = True
    return torch.zeros_like(weights).scatter_(1, ids, torch.where(is_kept, ordered, 0))
