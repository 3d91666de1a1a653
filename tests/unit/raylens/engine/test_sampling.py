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
from raylens.engine.sampling import Sampler, sample_all

LOGITS = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))


def draw(count: int, logits: Tensor = LOGITS, **params: Any) -> list[int]:
    sampler = Sampler(SamplingParams(**params))
    return [sampler.choose(logits) for _ in range(count)]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def probabilities(logits: Tensor, params: SamplingParams, prompt: tuple[int, ...] = ()) -> Tensor:
    """What a sampler draws from, float64 (vocabulary,)."""
    sampler = Sampler(params, prompt)
    row = logits.numpy()
    if sampler.has_penalties:
        row = sampler._penalize(row)
    ids, weights = sampler._candidates(row, row.max())
    found = torch.zeros(len(logits), dtype=torch.float64)
    found[slice(None) if ids is None else torch.from_numpy(ids)] = torch.from_numpy(weights)
    return found / found.sum()


def theirs(logits: Tensor, params: SamplingParams, prompt: tuple[int, ...] = ()) -> Tensor:
    """The same, by transformers' processors in the order in which ``generate`` applies them."""
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


def test_of_equal_logits_the_greedy_choice_is_the_first() -> None:
    logits = torch.tensor([0.0, 3.0, 1.0, 3.0, 3.0])
    assert set(draw(3, logits)) == {1}
    assert sample_all(logits.expand(3, 5), [Sampler(SamplingParams()) for _ in range(3)]) == [
        1,
        1,
        1,
    ]


def test_frequencies_follow_the_probabilities() -> None:
    drawn = draw(4000, temperature=1.0, seed=7)
    for token, probability in enumerate([0.5, 0.3, 0.15, 0.05]):
        error = 4 * math.sqrt(probability * (1 - probability) / len(drawn))
        assert abs(drawn.count(token) / len(drawn) - probability) < error


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
    count, prompt, logits = 3000, (3, 5), noise(40, seed=1) * 2
    sampling_params = SamplingParams(**{"temperature": 1.0, **params})
    expected = theirs(logits, sampling_params, prompt) * count
    drawn: Counter[int] = Counter()
    for seed in range(count):  # one draw each: an answer's own tokens would change its penalties
        drawn[
            Sampler(SamplingParams(**{"temperature": 1.0, **params, "seed": seed}), prompt).choose(
                logits
            )
        ] += 1
    assert all(expected[token] > 0 for token in drawn)
    likely = expected >= 5
    squares = sum(
        (drawn[token] - float(expected[token])) ** 2 / float(expected[token])
        for token in likely.nonzero()[:, 0].tolist()
    )
    freedom = int(likely.sum())
    assert squares < freedom + 4 * math.sqrt(2 * freedom)


@pytest.mark.parametrize("seed", range(60))
def test_what_is_drawn_from_equals_transformers(seed) -> None:
    pick = torch.Generator().manual_seed(seed)

    def either(*values: float) -> Any:
        return values[int(torch.randint(len(values), (), generator=pick))]

    params = SamplingParams(
        temperature=either(0.3, 0.7, 1.0, 1.6),
        top_k=either(0, 1, 5, 50, 300, 2000),
        top_p=either(1.0, 0.05, 0.5, 0.9, 0.99),
        min_p=either(0.0, 0.02, 0.3, 1.0),
        repetition_penalty=either(1.0, 0.8, 1.3),
    )
    logits = noise(either(60, 1000), seed=seed) * either(0.2, 1.0, 4.0)
    prompt = (1, 5, 5, 9, 50)
    torch.testing.assert_close(
        probabilities(logits, params, prompt), theirs(logits, params, prompt), atol=1e-6, rtol=1e-5
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
    for all_of_them in (0, 4, 5, 10**9):
        assert set(draw(400, temperature=1.0, top_k=all_of_them, seed=1)) == {0, 1, 2, 3}


def test_min_p_keeps_what_is_likely_beside_the_best() -> None:
    assert set(draw(50, temperature=1.0, min_p=1.0, seed=1)) == {0}
    assert set(draw(400, temperature=1.0, min_p=0.29, seed=1)) == {0, 1, 2}
    assert set(draw(400, temperature=1.0, min_p=0.31, top_p=0.99, seed=1)) == {0, 1}


@pytest.mark.parametrize("scale", [0.5, 1.0, 6.0])
@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.999])
def test_a_nucleus_from_the_head_equals_one_from_a_full_sort(monkeypatch, scale, top_p) -> None:
    logits = noise(151_936, seed=4) * scale
    params = SamplingParams(temperature=1.0, top_p=top_p)
    fast = probabilities(logits, params)
    monkeypatch.setattr(sampling, "HEAD", len(logits))
    torch.testing.assert_close(fast, probabilities(logits, params), atol=0, rtol=1e-9)


