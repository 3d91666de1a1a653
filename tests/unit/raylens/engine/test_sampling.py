from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from raylens.core.types import SamplingParams
from raylens.engine import sampling
from raylens.engine.sampling import AnswerSampler, sample_rows

LOGITS = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))


def draw(count: int, logits: Tensor = LOGITS, **params: Any) -> list[int]:
    sampler = AnswerSampler(SamplingParams(**params))
    return [sampler.sample(logits) for _ in range(count)]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def probabilities(logits: Tensor, params: SamplingParams, prompt: tuple[int, ...] = ()) -> Tensor:
    """Return the distribution that a sampler draws from, float64 (vocabulary,)."""
    sampler = AnswerSampler(params, prompt)
    row = logits.numpy()
    if sampler.has_penalties:
        row = sampler._penalize(row)
    ids, weights = sampler._candidates(row, row.max())
    all_weights = torch.zeros(len(logits), dtype=torch.float64)
    all_weights[slice(None) if ids is None else torch.from_numpy(ids)] = torch.from_numpy(weights)
    return all_weights / all_weights.sum()


def reference(logits: Tensor, params: SamplingParams, prompt: tuple[int, ...] = ()) -> Tensor:
    """Return the distribution of transformers' processors, in the order of ``generate``."""
    steps = LogitsProcessorList()
    if params.repetition_penalty != 1:
        steps.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    steps.append(TemperatureLogitsWarper(params.temperature))
    if params.top_k:
        steps.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        steps.append(TopPLogitsWarper(params.top_p))
    if params.min_p:
        steps.append(MinPLogitsWarper(params.min_p))
    ids = torch.tensor([prompt], dtype=torch.long)
    return torch.softmax(steps(ids, logits[None].double())[0], -1)


def test_zero_temperature_is_greedy() -> None:
    assert set(draw(5, temperature=0.0)) == {0}


def test_greedy_sampling_chooses_the_first_of_equal_logits() -> None:
    logits = torch.tensor([0.0, 3.0, 1.0, 3.0, 3.0])
    assert set(draw(3, logits)) == {1}
    samplers = [AnswerSampler(SamplingParams()) for _ in range(3)]
    assert sample_rows(logits.expand(3, 5), samplers) == [1, 1, 1]


def test_frequencies_follow_the_probabilities() -> None:
    tokens = draw(4000, temperature=1.0, seed=7)
    for token, probability in enumerate([0.5, 0.3, 0.15, 0.05]):
        error = 4 * math.sqrt(probability * (1 - probability) / len(tokens))
        assert abs(tokens.count(token) / len(tokens) - probability) < error


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 0.5},
        {"top_k": 7},
        {"top_p": 0.8},
        {"top_p": 0.999},
        {"min_p": 0.2},
        {"repetition_penalty": 2.0},
    ],
    ids=str,
)
def test_draws_fit_the_distribution_of_transformers(params) -> None:
    count = 3000
    prompt = (3, 5)
    logits = noise(40, seed=1) * 2
    sampling_params = SamplingParams(**{"temperature": 1.0, **params})
    expected = reference(logits, sampling_params, prompt) * count
    counts: Counter[int] = Counter()
    # A new sampler for each draw: earlier tokens of an answer would change its penalties.
    for seed in range(count):
        seeded_params = SamplingParams(**{"temperature": 1.0, **params, "seed": seed})
        counts[AnswerSampler(seeded_params, prompt).sample(logits)] += 1
    assert all(expected[token] > 0 for token in counts)
    is_likely = expected >= 5
    chi_squared = sum(
        (counts[token] - float(expected[token])) ** 2 / float(expected[token])
        for token in is_likely.nonzero()[:, 0].tolist()
    )
    degrees_of_freedom = int(is_likely.sum())
    assert chi_squared < degrees_of_freedom + 4 * math.sqrt(2 * degrees_of_freedom)


@pytest.mark.parametrize("seed", range(60))
def test_the_distribution_equals_that_of_transformers(seed) -> None:
    generator = torch.Generator().manual_seed(seed)

    def choice(*values: float) -> Any:
        return values[int(torch.randint(len(values), (), generator=generator))]

    params = SamplingParams(
        temperature=choice(0.3, 0.7, 1.0, 1.6),
        top_k=choice(0, 1, 5, 50, 300, 2000),
        top_p=choice(1.0, 0.05, 0.5, 0.9, 0.99),
        min_p=choice(0.0, 0.02, 0.3, 1.0),
        repetition_penalty=choice(1.0, 0.8, 1.3),
    )
    logits = noise(choice(60, 1000), seed=seed) * choice(0.2, 1.0, 4.0)
    prompt = (1, 5, 5, 9, 50)
    torch.testing.assert_close(
        probabilities(logits, params, prompt),
        reference(logits, params, prompt),
        atol=1e-6,
        rtol=1e-5,
    )


