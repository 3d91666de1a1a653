"""The choice of the next token. Rows of a batch never share parameters or random numbers.

Rows are weighed with numpy on the host, by one thread: at these sizes torch's threads cost more
than they bring, and where other processes want the same cores, each small operation waits
milliseconds for the last of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raylens.core.types import SamplingParams
from raylens.engine.structured import Grammar

HEAD = 256
"""Most nuclei lie within this many of the best tokens; only where one doesn't is the whole
vocabulary sorted."""

_DRAWS = 32
"""Random numbers that are drawn at a time: the same as one after another."""

Row = NDArray[np.float32]
Ids = NDArray[np.int64]
Weights = NDArray[np.float64]


class NonFiniteLogits(ValueError):
    """A row's best logit is no number, or infinite."""

    def __init__(self) -> None:
        super().__init__("the logits are not finite")


class Sampler:
    """Chooses one answer's tokens, and remembers them as far as penalties and the grammar need.

    In this order: grammar, penalties, temperature, top-k, top-p, min-p, draw. That of top-k to
    min-p, each over what the one before has left, is transformers'
    (``GenerationMixin._get_logits_processor``); penalties come before the temperature as they do
    there and in vLLM (``vllm/v1/sample/sampler.py``). Greedy at temperature 0.

    ``offset`` is added to the seed: the number of the answer where one request wants several.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt_ids: Sequence[int] = (),
        offset: int = 0,
        grammar: Grammar | None = None,
    ) -> None:
        self.params = params
        self.grammar = grammar
        self.prompt_ids = np.unique(np.array(prompt_ids, dtype=np.int64))
        self._draws: list[float] = []
        self._counts: Counter[int] = Counter()
        self._generator = torch.Generator()
        if params.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed((params.seed + offset) % 2**63)

    @property
    def is_plain_argmax(self) -> bool:
        """Needs no more than the best token: greedy, without grammar and penalties."""
        return self.params.temperature == 0 and self.grammar is None and not self.has_penalties

    def draw(self) -> float:
        """The next of the answer's random numbers, uniform in [0, 1)."""
        if not self._draws:
            numbers = torch.rand(_DRAWS, dtype=torch.float64, generator=self._generator)
            self._draws = numbers.flip(0).tolist()
        return self._draws.pop()

    def choose(self, logits: Tensor) -> int:
        """The next token's id from float32 logits (vocabulary,) on any device; counted as part of
        the answer.

        Raises ``ValueError`` where the logits are not finite, or the grammar can't go on.
        """
        logits = logits.cpu()
        _check(logits.numpy().max())
        if self.grammar is not None:
            logits = self.grammar.allow(logits)
        row = logits.numpy()
        if self.has_penalties:
            row = self._penalize(row)
        best = int(row.argmax())
        _check(row[best])  # again: the grammar may have left none that is
        token_id = best if self.params.temperature == 0 else self._draw(row, row[best])
        self._record(token_id)
        return token_id

    def _record(self, token_id: int) -> None:
        if self.grammar is not None:
            self.grammar.accept(token_id)
        if self.has_penalties:
            self._counts[token_id] += 1

    @property
    def has_penalties(self) -> bool:
        params = self.params
        return (
            params.repetition_penalty != 1
            or params.presence_penalty != 0
            or params.frequency_penalty != 0
        )

    def _penalize(self, row: Row) -> Row:
        """A copy of a row, lower where the prompt or the answer has been.

        Repetition: Keskar et al. 2019, as transformers' ``RepetitionPenaltyLogitsProcessor`` has
        it. Presence and frequency: https://platform.openai.com/docs/guides/text-generation,
        ``logits[j] -= count[j] * frequency + (count[j] > 0) * presence``, after repetition as in
        vLLM.
        """
        params, row = self.params, row.copy()
        answer = np.fromiter(self._counts.keys(), dtype=np.int64)
        if params.repetition_penalty != 1:
            ids = np.concatenate((self.prompt_ids, answer))
            ids = ids[
                ids < len(row)
            ]  # a prompt may hold ids that are never said, such as a picture's
            scores = row[ids]
            # An id that both hold is written twice, with the same value.
            row[ids] = np.where(
                scores < 0, scores * params.repetition_penalty, scores / params.repetition_penalty
            )
        counts = np.fromiter(self._counts.values(), dtype=np.float32)
        row[answer] -= counts * params.frequency_penalty + params.presence_penalty
        return row

    def _draw(self, row: Row, best: np.float32) -> int:
        """Inverse of the cumulated weights, at one uniform number, over tokens in the order of
        their ids: noise in the logits moves the bounds between tokens by as little, where an order
        by weight would swap them."""
        ids, weights = self._candidates(row, best)
        bounds = weights.cumsum()
        at = self.draw() * bounds[-1]
        place = int(bounds.searchsorted(at, side="right"))
        return place if ids is None else int(ids[place])

    def _candidates(self, row: Row, best: np.float32) -> tuple[Ids | None, Weights]:
        """Ids (ascending; None for all) and weights of the tokens to draw from; the best one's
        weight is 1."""
        params = self.params
        if 0 < params.top_k < len(row):
            ids = _descending(row, params.top_k)
            weights = _weights(row[ids], best, params.temperature)
            inside = _nucleus(weights, params.top_p, weights.sum())
        elif params.top_p < 1:
            everything = _weights(row, best, params.temperature)
            mass = everything.sum()
            ids = _descending(row, HEAD)
            if everything[ids].sum() < params.top_p * mass:
                ids = _descending(row, len(row))
            weights = everything[ids]
            inside = _nucleus(weights, params.top_p, mass)
        else:
            weights = _weights(row, best, params.temperature)
            weights[weights < params.min_p] = 0
            return None, weights
        inside &= (
            weights >= params.min_p
        )  # a share of the best token's probability: Nguyen et al. 2024
        ids, weights = ids[inside], weights[inside]
        order = ids.argsort()
        return ids[order], weights[order]


