"""The device sampler, run on a CPU, samples the same tokens as the samplers on the host."""

from __future__ import annotations

import json
import random

import pytest
import torch

from raylens.core.types import SamplingParams
from raylens.engine.device_sampling import DeviceSampler
from raylens.engine.sampling import AnswerSampler, sample_rows
from raylens.engine.structured import GrammarCompiler
from testing.tokenizers import byte_tokenizer
from tests.unit.raylens.engine.fakes import EOS, compile_schema

VOCABULARY = 700
PROMPT = (1, 2, 2, 650, 9999)


def noise(rows: int, seed: int) -> torch.Tensor:
    return 3 * torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed))


def random_params(rng: random.Random) -> SamplingParams:
    return SamplingParams(
        temperature=rng.choice((0.0, 0.3, 1.0, 1.7)),
        top_p=rng.choice((1.0, 1.0, 0.9, 0.3, 1e-9)),
        top_k=rng.choice((0, 0, 1, 5, 300, 2000)),
        min_p=rng.choice((0.0, 0.0, 0.05, 1.0)),
        repetition_penalty=rng.choice((1.0, 1.0, 1.3, 0.8)),
        presence_penalty=rng.choice((0.0, 0.0, 0.7)),
        frequency_penalty=rng.choice((0.0, 0.0, -0.5, 0.4)),
        seed=rng.randrange(1000),
    )


def test_mixed_batches_get_the_same_tokens_as_on_the_host() -> None:
    rng = random.Random(3)
    params = [random_params(rng) for _ in range(64)]
    slots = list(range(64))
    rng.shuffle(slots)
    samplers = [AnswerSampler(row_params, PROMPT, row) for row, row_params in enumerate(params)]
    host_samplers = [
        AnswerSampler(row_params, PROMPT, row) for row, row_params in enumerate(params)
    ]
    device_sampler = DeviceSampler(64, VOCABULARY, "cpu")
    for slot, sampler in zip(slots, samplers, strict=True):
        device_sampler.reset_slot(slot, sampler)
    for step in range(40):
        rows = sorted(rng.sample(range(64), rng.randint(1, 64)))
        logits = noise(len(rows), step)
        before = logits.clone()
        sampled = device_sampler.sample(
            logits, [samplers[row] for row in rows], [slots[row] for row in rows]
        )
        assert sampled.tokens.tolist() == sample_rows(before, [host_samplers[row] for row in rows])
        assert torch.equal(logits, before)
        assert not sampled.failures
        assert sampled.is_finite is not None
        assert sampled.is_finite.all()


def test_a_new_answer_does_not_inherit_the_penalties_of_its_slot() -> None:
    params = SamplingParams(frequency_penalty=2.0, repetition_penalty=2.0)
    logits = torch.zeros(1, VOCABULARY)
    logits[0, :3] = torch.tensor([3.0, 2.0, 1.0])
    device_sampler = DeviceSampler(2, VOCABULARY, "cpu")
    prompts: tuple[tuple[int, ...], ...] = ((), (0,), ())
    for prompt, expected in zip(prompts, ([0, 1], [1, 0], [0, 1]), strict=True):
        sampler = AnswerSampler(params, prompt)
        device_sampler.reset_slot(1, sampler)
        tokens = [device_sampler.sample(logits, [sampler], [1]).tokens.item() for _ in range(2)]
        assert tokens == expected


def test_a_schema_is_followed_in_a_batch_with_unconstrained_answers() -> None:
    compiler = GrammarCompiler(byte_tokenizer(), frozenset({EOS}), VOCABULARY)
    schema = json.dumps({"enum": ["yes", "no"]})
    random_params = SamplingParams(temperature=1.0, seed=1)
    samplers = [
        AnswerSampler(SamplingParams(), grammar=compile_schema(compiler, schema)),
        AnswerSampler(SamplingParams()),
        AnswerSampler(random_params, grammar=compile_schema(compiler, schema)),
        AnswerSampler(random_params),
    ]
    device_sampler = DeviceSampler(4, VOCABULARY, "cpu")
    steps = [device_sampler.sample(noise(4, step), samplers, [0, 1, 2, 3]) for step in range(4)]
    tokens = torch.stack([sampled.tokens for sampled in steps], 1)
    for row in (0, 2):
        text = bytes(token for token in tokens[row].tolist() if token < EOS).decode()
        assert text in ('"yes', '"no"')


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_only_a_row_with_non_finite_logits_fails(value: float) -> None:
    device_sampler = DeviceSampler(3, VOCABULARY, "cpu")
    for params in (SamplingParams(), SamplingParams(temperature=1.0, top_p=0.5)):
        logits = noise(3, 0)
        logits[1, 5] = value
        sampled = device_sampler.sample(
            logits, [AnswerSampler(params) for _ in range(3)], [0, 1, 2]
        )
        assert sampled.is_finite is not None
        assert sampled.is_finite.tolist() == [True, False, True]


def test_only_the_row_of_an_unusable_grammar_fails() -> None:
    compiler = GrammarCompiler(byte_tokenizer(), frozenset({EOS}), VOCABULARY)
    unusable = compile_schema(compiler, json.dumps({"const": 1}))
    with pytest.raises(ValueError, match="forbids"):
        unusable.accept(ord("x"))
    samplers = [AnswerSampler(SamplingParams(), grammar=unusable), AnswerSampler(SamplingParams())]
    sampled = DeviceSampler(2, VOCABULARY, "cpu").sample(noise(2, 0), samplers, [0, 1])
    assert list(sampled.failures) == [0]


def test_more_slots_keep_the_penalties_of_those_in_use() -> None:
    params = SamplingParams(frequency_penalty=2.0)
    logits = torch.zeros(1, VOCABULARY)
    logits[0, :2] = torch.tensor([3.0, 2.0])
    device_sampler = DeviceSampler(1, VOCABULARY, "cpu")
    sampler, other = AnswerSampler(params), AnswerSampler(params)
    device_sampler.reset_slot(0, sampler)
    tokens = [device_sampler.sample(logits, [sampler], [0]).tokens.item()]
    device_sampler.add_slots(3)
    device_sampler.reset_slot(2, other)
    tokens.append(device_sampler.sample(logits, [sampler], [0]).tokens.item())
    assert tokens == [0, 1]
    assert device_sampler.sample(logits, [other], [2]).tokens.item() == 0
