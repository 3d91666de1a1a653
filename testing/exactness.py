"""Comparison of a family's answers in changing batches with transformers' ``generate``, which
answers one request at a time."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
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
from raylens.engine.sequence import GenerationSequence, make_sequences
from testing.pictures import random_pixels

MAX_TIE_GAP = 1e-4
"""If the reference's two best logits are closer than this, rounding may decide for either token."""
MAX_TIES = 4
MakeInputs = Callable[[Prompt], dict[str, Any]]
"""Returns the arguments of the reference's ``generate`` beside the token ids."""


def user(*parts: TextPart | ImagePart | VideoPart) -> Chat:
    """Return a chat of one user message."""
    return Chat((Message(Role.USER, parts),))


def request(task: Any, **sampling: Any) -> VisionRequest:
    return VisionRequest("r", "m", task, time.time() + 3600, SamplingParams(**sampling))


def prepare_sequences(
    model: Model, vision_request: VisionRequest, pictures: list[NDArray[np.uint8]]
) -> list[GenerationSequence]:
    """Return one sequence for each answer that the request asks for."""
    return make_sequences(vision_request, model.prepare(vision_request, pictures), model.tokenizer)


def random_request(
    rng: random.Random, pictures: list[NDArray[np.uint8]], videos: bool = False
) -> tuple[VisionRequest, list[NDArray[np.uint8]]]:
    """Return a chat with its pictures: none, one or several, at every level of detail.

    Questions and answers have many lengths. With ``videos`` some chats contain a short video.
    """
    request_pictures = rng.sample(pictures, rng.choice((0, 1, 1, 2, 3)))
    parts: list[TextPart | ImagePart | VideoPart] = [
        ImagePart(index, rng.choice(list(Detail))) for index in range(len(request_pictures))
    ]
    if videos and rng.random() < 0.2:
        frames = [random_pixels(80, 60, rng.randrange(99)) for _ in range(rng.randint(2, 5))]
        first = len(request_pictures)
        frame_indices = tuple(range(first, first + len(frames)))
        parts.append(VideoPart(frame_indices, rng.choice((1.0, 2.0))))
        request_pictures += frames
    question = rng.choice(
        ("Describe this image.", "How many shapes are there?", "red blue " * rng.randint(1, 40))
    )
    parts.insert(rng.randint(0, len(parts)), TextPart(question))
    return request(user(*parts), max_tokens=rng.randint(1, 24)), request_pictures


SMALL_SLICES = EngineLimits(max_batch_size=6, max_prefill_tokens=48, max_prefill_slice_s=0.0)


def run_in_random_batches(
    model: Model,
    rng: random.Random,
    count: int,
    videos: bool = False,
    limits: EngineLimits = SMALL_SLICES,
) -> list[GenerationSequence]:
    """Run at least ``count`` random requests, and return their sequences.

    They arrive at random, some are aborted, and prefill runs in small slices with both caches on.
    """
    engine = Engine(model, limits)
    pictures = [
        random_pixels(rng.randint(20, 500), rng.randint(20, 500), seed) for seed in range(12)
    ]
    sequences: list[GenerationSequence] = []
    while len(sequences) < count or engine.has_work:
        for _ in range(rng.choice((0, 0, 1, 2)) if len(sequences) < count else 0):
            added = prepare_sequences(model, *random_request(rng, pictures, videos))
            engine.scheduler.add(added)
            sequences += added
        assert not [output.error for output in engine.step() if output.error]
        if engine.scheduler.running and rng.random() < 0.02:
            rng.choice(engine.scheduler.running).aborted = True
    return sequences


def assert_matches_generate(
    sequences: list[GenerationSequence], reference: GenerationMixin, make_inputs: MakeInputs
) -> int:
    """Assert that ``generate`` returns the same tokens for each prompt alone.

    A difference is allowed at a tie. Returns the number of ties, at most ``MAX_TIES``. Asserts too
    that some sequences were aborted and that the answers vary.
    """
    ties = sum(_differs_at_a_tie(sequence, reference, make_inputs) for sequence in sequences)
    assert ties <= MAX_TIES
    assert sum(sequence.aborted for sequence in sequences) >= len(sequences) // 40
    assert len({tuple(sequence.output_ids) for sequence in sequences}) > len(sequences) // 4
    return ties


def _differs_at_a_tie(
    sequence: GenerationSequence, reference: GenerationMixin, make_inputs: MakeInputs
) -> bool:
    """Return False if the tokens are equal, True if they differ at a tie; else fail."""
    if not sequence.output_ids:
        return False
    device = reference.device
    token_ids = torch.tensor([sequence.prompt.token_ids], device=device)
    inputs = {name: tensor.to(device) for name, tensor in make_inputs(sequence.prompt).items()}
    generated = reference.generate(
        input_ids=token_ids,
        attention_mask=torch.ones_like(token_ids),
        **inputs,
        max_new_tokens=len(sequence.output_ids),
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    expected_ids = generated.sequences[0, token_ids.shape[1] :].tolist()
    if not sequence.aborted:
        ended = sequence.output_ids[-1] == reference.generation_config.eos_token_id
        assert ended or len(sequence.output_ids) == sequence.params.max_tokens
    pairs = zip(sequence.output_ids, expected_ids, strict=False)
    for step, (token_id, expected_id) in enumerate(pairs):
        if token_id != expected_id:
            best = generated.logits[step][0].topk(2).values
            assert best[0] - best[1] < MAX_TIE_GAP
            return True
    assert len(expected_ids) == len(sequence.output_ids)
    return False
