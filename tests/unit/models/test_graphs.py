"""Capture and replay, by a stand-in for CUDA's graphs that holds fast to the tensors it was made
with, as they do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.graphs import Captured, Graphs, ModelGraphs, Step
from models.moondream import model as moondream
from models.qwen2_5_vl import model as qwen2_5_vl
from models.smolvlm import model as smolvlm
from raylens.core.types import ImagePart, TextPart
from raylens.engine.kv_cache import KVCache
from testing.checkpoints import random_moondream, random_qwen2_5_vl, random_smolvlm
from testing.exactness import request, user
from testing.pictures import random_pixels
from tests.unit.models.families import every_family
from tests.unit.models.test_moondream import drained

ABOUT = user(ImagePart(0), TextPart("What is this?"))


class Recorder:
    """Counts captures. A replay asks only what the graph holds."""

    def __init__(self) -> None:
        self.captures = 0
        self.replays = 0

    def __call__(self, step: Step, given: Sequence[Tensor]) -> Captured:
        self.captures += 1
        output = torch.full_like(step(*given), torch.nan)  # capturing computes nothing

        def replay() -> None:
            self.replays += 1
            output.copy_(step(*given))

        return Captured(given, output, replay)


def test_a_step_is_captured_when_its_key_comes_again_and_then_replayed() -> None:
    recorder = Recorder()
    graphs = Graphs(recorder)
    answers = [graphs.run("key", torch.square, [torch.tensor([float(n)])]) for n in range(5)]
    assert [answer.item() for answer in answers] == [0, 1, 4, 9, 16]  # each its own memory
    assert (recorder.captures, recorder.replays) == (1, 4)


def test_what_was_replayed_longest_ago_is_given_up_first() -> None:
    recorder = Recorder()
    graphs = Graphs(recorder, kept=2)
    for key in "aabbab":
        graphs.run(key, torch.square, [torch.ones(1)])
    assert recorder.captures == 2
    for key in "ccb":
        graphs.run(key, torch.square, [torch.ones(1)])
    assert recorder.captures == 3
    for key in "aa":
        graphs.run(key, torch.square, [torch.ones(1)])
    assert recorder.captures == 4


def test_graphs_hold_no_more_bytes_than_their_budget() -> None:
    recorder = Recorder()
    graphs = Graphs(recorder, budget=100)
    for key in "aabb":  # 32 bytes given, 32 made
        graphs.run(key, torch.square, [torch.ones(8)])
    assert recorder.captures == 2
    graphs.run("b", torch.square, [torch.ones(8)])
    graphs.run("a", torch.square, [torch.ones(8)])
    assert (recorder.captures, recorder.replays) == (3, 4)
    for _ in range(4):
        graphs.run("large", torch.square, [torch.ones(1000)])
    assert recorder.captures == 4  # and then it is known to be too large


def test_a_shortage_of_memory_costs_the_graphs_that_are_held_and_no_more() -> None:
    recorder, short = Recorder(), [True]

    def capture(step: Step, given: Sequence[Tensor]) -> Captured:
        if short.pop() if short else False:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return recorder(step, given)

    graphs = Graphs(capture)
    answers = [graphs.run("key", torch.square, [torch.tensor([float(n)])]).item() for n in range(6)]
    assert answers == [0, 1, 4, 9, 16, 25]
    assert graphs.works
    assert (recorder.captures, recorder.replays) == (1, 3)


def test_a_step_that_cannot_be_captured_goes_on_without(caplog: pytest.LogCaptureFixture) -> None:
    def refuse(step: Step, given: Sequence[Tensor]) -> Captured:
        raise RuntimeError("operation not permitted when stream is capturing")

    graphs = Graphs(refuse)
    answers = [graphs.run("key", torch.square, [torch.tensor([3.0])]).item() for _ in range(4)]
    assert answers == [9, 9, 9, 9]
    assert caplog.text.count("goes on without CUDA graphs") == 1


@pytest.mark.parametrize(
    ("make", "load"),
    [
        (partial(random_smolvlm, scale=3.0), smolvlm.load),
        (partial(random_qwen2_5_vl, scale=3.0), qwen2_5_vl.load),
        (random_moondream, moondream.load),
    ],
    ids=["smolvlm", "qwen2_5_vl", "moondream"],
)
def test_replayed_steps_answer_as_plain_ones_while_rows_grow_join_and_leave(
    make, load, tmp_path: Path
) -> None:
    checkpoint = str(make(tmp_path))
    plain, replayed = load(checkpoint), load(checkpoint)
    recorder = Recorder()
    replayed._decoder._graphs = ModelGraphs(decode=Graphs(recorder))
    models = (plain, replayed)
    caches: list[KVCache[str]] = [KVCache(model.kv_shape, 2**28, 8) for model in models]

    def join(name: str, room: int, length: int) -> None:
        kept = torch.randn(
            plain.kv_shape.layers, 2, plain.kv_shape.heads, length, plain.kv_shape.head_dim
        )
        for cache in caches:
            cache.reserve(name, room)
            cache.write(name, kept)

    def step(number: int) -> None:
        logits = []
        for model, cache in zip(models, caches, strict=True):
            groups = list(cache.groups())
            names = [name for held, _ in groups for name in held]
            lengths = [length for _, rows in groups for length in rows.lengths]
            tokens = [(number + ord(name)) % 300 for name in names]
            rows = [rows for _, rows in groups]
            logits.append(model.decode(torch.tensor(tokens), lengths, rows).logits)
            for name in names:
                cache.advance(name)
        torch.testing.assert_close(logits[1], logits[0], atol=1e-4, rtol=1e-4)

    torch.manual_seed(0)
    join("a", 128, 20)
    join("b", 500, 200)
    for number in range(40):
        if number == 12:
            join("c", 128, 3)
        if number == 30:
            for cache in caches:
                cache.release("a")
        step(number)
    assert recorder.replays > 30
    assert recorder.captures < 8


@every_family
def test_replayed_encoders_see_pictures_as_plain_ones_do(make, load, tmp_path: Path) -> None:
    """One picture and several, of one size and of several, the first time and again."""
    model = load(str(make(tmp_path)))
    recorder = Recorder()
    sizes = [[(200, 150)], [(200, 150), (90, 400)], [(200, 150)] * 3, [(300, 300)]]
    prompts = [
        [
            model.prepare(request(ABOUT), [random_pixels(*size, seed)])
            for seed, size in enumerate(shapes)
        ]
        for shapes in sizes
    ]
    pictures = [[picture for prompt in each for picture in prompt.pictures] for each in prompts]
    plain = [drained(model.encode(each)) for each in pictures]
    if isinstance(model, qwen2_5_vl.Qwen2_5_VL):
        model._most_patches = model._work = 10**6  # all together, as on a GPU
        model._vision_encoder._graphs = Graphs(recorder)
    elif isinstance(model, smolvlm.SmolVLM):
        model._tiles_per_step = 64
        model._vision_encoder._encoder = replace(
            model._vision_encoder._encoder, graphs=Graphs(recorder)
        )
    else:
        model._vision._crops_per_step = 64
        model._vision._encoder = replace(model._vision._encoder, graphs=Graphs(recorder))
    for _ in range(3):
        for each, expected in zip(pictures, plain, strict=True):
            for ours, theirs in zip(drained(model.encode(each)), expected, strict=True):
                torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert recorder.replays >= recorder.captures > 2