def test_repetition_penalty_by_hand() -> None:
    logits = torch.tensor([4.0, -1.0, 3.0, 2.5])
    sampler = Sampler(SamplingParams(repetition_penalty=2.0), prompt_ids=(0, 1, 1, 99))
    assert sampler.choose(logits) == 2  # 2, -2, 3, 2.5
    assert sampler.choose(logits) == 3  # 2, -2, 1.5, 2.5
    assert sampler.choose(logits) == 0  # 2, -2, 1.5, 1.25
    assert sampler.choose(torch.tensor([-4.0, -1.9, -3.0, -3.0])) == 1  # -8, -3.8, -6, -6


def test_presence_and_frequency_penalties_by_hand() -> None:
    logits = torch.tensor([4.0, 3.0, 2.2])
    both = Sampler(
        SamplingParams(presence_penalty=0.5, frequency_penalty=1.0), prompt_ids=(0, 1, 2)
    )
    # 4 3 2.2 | 2.5 3 2.2 | 2.5 1.5 2.2 | 1.5 1.5 2.2 | 1.5 1.5 0.7 | 0.5 1.5 0.7
    assert [both.choose(logits) for _ in range(6)] == [0, 1, 0, 2, 0, 1]
    presence = Sampler(SamplingParams(presence_penalty=1.5))
    assert [presence.choose(logits) for _ in range(4)] == [0, 1, 0, 0]
    gift = Sampler(SamplingParams(frequency_penalty=-1.0))
    assert [gift.choose(row) for row in (logits, torch.tensor([4.0, 4.5, 0.0]))] == [0, 0]


def test_penalties_leave_the_logits_alone() -> None:
    logits = noise(50)
    before = logits.clone()
    sampler = Sampler(
        SamplingParams(temperature=1.0, repetition_penalty=1.5, presence_penalty=1.0, top_p=0.9),
        (3,),
    )
    for _ in range(5):
        sampler.choose(logits)
    assert torch.equal(logits, before)


def test_a_seed_repeats_and_its_answers_differ() -> None:
    params = SamplingParams(temperature=1.0, seed=3)
    first, again, second = Sampler(params), Sampler(params), Sampler(params, offset=1)
    drawn = [[s.choose(LOGITS) for _ in range(40)] for s in (first, again, second)]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize(
    "params", [{}, {"top_p": 0.9}, {"top_k": 40}, {"min_p": 0.05, "presence_penalty": 0.3}], ids=str
)
def test_seeded_draws_depend_neither_on_batch_mates_nor_on_rounding(params) -> None:
    mine = SamplingParams(temperature=0.8, seed=11, **params)
    alone, batched = Sampler(mine), Sampler(mine)
    others = [
        SamplingParams(),
        SamplingParams(temperature=1.0),
        SamplingParams(temperature=1.3, seed=11, top_p=0.5),
    ]
    mates = [Sampler(other) for other in others]
    for step in range(100):
        logits = noise(4, 5000, seed=step) * 3
        at = step % 4
        samplers = [*mates[:at], batched, *mates[at:]]
        rounded = logits + 1e-6 * noise(4, 5000, seed=1000 + step)
        assert sample_all(rounded, samplers)[at] == alone.choose(logits[at])


