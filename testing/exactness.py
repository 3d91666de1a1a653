"""Whether a family's answers in changing company are what plain transformers generates for each
request alone."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import GenerationMixin

from raylens.core.types import (
    Chat,
    Detail,
    ImagePart,
    Message,
    Role,
    SamplingParams,
    TextPart,
    VideoPart,
    VisionRequest,
)
from raylens.engine.engine import Engine
from raylens.engine.limits import EngineLimits
from raylens.engine.model import Model, Prompt
from raylens.engine.sequence import Sequence, sequences
from testing.pictures import random_pixels

TIE = 1e-4
"""Where the reference's two best logits lie so close, rounding may choose either."""
MOST_TIES = 4
Inputs = Callable[[Prompt], dict[str, Any]]
"""What the reference's ``generate`` takes beside token ids."""


def user(*parts: TextPart | ImagePart | VideoPart) -> Chat:
    return Chat((Message(Role.USER, parts),))


def request(task: Any, **sampling: Any) -> VisionRequest:
    return VisionRequest("r", "m", task, time.time() + 3600, SamplingParams(**sampling))


def random_request(
    rng: random.Random, pictures: list[np.ndarray], videos: bool = False
) -> tuple[VisionRequest, list[np.ndarray]]:
    """Text only, one picture or several, at every detail, with texts and answers of many lengths."""
    shown = rng.sample(pictures, rng.choice((0, 1, 1, 2, 3)))
    parts: list[TextPart | ImagePart | VideoPart] = [
        ImagePart(index, rng.choice(list(Detail))) for index in range(len(shown))
    ]
    if videos and rng.random() < 0.2:
        frames = [random_pixels(80, 60, rng.randrange(99)) for _ in range(rng.randint(2, 5))]
        parts.append(
            VideoPart(tuple(range(len(shown), len(shown) + len(frames))), rng.choice((1.0, 2.0)))
        )
        shown += frames
    question = rng.choice(
        ("Describe this image.", "How many shapes are there?", "red blue " * rng.randint(1, 40))
    )
    parts.insert(rng.randint(0, len(parts)), TextPart(question))
    return request(user(*parts), max_tokens=rng.randint(1, 24)), shown


SLICES = EngineLimits(max_batch_size=6, prefill_tokens=48, max_prefill_slice_s=0.0)


def run_in_company(
    model: Model,
    rng: random.Random,
    count: int,
    videos: bool = False,
    limits: EngineLimits = SLICES,
) -> list[Sequence]:
    """``count`` requests that come and go at random, some of them aborted, in small slices, with
    reuse."""
    engine = Engine(model, limits)
    pictures = [
        random_pixels(rng.randint(20, 500), rng.randint(20, 500), seed) for seed in range(12)
    ]
    made: list[Sequence] = []
    while len(made) < count or engine.has_work:
        for _ in range(rng.choice((0, 0, 1, 2)) if len(made) < count else 0):
            wanted, shown = random_request(rng, pictures, videos)
            joining = sequences(wanted, model.prepare(wanted, shown), model.tokenizer)
            engine.scheduler.add(joining)
            made += joining
        assert not [output.error for output in engine.step() if output.error]
        if engine.scheduler.running and rng.random() < 0.02:
            rng.choice(engine.scheduler.running).aborted = True
    return made


def assert_as_alone(made: list[Sequence], reference: GenerationMixin, inputs: Inputs) -> int:
    """Token for token; a difference is a tie, and ties are rare: how many there are."""
    ties = sum(_is_tie(sequence, reference, inputs) for sequence in made)
    assert ties <= MOST_TIES
    assert sum(sequence.aborted for sequence in made) >= len(made) // 40
    assert len({tuple(sequence.output_ids) for sequence in made}) > len(made) // 4
    return ties


def _is_tie(sequence: Sequence, reference: GenerationMixin, inputs: Inputs) -> bool:
    if not sequence.output_ids:
        return False
    device = reference.device
    ids = torch.tensor([sequence.prompt.token_ids], device=device)
    given = {name: tensor.to(device) for name, tensor in inputs(sequence.prompt).items()}
    generated = reference.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        **given,
        max_new_tokens=len(sequence.output_ids),
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    expected = generated.sequences[0, ids.shape[1] :].tolist()
    if not sequence.aborted:
        ended = sequence.output_ids[-1] == reference.generation_config.eos_token_id
        assert ended or len(sequence.output_ids) == sequence.params.max_tokens
    for step, (ours, theirs) in enumerate(zip(sequence.output_ids, expected, strict=False)):
        if ours != theirs:
            best = generated.logits[step][0].topk(2).values
            assert best[0] - best[1] < TIE
            return True
    assert len(expected) == len(sequence.output_ids)
    return False
