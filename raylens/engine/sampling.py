"""Sampling of the next token. Rows of a batch share no parameters or random numbers.

The host samples with numpy, in one thread. At these sizes torch's threads cost more than they
gain. If other processes compete for the same cores, each small operation would wait milliseconds
for its slowest thread.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raylens.core.types import SamplingParams
from raylens.engine.structured import GrammarState

NUCLEUS_CANDIDATES = 256
"""Top-p first tries this many of the most likely tokens, which is nearly always enough, and sorts
the whole vocabulary otherwise."""

_RANDOM_BLOCK_SIZE = 32
"""Random numbers generated per call. It does not affect their sequence."""

LogitsRow = NDArray[np.float32]
"""Logits of one row (vocabulary,)."""
Ids = NDArray[np.int64]
"""Token ids (tokens,)."""
Weights = NDArray[np.float64]
"""Unnormalized probabilities (tokens,); the best token has weight 1."""


class NonFiniteLogits(ValueError):
    """The largest logit of a row is NaN or infinite."""

    def __init__(self) -> None:
        super().__init__("the logits are not finite")


class AnswerSampler:
    """Sampling parameters, random numbers and grammar of one answer.

    ``eos_ids`` are the model's own tokens that end an answer.

    On the host it also samples and keeps the token counts; on a GPU :class:`DeviceSampler` does.

    Order of the steps: grammar, bias, minimum length, penalties, temperature, top-k, top-p, min-p,
    draw. Each of top-k, top-p and min-p filters the tokens that the previous step kept. Temperature
    0 is greedy.

    Sources: the order of top-k, top-p and min-p is transformers'
    (``GenerationMixin._get_logits_processor``). Penalties come before the temperature, as in
    transformers and vLLM (``vllm/v1/sample/sampler.py``).

    ``offset`` is added to the seed: the index of the answer, if a request has several.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt_ids: Sequence[int] = (),
        offset: int = 0,
        grammar: GrammarState | None = None,
        eos_ids: Collection[int] = (),
    ) -> None:
        self.params = params
        self.grammar = grammar
        self.end_ids = np.array(sorted({*eos_ids, *params.stop_token_ids}), dtype=np.int64)
        """Tokens that end the answer."""
        self.bias_ids = np.array([token for token, _ in params.logit_bias], dtype=np.int64)
        self.biases = np.array([bias for _, bias in params.logit_bias], dtype=np.float32)
        self._num_sampled = 0
        self.prompt_ids = np.unique(np.array(prompt_ids, dtype=np.int64))
        self._random_numbers: list[float] = []
        """Generated but not used yet, in reverse order."""
        self._counts: Counter[int] = Counter()
        """How often the answer contains each token."""
        self._generator = torch.Generator()
        if params.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed((params.seed + offset) % 2**63)

    @property
    def is_plain_argmax(self) -> bool:
        """Whether the next token is the argmax of the unmodified logits: temperature 0, no grammar,
        no bias, no penalties."""
        return (
            self.params.temperature == 0
            and self.grammar is None
            and not self.has_penalties
            and not self.params.logit_bias
            and not self.must_go_on
        )

    @property
    def must_go_on(self) -> bool:
        """Whether the answer is too short to end.

        A complete structured answer ends all the same, since nothing else can follow.
        """
        if self._num_sampled >= self.params.min_tokens:
            return False
        return self.grammar is None or not self.grammar.is_complete

    def count_token(self) -> None:
        """Count a token towards the minimum length."""
        self._num_sampled += 1

    @property
    def has_penalties(self) -> bool:
        params = self.params
        return (
            params.repetition_penalty != 1
            or params.presence_penalty != 0
            or params.frequency_penalty != 0
        )

    def next_uniform(self) -> float:
        """Return the answer's next random number, uniform in [0, 1)."""
        if not self._random_numbers:
            numbers = torch.rand(_RANDOM_BLOCK_SIZE, dtype=torch.float64, generator=self._generator)
            self._random_numbers = numbers.flip(0).tolist()
        return self._random_numbers.pop()

    def sample(self, logits: Tensor) -> int:
        """Sample the next token of the answer from float32 logits (vocabulary,) on any device.

        Raises ``NonFiniteLogits`` if the logits are not finite or the grammar masks all finite
        ones, and ``InvalidRequest`` if the grammar can't be enforced.
        """
        logits = logits.cpu()
        _check_finite(logits.numpy().max())
        if self.grammar is not None:
            logits = self.grammar.mask_logits(logits)
        row = self._adjust(logits.numpy())
        if self.has_penalties:
            row = self._penalize(row)
        best = int(row.argmax())
        _check_finite(row[best])  # again: the grammar may have masked all finite logits
        token_id = best if self.params.temperature == 0 else self._draw(row, row[best])
        self._record(token_id)
        return token_id

    def _adjust(self, row: LogitsRow) -> LogitsRow:
        """Return the row with the bias, and without the tokens that would end it too early."""
        if not self.params.logit_bias and not self.must_go_on:
            return row
        row = row.copy()
        row[self.bias_ids] += self.biases
        if self.must_go_on:
            longer = row.copy()
            longer[self.end_ids] = -np.inf
            # A grammar may allow nothing but a token that would end the answer.
            row = longer if np.isfinite(longer).any() else row
        return row

    def _record(self, token_id: int) -> None:
        self.count_token()
        if self.grammar is not None:
            self.grammar.accept(token_id)
        if self.has_penalties:
            self._counts[token_id] += 1

    def _penalize(self, row: LogitsRow) -> LogitsRow:
        """Return a copy of the row with penalties applied.

        Repetition (tokens of the prompt and the answer): Keskar et al. 2019, as in transformers'
        ``RepetitionPenaltyLogitsProcessor``. Presence and frequency (tokens of the answer):
        https://platform.openai.com/docs/guides/text-generation, ``logits[j] -= count[j] * frequency
        + (count[j] > 0) * presence``, after repetition as in vLLM.
        """
        params = self.params
        row = row.copy()
        answer_ids = np.fromiter(self._counts.keys(), dtype=np.int64)
        if params.repetition_penalty != 1:
            ids = np.concatenate((self.prompt_ids, answer_ids))
            # A prompt may contain ids without a logit, such as image tokens.
            ids = ids[ids < len(row)]
            logits = row[ids]
            # An id in both prompt and answer is written twice, with the same value.
            row[ids] = np.where(
                logits < 0, logits * params.repetition_penalty, logits / params.repetition_penalty
            )
        counts = np.fromiter(self._counts.values(), dtype=np.float32)
        row[answer_ids] -= counts * params.frequency_penalty + params.presence_penalty
        return row

    def _draw(self, row: LogitsRow, best_logit: np.float32) -> int:
        """Draw a token by inverse transform sampling, with one uniform random number.

        The weights are added up in the order of the token ids. Small numerical differences in the
        logits then shift the boundaries only slightly. Sorted by weight, two tokens could swap
        places and change the draw.
        """
        ids, weights = self._candidates(row, best_logit)
        bounds = weights.cumsum()
        target = self.next_uniform() * bounds[-1]
        index = int(bounds.searchsorted(target, side="right"))
        return index if ids is None else int(ids[index])

    def _candidates(self, row: LogitsRow, best_logit: np.float32) -> tuple[Ids | None, Weights]:
        """Return the ids and weights of the tokens to draw from.

        The ids are in ascending order, or None for all tokens.
        """
        params = self.params
        if 0 < params.top_k < len(row):
            ids = _top_ids(row, params.top_k)
            weights = _weights(row[ids], best_logit, params.temperature)
            is_kept = _is_in_nucleus(weights, params.top_p, weights.sum())
        elif params.top_p < 1:
            all_weights = _weights(row, best_logit, params.temperature)
            total = all_weights.sum()
            ids = _top_ids(row, NUCLEUS_CANDIDATES)
            if all_weights[ids].sum() < params.top_p * total:
                ids = _top_ids(row, len(row))
            weights = all_weights[ids]
            is_kept = _is_in_nucleus(weights, params.top_p, total)
        else:
            weights = _weights(row, best_logit, params.temperature)
            weights[weights < params.min_p] = 0
            return None, weights
        # min-p is relative to the best token's probability: Nguyen et al. 2024.
        is_kept &= weights >= params.min_p
        ids = ids[is_kept]
        weights = weights[is_kept]
        order = ids.argsort()
        return ids[order], weights[order]


