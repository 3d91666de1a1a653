"""What a GPU chooses with, on a CPU: the same tokens as the samplers on the host choose."""

from __future__ import annotations

import json
import random

import pytest
import torch

from raylens.core.types import SamplingParams
from raylens.engine.device_sampling import DeviceSampler
from raylens.engine.sampling import Sampler, sample_all
from raylens.engine.structured import Grammars
from tests.unit.raylens.engine.fakes import EOS, byte_tokenizer

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


def test_mixed_batches_are_chosen_as_each_row_is_on_the_host() -> None:
    rng = random.Random(3)
    params = [random_params(rng) for _ in range(64)]
    slots = list(range(64))
    rng.shuffle(slots)
    ours, theirs = (
        [Sampler(each, PROMPT, number) for number, each in enumerate(params)] for _ in range(2)
    )
    chooser = DeviceSampler(64, VOCABULARY, "cpu")
    for slot, sampler in zip(slots, ours, strict=True):
        chooser.begin(slot, sampler)
    for step in range(40):
        present = sorted(rng.sample(range(64), rng.randint(1, 64)))
        logits = noise(len(present), step)
        before = logits.clone()
        choice = chooser.choose(
            logits, [ours[row] for row in present], [slots[row] for row in present]
        )
        assert choice.tokens.tolist() == sample_all(before, [theirs[row] for row in present])
        assert torch.equal(logits, before)
        assert not choice.failures
        assert choice.finite is not None
        assert choice.finite.all()


def test_a_slot_forgets_the_answer_that_it_held() -> None:
    params = SamplingParams(frequency_penalty=2.0, repetition_penalty=2.0)
    logits = torch.zeros(1, VOCABULARY)
    logits[0, :3] = torch.tensor([3.0, 2.0, 1.0])
    chooser = DeviceSampler(2, VOCABULARY, "cpu")
    prompts: tuple[tuple[int, ...], ...] = ((), (0,), ())
    for prompt, expected in zip(prompts, ([0, 1], [1, 0], [0, 1]), strict=True):
        sampler = Sampler(params, prompt)
        chooser.begin(1, sampler)
        assert [chooser.choose(logits, [sampler], [1]).tokens.item() for _ in range(2)] == expected


def test_a_schema_is_followed_in_a_batch_with_free_answers() -> None:
    grammars = Grammars(byte_tokenizer(), frozenset({EOS}), VOCABULARY)
    schema = json.dumps({"enum": ["yes", "no"]})
    free = SamplingParams(temperature=1.0, seed=1)
    mixed = [
        Sampler(SamplingParams(), grammar=grammars.compile(schema)),
        Sampler(SamplingParams()),
        Sampler(free, grammar=grammars.compile(schema)),
        Sampler(free),
    ]
    chooser = DeviceSampler(4, VOCABULARY, "cpu")
    tokens = torch.stack(
        [chooser.choose(noise(4, step), mixed, [0, 1, 2, 3]).tokens for step in range(4)], 1
    )
    for row in (0, 2):
        said = bytes(token for token in tokens[row].tolist() if token < EOS).decode()
        assert said in ('"yes', '"no"')


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_only_the_row_fails_that_is_not_finite(bad: float) -> None:
    chooser = DeviceSampler(3, VOCABULARY, "cpu")
    for params in (SamplingParams(), SamplingParams(temperature=1.0, top_p=0.5)):
        logits = noise(3, 0)
        logits[1, 5] = bad
        choice = chooser.choose(logits, [Sampler(params) for _ in range(3)], [0, 1, 2])
        assert choice.finite is not None
        assert choice.finite.tolist() == [True, False, True]


def test_a_grammar_that_cannot_go_on_fails_its_row_alone() -> None:
    grammars = Grammars(byte_tokenizer(), frozenset({EOS}), VOCABULARY)
    stuck = grammars.compile(json.dumps({"const": 1}))
    with pytest.raises(ValueError, match="forbids"):
        stuck.accept(ord("x"))
    samplers = [Sampler(SamplingParams(), grammar=stuck), Sampler(SamplingParams())]
    choice = DeviceSampler(2, VOCABULARY, "cpu").choose(noise(2, 0), samplers, [0, 1])
    assert list(choice.failures) == [0]