def test_top_p_keeps_the_fewest_tokens_that_reach_it() -> None:
    assert set(draw(400, temperature=1.0, top_p=0.75, seed=1)) == {0, 1}
    assert set(draw(400, temperature=1.0, top_p=0.81, seed=1)) == {0, 1, 2}
    assert set(draw(400, temperature=1.0, top_p=1.0, seed=1)) == {0, 1, 2, 3}
    assert set(draw(50, temperature=1.0, top_p=1e-6, seed=1)) == {0}
    assert set(draw(50, temperature=1.0, top_p=0.0, seed=1)) == {0}


def test_top_k_keeps_that_many_tokens() -> None:
    assert set(draw(50, temperature=1.0, top_k=1, seed=1)) == {0}
    assert set(draw(400, temperature=1.0, top_k=3, seed=1)) == {0, 1, 2}
    for no_limit in (0, 4, 5, 10**9):
        assert set(draw(400, temperature=1.0, top_k=no_limit, seed=1)) == {0, 1, 2, 3}


def test_min_p_is_relative_to_the_best_token() -> None:
    assert set(draw(50, temperature=1.0, min_p=1.0, seed=1)) == {0}
    assert set(draw(400, temperature=1.0, min_p=0.29, seed=1)) == {0, 1, 2}
    assert set(draw(400, temperature=1.0, min_p=0.31, top_p=0.99, seed=1)) == {0, 1}


@pytest.mark.parametrize("scale", [0.5, 1.0, 6.0])
@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.999])
def test_a_nucleus_of_few_candidates_equals_that_of_a_full_sort(monkeypatch, scale, top_p) -> None:
    logits = noise(151_936, seed=4) * scale
    params = SamplingParams(temperature=1.0, top_p=top_p)
    fast = probabilities(logits, params)
    monkeypatch.setattr(sampling, "NUCLEUS_CANDIDATES", len(logits))
    torch.testing.assert_close(fast, probabilities(logits, params), atol=0, rtol=1e-9)


def test_repetition_penalty_by_hand() -> None:
    logits = torch.tensor([4.0, -1.0, 3.0, 2.5])
    sampler = AnswerSampler(SamplingParams(repetition_penalty=2.0), prompt_ids=(0, 1, 1, 99))
    assert sampler.sample(logits) == 2  # 2, -2, 3, 2.5
    assert sampler.sample(logits) == 3  # 2, -2, 1.5, 2.5
    assert sampler.sample(logits) == 0  # 2, -2, 1.5, 1.25
    assert sampler.sample(torch.tensor([-4.0, -1.9, -3.0, -3.0])) == 1  # -8, -3.8, -6, -6


def test_presence_and_frequency_penalties_by_hand() -> None:
    logits = torch.tensor([4.0, 3.0, 2.2])
    both = AnswerSampler(
        SamplingParams(presence_penalty=0.5, frequency_penalty=1.0), prompt_ids=(0, 1, 2)
    )
    # 4 3 2.2 | 2.5 3 2.2 | 2.5 1.5 2.2 | 1.5 1.5 2.2 | 1.5 1.5 0.7 | 0.5 1.5 0.7
    assert [both.sample(logits) for _ in range(6)] == [0, 1, 0, 2, 0, 1]
    presence = AnswerSampler(SamplingParams(presence_penalty=1.5))
    assert [presence.sample(logits) for _ in range(4)] == [0, 1, 0, 0]
    negative = AnswerSampler(SamplingParams(frequency_penalty=-1.0))
    assert [negative.sample(row) for row in (logits, torch.tensor([4.0, 4.5, 0.0]))] == [0, 0]


def test_penalties_do_not_modify_the_logits() -> None:
    logits = noise(50)
    before = logits.clone()
    sampler = AnswerSampler(
        SamplingParams(temperature=1.0, repetition_penalty=1.5, presence_penalty=1.0, top_p=0.9),
        (3,),
    )
    for _ in range(5):
        sampler.sample(logits)
    assert torch.equal(logits, before)


def test_a_seed_is_reproducible_and_its_answers_differ() -> None:
    params = SamplingParams(temperature=1.0, seed=3)
    samplers = [AnswerSampler(params), AnswerSampler(params), AnswerSampler(params, offset=1)]
    first, repeated, second = ([s.sample(LOGITS) for _ in range(40)] for s in samplers)
    assert first == repeated != second