def test_each_draw_takes_one_number() -> None:
    """So that answers that differ in their parameters alone stay in step."""
    one, other = (
        Sampler(SamplingParams(temperature=1.0, seed=5, top_p=top_p)) for top_p in (1.0, 0.1)
    )
    for _ in range(7):
        one.choose(noise(300))
        other.choose(noise(900))
    assert one.draw() == other.draw()


def test_negative_and_huge_seeds_work() -> None:
    for seed in (-1, 2**63 - 1, -(2**63)):
        Sampler(SamplingParams(temperature=1.0, seed=seed), offset=3).choose(LOGITS)


def test_a_temperature_next_to_nothing_is_greedy() -> None:
    for temperature in (1e-310, 1e-20, 1e-4):
        for params in ({}, {"top_p": 0.9}, {"top_k": 2}, {"min_p": 0.1}):
            assert set(draw(5, temperature=temperature, seed=1, **params)) == {0}


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
@pytest.mark.parametrize("params", [{}, {"temperature": 1.0}, {"presence_penalty": 1.0}], ids=str)
def test_logits_that_are_no_numbers_are_an_error(params, broken) -> None:
    logits = torch.zeros(4)
    logits[2] = broken
    for bad in (logits, torch.full((4,), broken), torch.full((4,), -torch.inf)):
        with pytest.raises(ValueError, match="not finite"):
            Sampler(SamplingParams(**params)).choose(bad)


def test_tokens_that_the_model_rules_out_are_never_drawn() -> None:
    logits = torch.tensor([0.0, -torch.inf, 0.0, -torch.inf])
    for params in ({}, {"top_p": 0.99}, {"top_k": 3}, {"repetition_penalty": 1.5}):
        assert set(draw(100, logits, temperature=1.0, seed=1, **params)) == {0, 2}


def test_only_greedy_rows_without_penalties_are_plain() -> None:
    assert Sampler(SamplingParams()).is_plain_argmax
    assert Sampler(SamplingParams(top_p=0.5, top_k=3, min_p=0.1, seed=4)).is_plain_argmax
    for params in (
        {"temperature": 0.1},
        {"repetition_penalty": 1.1},
        {"presence_penalty": -0.1},
        {"frequency_penalty": 0.1},
    ):
        assert not Sampler(SamplingParams(**params)).is_plain_argmax  # type: ignore[arg-type]


def test_a_batch_chooses_what_each_row_would_alone() -> None:
    every = [
        SamplingParams(),
        SamplingParams(temperature=1.0, seed=1),
        SamplingParams(repetition_penalty=1.3),
        SamplingParams(),
        SamplingParams(
            temperature=0.5, top_p=0.9, top_k=9, min_p=0.01, frequency_penalty=1.0, seed=2
        ),
    ]
    batch, alone = ([Sampler(params, (1, 2)) for params in every] for _ in range(2))
    for step in range(20):
        logits = noise(5, 200, seed=step)
        assert sample_all(logits, batch) == [
            s.choose(row) for s, row in zip(alone, logits, strict=True)
        ]


def test_a_row_that_fails_leaves_the_others_alone() -> None:
    logits = noise(4, 50)
    logits[0, 3] = logits[2, 7] = torch.nan
    sampled = SamplingParams(temperature=1.0, top_k=1)
    chosen = sample_all(
        logits, [Sampler(p) for p in (SamplingParams(), SamplingParams(), sampled, sampled)]
    )
    assert isinstance(chosen[0], ValueError)
    assert isinstance(chosen[2], ValueError)
    assert [chosen[1], chosen[3]] == [int(logits[1].argmax()), int(logits[3].argmax())]


def test_an_empty_batch_chooses_nothing() -> None:
    assert sample_all(torch.zeros(0, 5), []) == []