@dataclass(frozen=True, eq=False)
class SampledTokens:
    """Each row's next token, int64 (rows,), on the device of the logits."""

    tokens: Tensor
    failures: dict[int, Exception]
    """Of rows that failed; their tokens mean nothing."""
    finite: Tensor | None = None
    """bool (rows,): rows with a best logit that is finite. None if the others are among
    ``failures``."""


class HostSampler:
    """Chooses on the host, by each answer's own sampler."""

    def begin(self, slot: int, sampler: Sampler) -> None:
        """Samplers remember by themselves what they need."""

    def choose(
        self, logits: Tensor, samplers: Sequence[Sampler], slots: Sequence[int]
    ) -> SampledTokens:
        """Each row's next token, from float32 logits (rows, vocabulary)."""
        chosen = sample_all(logits.cpu(), samplers)
        failures = {row: token for row, token in enumerate(chosen) if isinstance(token, Exception)}
        tokens = [0 if isinstance(token, Exception) else token for token in chosen]
        return SampledTokens(torch.tensor(tokens, device=logits.device), failures)


def sample_all(logits: Tensor, samplers: Sequence[Sampler]) -> list[int | Exception]:
    """Each row's next token, from float32 logits (rows, vocabulary) on the host; the error if a row
    fails. All plain rows are chosen at once."""
    plain = [row for row, sampler in enumerate(samplers) if sampler.is_plain_argmax]
    chosen = dict(zip(plain, _best(_rows(logits, plain)), strict=True)) if plain else {}
    for row, sampler in enumerate(samplers):
        if row not in chosen:
            chosen[row] = _attempt(sampler, logits[row])
    return [chosen[row] for row in range(len(samplers))]


def _rows(logits: Tensor, rows: list[int]) -> Tensor:
    return logits if len(rows) == len(logits) else logits[rows]


def _attempt(sampler: Sampler, logits: Tensor) -> int | Exception:
    try:
        return sampler.choose(logits)
    except Exception as error:
        return error


def _best(logits: Tensor) -> list[int | Exception]:
    """The first of the best tokens of each row, or an error where that is not finite."""
    # numpy's argmax takes a twentieth of torch's, beside taking one thread.
    ids = torch.from_numpy(logits.numpy().argmax(-1))
    scores = logits.gather(-1, ids[:, None])
    found = torch.cat((ids[:, None].double(), scores.double()), -1).tolist()
    return [
        int(token_id) if abs(score) < np.inf else NonFiniteLogits() for token_id, score in found
    ]


def _descending(row: Row, count: int) -> Ids:
    """The ids of the ``count`` best tokens, from the best one down."""
    if count >= len(row):
        return (-row).argsort()
    ids = row.argpartition(-count)[-count:]
    return ids[(-row[ids]).argsort()]


def _weights(row: Row, best: np.float32, temperature: float) -> Weights:
    """Probabilities up to a factor. From the best one down, so that a temperature near 0 overflows
    to -inf only."""
    with np.errstate(over="ignore"):
        scaled = (row.astype(np.float64) - best) / temperature
    return np.exp(scaled, out=scaled)


def _nucleus(weights: Weights, top_p: float, mass: np.float64) -> NDArray[np.bool_]:
    """Which weights, from the best one down, are the fewest that reach ``top_p`` of ``mass``; at
    least one.

    Nucleus sampling: Holtzman et al. 2019.
    """
    if top_p >= 1:
        return np.ones(len(weights), dtype=np.bool_)
    inside = weights.cumsum() - weights < top_p * mass
    inside[0] = True
    return inside


def _check(best: np.float32) -> None:
    if not np.isfinite(best):
        raise NonFiniteLogits