@pytest.mark.parametrize(
    "params", [{}, {"top_p": 0.9}, {"top_k": 40}, {"min_p": 0.05, "presence_penalty": 0.3}], ids=str
)
def test_seeded_draws_depend_neither_on_other_rows_nor_on_rounding(params) -> None:
    seeded_params = SamplingParams(temperature=0.8, seed=11, **params)
    alone = AnswerSampler(seeded_params)
    batched = AnswerSampler(seeded_params)
    other_params = [
        SamplingParams(),
        SamplingParams(temperature=1.0),
        SamplingParams(temperature=1.3, seed=11, top_p=0.5),
    ]
    others = [AnswerSampler(row_params) for row_params in other_params]
    for step in range(100):
        logits = noise(4, 5000, seed=step) * 3
        row = step % 4
        samplers = [*others[:row], batched, *others[row:]]
        rounded = logits + 1e-6 * noise(4, 5000, seed=1000 + step)
        assert sample_rows(rounded, samplers)[row] == alone.sample(logits[row])


def test_each_draw_takes_one_random_number() -> None:
    """Answers that differ only in their parameters thus use the same random numbers."""
    first, second = (
        AnswerSampler(SamplingParams(temperature=1.0, seed=5, top_p=top_p)) for top_p in (1.0, 0.1)
    )
    for _ in range(7):
        first.sample(noise(300))
        second.sample(noise(900))
    assert first.next_uniform() == second.next_uniform()


def test_negative_and_huge_seeds_work() -> None:
    for seed in (-1, 2**63 - 1, -(2**63)):
        AnswerSampler(SamplingParams(temperature=1.0, seed=seed), offset=3).sample(LOGITS)


def test_a_temperature_near_zero_is_greedy() -> None:
    for temperature in (1e-310, 1e-20, 1e-4):
        for params in ({}, {"top_p": 0.9}, {"top_k": 2}, {"min_p": 0.1}):
            assert set(draw(5, temperature=temperature, seed=1, **params)) == {0}


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("params", [{}, {"temperature": 1.0}, {"presence_penalty": 1.0}], ids=str)
def test_non_finite_logits_are_an_error(params, value) -> None:
    logits = torch.zeros(4)
    logits[2] = value
    for non_finite in (logits, torch.full((4,), value), torch.full((4,), -torch.inf)):
        with pytest.raises(ValueError, match="not finite"):
            AnswerSampler(SamplingParams(**params)).sample(non_finite)


def test_tokens_with_a_logit_of_minus_infinity_are_never_drawn() -> None:
    logits = torch.tensor([0.0, -torch.inf, 0.0, -torch.inf])
    for params in ({}, {"top_p": 0.99}, {"top_k": 3}, {"repetition_penalty": 1.5}):
        assert set(draw(100, logits, temperature=1.0, seed=1, **params)) == {0, 2}


def test_only_greedy_rows_without_penalties_are_a_plain_argmax() -> None:
    assert AnswerSampler(SamplingParams()).is_plain_argmax
    assert AnswerSampler(SamplingParams(top_p=0.5, top_k=3, min_p=0.1, seed=4)).is_plain_argmax
    for params in (
        {"temperature": 0.1},
        {"repetition_penalty": 1.1},
        {"presence_penalty": -0.1},
        {"frequency_penalty": 0.1},
    ):
        assert not AnswerSampler(SamplingParams(**params)).is_plain_argmax  # type: ignore[arg-type]


def test_a_batch_gets_the_same_tokens_as_each_row_alone() -> None:
    params = [
        SamplingParams(),
        SamplingParams(temperature=1.0, seed=1),
        SamplingParams(repetition_penalty=1.3),
        SamplingParams(),
        SamplingParams(
            temperature=0.5, top_p=0.9, top_k=9, min_p=0.01, frequency_penalty=1.0, seed=2
        ),
    ]
    batch = [AnswerSampler(row_params, (1, 2)) for row_params in params]
    alone = [AnswerSampler(row_params, (1, 2)) for row_params in params]
    for step in range(20):
        logits = noise(5, 200, seed=step)
        assert sample_rows(logits, batch) == [
            s.sample(row) for s, row in zip(alone, logits, strict=True)
        ]


def test_a_row_that_fails_does_not_affect_the_others() -> None:
    logits = noise(4, 50)
    logits[0, 3] = logits[2, 7] = torch.nan
    greedy = SamplingParams()
    random = SamplingParams(temperature=1.0, top_k=1)
    results = sample_rows(
        logits, [AnswerSampler(params) for params in (greedy, greedy, random, random)]
    )
    assert isinstance(results[0], ValueError)
    assert isinstance(results[2], ValueError)
    assert [results[1], results[3]] == [int(logits[1].argmax()), int(logits[3].argmax())]


def test_an_empty_batch_gets_no_tokens() -> None:
    assert sample_rows(torch.zeros(0, 5), []) == []
