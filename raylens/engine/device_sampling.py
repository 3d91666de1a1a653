"""The choice of the next tokens of a whole batch on a GPU, with the semantics of
:mod:`raylens.engine.sampling`.

Nothing waits for the device, but for rows that follow a grammar: what may come next there depends
on the token before, and only the host knows the grammar.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raylens.engine.sampling import SampledTokens, Sampler
from raylens.engine.transfer import upload

_ROWS = 16


@dataclass(frozen=True)
class _Seen:
    """What penalties ask for, a row a slot: how often each token was chosen, and whether the prompt
    has it."""

    counts: Tensor
    """int32 (slots, vocabulary)."""
    prompt: Tensor
    """bool (slots, vocabulary)."""


class DeviceSampler:
    """Chooses for sequences in ``slots`` places, each of which remembers its tokens as far as
    penalties need."""

    def __init__(self, slots: int, vocabulary: int, device: str) -> None:
        self._slots = slots
        self._vocabulary = vocabulary
        self._device = device
        self._seen: _Seen | None = None

    def begin(self, slot: int, sampler: Sampler) -> None:
        """Forgets what the slot held; an answer that ``sampler`` chooses begins there."""
        if not sampler.has_penalties:
            return
        if self._seen is None:
            shape = (self._slots, self._vocabulary)
            self._seen = _Seen(
                torch.zeros(shape, dtype=torch.int32, device=self._device),
                torch.zeros(shape, dtype=torch.bool, device=self._device),
            )
        self._seen.counts[slot].zero_()
        self._seen.prompt[slot].zero_()
        ids = sampler.prompt_ids[sampler.prompt_ids < self._vocabulary]
        self._seen.prompt[slot].index_fill_(0, upload(ids, self._device), True)

    def choose(
        self, logits: Tensor, samplers: Sequence[Sampler], slots: Sequence[int]
    ) -> SampledTokens:
        """Each row's next token, from float32 logits (rows, vocabulary) on the device."""
        if all(sampler.is_plain_argmax for sampler in samplers):
            return SampledTokens(logits.argmax(-1), {}, logits.amax(-1).isfinite())
        scores = logits.clone()
        failures = self._follow_grammars(scores, samplers)
        self._penalize(scores, samplers, slots)
        best = scores.amax(-1)
        tokens = scores.argmax(-1)
        drawn = [row for row, sampler in enumerate(samplers) if sampler.params.temperature > 0]
        if drawn:
            rows = upload(drawn, self._device)
            # Some rows at a time: each takes a dozen float64 copies of its logits.
            for first in range(0, len(drawn), _ROWS):
                part = rows[first : first + _ROWS]
                tokens[part] = _draw(
                    scores[part], [samplers[row] for row in drawn[first:][:_ROWS]], tokens[part]
                )
        self._record(tokens, samplers, slots, failures)
        return SampledTokens(tokens, failures, best.isfinite() & logits.amax(-1).isfinite())

    def _follow_grammars(self, scores: Tensor, samplers: Sequence[Sampler]) -> dict[int, Exception]:
        """Puts −∞ in the place of the tokens that a row's grammar forbids; what failed, by row."""
        failures: dict[int, Exception] = {}
        rows, masks = [], []
        for row, sampler in enumerate(samplers):
            if sampler.grammar is None:
                continue
            try:
                masks.append(sampler.grammar.allowed())
                rows.append(row)
            except Exception as error:
                failures[row] = error
        if rows:
            bits = upload(np.stack(masks), self._device)
            places = torch.arange(8, device=self._device, dtype=torch.uint8)
            allowed = (bits[:, :, None] >> places & 1).flatten(1)[:, : self._vocabulary].bool()
            index = upload(rows, self._device)
            scores[index] = scores[index].masked_fill(~allowed, -torch.inf)
        return failures

    def _penalize(self, scores: Tensor, samplers: Sequence[Sampler], slots: Sequence[int]) -> None:
        """Lowers the scores of what the prompt or the answer has said; see ``Sampler``."""
        penalized = [row for row, sampler in enumerate(samplers) if sampler.has_penalties]
        if not penalized:
            return
        assert self._seen is not None
        rows = upload(penalized, self._device)
        places = upload([slots[row] for row in penalized], self._device)
        params = [samplers[row].params for row in penalized]
        repetition, presence, frequency = upload(
            np.array(
                [[p.repetition_penalty, p.presence_penalty, p.frequency_penalty] for p in params],
                np.float32,
            ).T[:, :, None],
            self._device,
        )
        counts, taken = self._seen.counts[places], scores[rows]
        repeated = torch.where(taken < 0, taken * repetition, taken / repetition)
        taken = torch.where(self._seen.prompt[places] | (counts > 0), repeated, taken)
        scores[rows] = taken - (counts * frequency + (counts > 0) * presence)

    def _record(
        self,
        tokens: Tensor,
        samplers: Sequence[Sampler],
        slots: Sequence[int],
        failures: dict[int, Exception],
    ) -> None:
        penalized = [row for row, sampler in enumerate(samplers) if sampler.has_penalties]
        if penalized and self._seen is not None:
            rows = upload(penalized, self._device)
            places = upload([slots[row] for row in penalized], self._device)
            self._seen.counts[places, tokens[rows]] += 1
        if any(sampler.grammar is not None for sampler in samplers):
            for row, (sampler, token) in enumerate(zip(samplers, tokens.tolist(), strict=True)):
                if sampler.grammar is not None and row not in failures:
                    try:
                        sampler.grammar.accept(token)
                    except Exception as error:
                        failures[row] = error


