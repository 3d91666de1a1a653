"""Capture and replay, with a stand-in for CUDA graphs that keeps its input tensors as they do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.graphs import CapturedStep, GraphCache, ModelGraphs, Step
from models.moondream import model as moondream
from models.qwen2_5_vl import model as qwen2_5_vl
from models.smolvlm import model as smolvlm
from raylens.core.types import ImagePart, TextPart
from raylens.engine.kv_cache import KVCache
from testing.checkpoints import random_moondream, random_qwen2_5_vl, random_smolvlm
from testing.exactness import request, user
from testing.families import every_family, run_slices
from testing.pictures import random_pixels

QUESTION = user(ImagePart(0), TextPart("What is this?"))


class Recorder:
    """Captures steps as closures, and counts captures and replays."""

    def __init__(self) -> None:
        self.captures = 0
        self.replays = 0

    def __call__(self, step: Step, inputs: Sequence[Tensor]) -> CapturedStep:
        self.captures += 1
        output = torch.full_like(step(*inputs), torch.nan)  # capturing computes nothing

        def replay() -> None:
            self.replays += 1
            output.copy_(step(*inputs))

        return CapturedStep(inputs, output, replay)


def test_a_step_is_captured_when_its_key_comes_again_and_then_replayed() -> None:
    recorder = Recorder()
    graphs = GraphCache(recorder)
    outputs = [graphs.run("key", torch.square, [torch.tensor([float(n)])]) for n in range(5)]
    assert [output.item() for output in outputs] == [0, 1, 4, 9, 16]  # each has its own memory
    assert (recorder.captures, recorder.replays) == (1, 4)


def test_the_graph_that_was_replayed_longest_ago_is_evicted_first() -> None:
    recorder = Recorder()
    graphs = GraphCache(recorder, max_graphs=2)
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
    graphs = GraphCache(recorder, budget=100)
    for key in "aabb":  # 32 bytes of input, 32 of output
        graphs.run(key, torch.square, [torch.ones(8)])
    assert recorder.captures == 2
    graphs.run("b", torch.square, [torch.ones(8)])
    graphs.run("a", torch.square, [torch.ones(8)])
    assert (recorder.captures, recorder.replays) == (3, 4)
    for _ in range(4):
        graphs.run("large", torch.square, [torch.ones(1000)])
    assert recorder.captures == 4  # once; then its size is known


def test_if_memory_runs_out_the_graphs_are_freed_and_captured_again() -> None:
    recorder = Recorder()
    failures = [torch.OutOfMemoryError("CUDA out of memory")]

    def capture(step: Step, inputs: Sequence[Tensor]) -> CapturedStep:
        if failures:
            raise failures.pop()
        return recorder(step, inputs)

    graphs = GraphCache(capture)
    outputs = [graphs.run("key", torch.square, [torch.tensor([float(n)])]).item() for n in range(6)]
    assert outputs == [0, 1, 4, 9, 16, 25]
    assert graphs.enabled
    assert (recorder.captures, recorder.replays) == (1, 3)


def test_a_step_that_cannot_be_captured_runs_without_graphs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(step: Step, inputs: Sequence[Tensor]) -> CapturedStep:
        raise RuntimeError("operation not permitted when stream is capturing")

    graphs = GraphCache(refuse)
    outputs = [graphs.run("key", torch.square, [torch.tensor([3.0])]).item() for _ in range(4)]
    assert outputs == [9, 9, 9, 9]
    assert caplog.text.count("CUDA graphs are off") == 1


@pytest.mark.parametrize(
    ("make", "load"),
    [
        (partial(random_smolvlm, scale=3.0), smolvlm.load),
        (partial(random_qwen2_5_vl, scale=3.0), qwen2_5_vl.load),
        (random_moondream, moondream.load),
    ],
    ids=["smolvlm", "qwen2_5_vl", "moondream"],
)
def test_replayed_decode_steps_equal_plain_ones_while_rows_grow_join_and_leave(
    make, load, tmp_path: Path
) -> None:
    checkpoint = str(make(tmp_path))
    plain = load(checkpoint)
    replayed = load(checkpoint)
    recorder = Recorder()
    replayed._decoder._graphs = ModelGraphs(decode=GraphCache(recorder))
    models = (plain, replayed)
    caches: list[KVCache[str]] = [KVCache(model.kv_spec, 2**28, 8) for model in models]

    def join(name: str, capacity: int, length: int) -> None:
        shape = plain.kv_spec
        prefix = torch.randn(shape.num_layers, 2, shape.num_kv_heads, length, shape.head_dim)
        for cache in caches:
            cache.reserve(name, capacity)
            cache.load_prefix(name, prefix)

    def step(number: int) -> None:
        logits = []
        for model, cache in zip(models, caches, strict=True):
            arenas = list(cache.arenas_in_use())
            names = [name for owners, _ in arenas for name in owners]
            lengths = [length for _, kv_rows in arenas for length in kv_rows.lengths]
            tokens = [(number + ord(name)) % 300 for name in names]
            rows_by_arena = [kv_rows for _, kv_rows in arenas]
            logits.append(model.decode(torch.tensor(tokens), lengths, rows_by_arena).logits)
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
                cache.release_row("a")
        step(number)
    assert recorder.replays > 30
    assert recorder.captures < 8


@every_family
def test_replayed_encoders_give_the_same_features_as_plain_ones(make, load, tmp_path: Path) -> None:
    """One picture and several, of one size and of several, the first time and again."""
    model = load(str(make(tmp_path)))
    recorder = Recorder()
    batch_sizes = [[(200, 150)], [(200, 150), (90, 400)], [(200, 150)] * 3, [(300, 300)]]
    batches = []
    for sizes in batch_sizes:
        prompts = [
            model.prepare(request(QUESTION), [random_pixels(*size, seed)])
            for seed, size in enumerate(sizes)
        ]
        batches.append([picture for prompt in prompts for picture in prompt.pictures])
    plain = [run_slices(model.encode(batch)) for batch in batches]
    _use_encoder_graphs(model, GraphCache(recorder))
    for _ in range(3):
        for batch, expected in zip(batches, plain, strict=True):
            features = run_slices(model.encode(batch))
            torch.testing.assert_close(features, expected, atol=1e-4, rtol=1e-4)
    assert recorder.replays >= recorder.captures > 2


def _use_encoder_graphs(model, graphs: GraphCache) -> None:
    """Let a model replay its encoder as graphs, with batches as large as on a GPU."""
    if isinstance(model, qwen2_5_vl.Qwen2_5_VL):
        model._batch_patches = model._slice_size = 10**6
        model._vision_encoder._graphs = graphs
    elif isinstance(model, smolvlm.SmolVLM):
        model._tiles_per_step = 64
        encoder = model._vision_encoder
        encoder._encoder = replace(encoder._encoder, graphs=graphs)
    else:
        model._vision_encoder._crops_per_step = 64
        model._vision_encoder._encoder = replace(model._vision_encoder._encoder, graphs=graphs)
