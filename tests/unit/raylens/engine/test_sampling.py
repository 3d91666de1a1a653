from __future__ import annotations

import math

import pytest
import torch

from raylens.engine.sampling import Sampler
from raylens.types import SamplingParams

LOGITS = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))


def draw(count: int, **params: float) -> list[int]:
    sampler = Sampler(SamplingParams(**params))  # type: ignore[arg-type]
    return [sampler.choose(LOGITS) for _ in range(count)]


def test_zero_temperature_is_greedy() -> None:
    assert set(draw(5, temperature=0.0)) == {0}


def test_frequencies_follow_the_probabilities() -> None:
    drawn = draw(4000, temperature=1.0, seed=7)
    for token, probability in enumerate([0.5, 0.3, 0.15, 0.05]):
        error = 4 * math.sqrt(probability * (1 - probability) / len(drawn))
        assert abs(drawn.count(token) / len(drawn) - probability) < error


def test_top_p_keeps_the_fewest_tokens_that_reach_it() -> None:
    assert set(draw(400, temperature=1.0, top_p=0.75, seed=1)) == {0, 1}
    assert set(draw(50, temperature=1.0, top_p=1e-6, seed=1)) == {0}


def test_a_seed_repeats_and_its_answers_differ() -> None:
    params = SamplingParams(temperature=1.0, seed=3)
    first, again, second = Sampler(params), Sampler(params), Sampler(params, offset=1)
    drawn = [[s.choose(LOGITS) for _ in range(40)] for s in (first, again, second)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_negative_and_huge_seeds_work() -> None:
    for seed in (-1, 2**63 - 1, -(2**63)):
        Sampler(SamplingParams(temperature=1.0, seed=seed), offset=3).choose(LOGITS)


def test_a_temperature_next_to_nothing_is_greedy() -> None:
    for temperature in (1e-310, 1e-20, 1e-4):
        assert set(draw(5, temperature=temperature, seed=1)) == {0}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_an_error(temperature) -> None:
    with pytest.raises(ValueError, match="not finite"):
        Sampler(SamplingParams(temperature=temperature)).choose(torch.full((4,), torch.nan))