def _draw(scores: Tensor, samplers: Sequence[Sampler], best: Tensor) -> Tensor:
    """Draws a token for every row, (rows,): the inverse of the cumulated weights, in the order of
    the ids, at one uniform number each. ``best``: the rows' most likely tokens, (rows,)."""
    numbers = np.array([_numbers(sampler, scores.shape[1]) for sampler in samplers])
    temperature, top_k, top_p, min_p, uniform = upload(numbers.T[:, :, None], scores.device)
    weights = ((scores.double() - scores.gather(1, best[:, None])) / temperature).exp()
    cuts = [row for row, s in enumerate(samplers) if s.params.top_p < 1 or s.params.top_k > 0]
    if cuts:
        rows = upload(cuts, scores.device)
        weights[rows] = _cut(weights[rows], top_k[rows], top_p[rows])
    weights = torch.where(weights >= min_p, weights, 0)
    bounds = weights.cumsum(-1)
    drawn = torch.searchsorted(bounds, uniform * bounds[:, -1:], right=True).clamp_(
        max=scores.shape[1] - 1
    )
    # A parallel sum may round its way past a bound, to a token that has no weight.
    return torch.where(weights.gather(1, drawn)[:, 0] > 0, drawn[:, 0], best)


def _numbers(sampler: Sampler, vocabulary: int) -> tuple[float, float, float, float, float]:
    params = sampler.params
    top_k = params.top_k if 0 < params.top_k < vocabulary else vocabulary
    return params.temperature, top_k, params.top_p, params.min_p, sampler.draw()


def _cut(weights: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """The weights (rows, vocabulary) with zeros for all but the ``top_k`` largest of a row, and of
    these the fewest that reach ``top_p`` of their sum; at least one."""
    ordered, ids = weights.sort(stable=True, descending=True)
    rank = torch.arange(weights.shape[1], device=weights.device)
    ordered = torch.where(rank < top_k, ordered, 0)
    before = ordered.cumsum(-1) - ordered
    inside = (before < top_p * ordered.sum(-1, keepdim=True)) | (top_p >= 1)
    inside[:, 0] = True
    return torch.zeros_like(weights).scatter_(1, ids, torch.where(inside, ordered, 0))