@dataclass(frozen=True, eq=False)
class SampledTokens:
    """The next token of each row."""

    tokens: Tensor
    """int64 (rows,), on the device of the logits."""
    failures: dict[int, Exception]
    """Exceptions of rows that failed. The tokens of these rows are arbitrary."""
    is_finite: Tensor | None = None
    """Whether the best logit of each row is finite, bool (rows,). None if non-finite rows are
    already in ``failures``."""


class BatchSampler(Protocol):
    """Samples all rows of a batch."""

    def reset_slot(self, slot: int, sampler: AnswerSampler) -> None:
        """Reset a slot's state for a new answer that uses this sampler."""
        ...

    def add_slots(self, num_slots: int) -> None:
        """Have ``num_slots`` slots, which are more than before."""
        ...

    def sample(
        self, logits: Tensor, samplers: Sequence[AnswerSampler], slots: Sequence[int]
    ) -> SampledTokens:
        """Sample the next token of each row, from float32 logits (rows, vocabulary)."""
        ...


class HostSampler(BatchSampler):
    """Samples on the host, with each row's own :class:`AnswerSampler`, which holds all state."""

    def reset_slot(self, slot: int, sampler: AnswerSampler) -> None:
        pass

    def add_slots(self, num_slots: int) -> None:
        pass

    def sample(
        self, logits: Tensor, samplers: Sequence[AnswerSampler], slots: Sequence[int]
    ) -> SampledTokens:
        results = sample_rows(logits.cpu(), samplers)
        failures = {
            row: result for row, result in enumerate(results) if isinstance(result, Exception)
        }
        tokens = [0 if isinstance(result, Exception) else result for result in results]
        return SampledTokens(torch.tensor(tokens, device=logits.device), failures)


def sample_rows(logits: Tensor, samplers: Sequence[AnswerSampler]) -> list[int | Exception]:
    """Return the next token of each row, or the row's exception.

    ``logits`` are float32 (rows, vocabulary), on the host. All rows that need only the argmax are
    processed together.
    """
    plain_rows = [row for row, sampler in enumerate(samplers) if sampler.is_plain_argmax]
    results: dict[int, int | Exception] = {}
    if plain_rows:
        plain_logits = logits if len(plain_rows) == len(logits) else logits[plain_rows]
        results.update(zip(plain_rows, _argmax(plain_logits), strict=True))
    for row, sampler in enumerate(samplers):
        if row not in results:
            results[row] = _try_sample(sampler, logits[row])
    return [results[row] for row in range(len(samplers))]


def _try_sample(sampler: AnswerSampler, logits: Tensor) -> int | Exception:
    try:
        return sampler.sample(logits)
    except Exception as error:
        return error


def _argmax(logits: Tensor) -> list[int | Exception]:
    """Return each row's argmax (the lowest id on ties), or an error if its logit is not finite."""
    # numpy's argmax is about 20 times faster than torch's, and single-threaded.
    ids = torch.from_numpy(logits.numpy().argmax(-1))
    best_logits = logits.gather(-1, ids[:, None])
    pairs = torch.cat((ids[:, None].double(), best_logits.double()), -1).tolist()
    return [
        int(token_id) if abs(logit) < np.inf else NonFiniteLogits() for token_id, logit in pairs
    ]


def _top_ids(row: LogitsRow, count: int) -> Ids:
    """Return the ids of the ``count`` best tokens, best first."""
    if count >= len(row):
        return (-row).argsort()
    ids = row.argpartition(-count)[-count:]
    return ids[(-row[ids]).argsort()]


def _weights(row: LogitsRow, best_logit: np.float32, temperature: float) -> Weights:
    """Return the tokens' probabilities relative to the best token's.

    Logits are relative to the best one, so dividing by a tiny temperature can overflow only to −∞.
    """
    with np.errstate(over="ignore"):
        scaled = (row.astype(np.float64) - best_logit) / temperature
    return np.exp(scaled, out=scaled)


def _is_in_nucleus(weights: Weights, top_p: float, total: np.float64) -> NDArray[np.bool_]:
    """Return which weights, sorted in descending order, belong to the nucleus.

    The nucleus is the smallest set whose sum reaches ``top_p`` of ``total``, at least one token.
    Nucleus sampling: Holtzman et al. 2019.
    """
    if top_p >= 1:
        return np.ones(len(weights), dtype=np.bool_)
    is_inside = weights.cumsum() - weights < top_p * total
    is_inside[0] = True
    return is_inside


def _check_finite(best_logit: np.float32) -> None:
    if not np.isfinite(best_logit):
        raise NonFiniteLogits
