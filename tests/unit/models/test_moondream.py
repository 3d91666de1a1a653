"""Moondream against recorded numbers of the reference implementation."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from models.moondream import model as moondream
from models.moondream.config import MoondreamConfig, parse_config
from models.moondream.crops import crop, select_tiling, stitch
from models.moondream.model import Moondream, tensor_shapes
from models.moondream.token_policy import PseudoTokens
from models.moondream.weights import CheckpointMismatch
from models.options import LoadOptions
from raylens.core.errors import InvalidRequest, RaylensError, UnsupportedTask
from raylens.core.types import (
    Caption,
    Chat,
    Detect,
    FinishReason,
    ImagePart,
    Message,
    Query,
    Role,
    Task,
    TextPart,
    VideoPart,
)
from raylens.engine.engine import Engine
from raylens.engine.kv_cache import KVCache
from raylens.engine.limits import EngineLimits
from raylens.engine.metrics import EngineMetrics
from raylens.engine.model import PrefillChunk
from testing.checkpoints import MOONDREAMS, random_moondream
from testing.exactness import prepare_sequences, request
from testing.families import run_slices
from testing.pictures import random_pixels
from testing.recorded_moondream import (
    RECORDED,
    TENSORS,
    answer,
    expected_answer,
    recorded_sequences,
    run,
)

NAMES = list(MOONDREAMS)


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Moondream]:
    models: dict[str, Moondream] = {}

    def load(name: str) -> Moondream:
        if name not in models:
            folder = random_moondream(tmp_path_factory.mktemp(name), MOONDREAMS[name])
            models[name] = moondream.load(str(folder))
        return models[name]

    return load


def encode(model: Moondream, picture: NDArray[np.uint8]) -> torch.Tensor:
    (features,) = run_slices(
        model._vision_encoder.encode_in_slices([crop(picture, model.config.vision)], 100)
    )
    return features


@pytest.mark.parametrize("name", NAMES)
def test_features_equal_the_references_at_every_size_and_shape(load, name: str) -> None:
    for recorded in RECORDED[name]["features"]:
        features = encode(load(name), random_pixels(*recorded["picture"]))
        sample = features[::5, ::31].flatten()[:40]
        np.testing.assert_allclose(sample.numpy(), recorded["values"], atol=2e-4)


@pytest.mark.parametrize("name", NAMES)
def test_logits_equal_the_references(load, name: str) -> None:
    model = load(name)
    recorded = RECORDED[name]["logits"]
    picture = random_pixels(*recorded["picture"])
    prompt = model.prepare(request(Caption()), [picture])
    cache: KVCache[str] = KVCache(model.kv_spec, 2**28, 1)
    cache.reserve("row", 128)
    positions = np.arange(len(prompt.token_ids))[None]
    chunk = PrefillChunk(
        0,
        prompt.token_ids,
        [(1, encode(model, picture))],
        positions,
        prompt.bidirectional_prefix_len,
    )
    output = run_slices(model.prefill([chunk], lambda: [cache.row_of("row")], 20))
    np.testing.assert_allclose(output.logits[0][::7].numpy(), recorded["values"], atol=2e-3)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batch", [1, 6])
def test_answers_in_any_batch_equal_the_references(load, name: str, batch: int) -> None:
    model = load(name)
    recorded_answers = RECORDED[name]["answers"]
    waiting = [recorded_sequences(model, recorded) for recorded in recorded_answers]
    run(model, waiting, batch=batch)
    for (sequence,), recorded in zip(waiting, recorded_answers, strict=True):
        assert answer(model, sequence) == expected_answer(recorded), recorded["kind"]


def test_recorded_answers_cover_every_task_and_vary() -> None:
    answers = [recorded for name in NAMES for recorded in RECORDED[name]["answers"]]
    assert {recorded["kind"] for recorded in answers} >= {
        "caption",
        "blind",
        "detect",
        "point",
        "reasoning",
        "places",
    }
    reasoning = [recorded for recorded in answers if recorded["kind"] == "reasoning"]
    assert any(recorded["answer"]["reasoning"]["grounding"] for recorded in reasoning)
    distinct = {json.dumps(recorded["answer"]) for recorded in answers}
    assert len(distinct) > len(answers) * 0.8


def test_a_picture_is_encoded_once_for_caption_query_and_detect(load) -> None:
    model = load("2b")
    metrics = RecordingMetrics()
    engine = Engine(model, EngineLimits(max_batch_size=4, max_prefill_tokens=16), metrics)
    prefix = 1 + model.config.vision.grid**2
    for task in (Caption(), Query("what?"), Detect("x", 2)):
        engine.scheduler.add(
            prepare_sequences(model, request(task, max_tokens=3), [random_pixels(200, 100)])
        )
        while engine.has_work:
            engine.step()
    assert metrics.lookups == [
        ("prefix", 0, prefix + 5),
        ("features", 0, 1),
        ("prefix", prefix + 1, 9),  # the templates have the same first token
        ("features", 0, 0),
        ("prefix", prefix + 1, 6),
        ("features", 0, 0),
    ]


def test_running_answers_continue_during_the_prefill_of_a_pictures_prefix(load) -> None:
    model = load("2b")
    engine = Engine(
        model, EngineLimits(max_batch_size=1 + 1, max_prefill_tokens=16, max_prefill_slice_s=0.0)
    )
    (running,) = prepare_sequences(model, request(Query("?"), max_tokens=60), [])
    engine.model.eos_ids = frozenset()
    try:
        engine.scheduler.add([running])
        while (
            engine.scheduler.prefilling or engine.scheduler.waiting or len(running.output_ids) < 2
        ):
            engine.step()
        (prefilling,) = recorded_sequences(
            model, {"kind": "query", "question": "?", "picture": [60, 60, 0], "max_tokens": 2}
        )
        engine.scheduler.add([prefilling])
        before = len(running.output_ids)
        while not prefilling.output_ids:
            engine.step()
        # One slice for the picture, one for each layer of the prefix, and one for the question.
        assert len(running.output_ids) - before >= model.config.text.n_layers
    finally:
        model.eos_ids = frozenset({model.config.tokenizer.eos_id})


def test_max_objects_bounds_the_tokens_of_a_detect(load) -> None:
    model = load("2b")
    prompt = model.prepare(request(Detect("x", 5), max_tokens=500), [random_pixels(60, 60)])
    assert prompt.max_total_tokens(500, model.max_length) == len(prompt.token_ids) + 16


def test_reasoning_and_text_may_take_max_tokens_each(load) -> None:
    model = load("0.5b")
    waiting = [
        recorded_sequences(model, {"kind": "reasoning", "question": f"{n}?", "max_tokens": 5})
        for n in range(12)
    ]
    run(model, waiting)
    ends = []
    for (sequence,) in waiting:
        text_ids = [output_id for output_id in sequence.output_ids if output_id >= 0]
        reasoning_length = len(sequence.output_ids) - len(text_ids)
        assert 1 <= reasoning_length <= 6  # the last one ends the reasoning
        text_length = len([output_id for output_id in text_ids if output_id])
        ends.append((text_length, sequence.finish_reason))
    assert (5, FinishReason.LENGTH) in ends
    assert all(length == 5 for length, reason in ends if reason is FinishReason.LENGTH)


def test_reasoning_leaves_room_for_text(load) -> None:
    model = load("2b")
    vision_request = request(Query("why?", reasoning=True), max_tokens=4000)
    prompt = model.prepare(vision_request, [random_pixels(60, 60)])
    assert prompt.decode_plan.max_tokens * 2 < model.max_length - len(prompt.token_ids)


def test_boxes_are_the_same_at_any_temperature(load) -> None:
    model = load("2b")
    outputs = []
    for temperature in (0.0, 2.0):
        vision_request = request(Detect("x", 3), temperature=temperature, seed=1)
        (sequence,) = prepare_sequences(model, vision_request, [random_pixels(60, 60)])
        run(model, [[sequence]])
        outputs.append(sequence.output_ids)
    assert outputs[0] == outputs[1]
    assert len(outputs[0]) > 3


def test_several_answers_of_a_request_reason_independently(load) -> None:
    model = load("2b")
    vision_request = request(
        Query("why?", reasoning=True), max_tokens=8, n=3, temperature=1.0, seed=5
    )
    answers = prepare_sequences(model, vision_request, [random_pixels(60, 60)])
    run(model, [answers])
    reasoning = [
        model.parse_findings(sequence.prompt, sequence.output_ids).reasoning for sequence in answers
    ]
    assert all(reasoning)
    assert len({tuple(sequence.output_ids) for sequence in answers}) > 1


def test_a_batch_that_fails_is_continued_row_by_row(load, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both the model and the token policy fail on batches, and on no single row."""
    model = load("2b")
    recorded_answers = RECORDED["2b"]["answers"][:7]
    alone = [recorded_sequences(model, recorded) for recorded in recorded_answers]
    run(model, alone, batch=1)
    failures = []

    def failing(method: Callable[..., Any], min_rows: int) -> Callable[..., Any]:
        def attempt(rows: Any, *arguments: Any) -> Any:
            if len(rows) >= min_rows:
                failures.append(method)
                raise RuntimeError("out of memory")
            return method(rows, *arguments)

        return attempt

    policy = model.token_policy
    monkeypatch.setattr(model, "decode", failing(model.decode, 4))
    monkeypatch.setattr(policy, "resolve_tokens", failing(policy.resolve_tokens, 3))
    together = [recorded_sequences(model, recorded) for recorded in recorded_answers]
    run(model, together)
    assert len(set(failures)) == 2
    assert [s.output_ids for (s,) in together] == [s.output_ids for (s,) in alone]


def test_pseudo_tokens_are_negative_and_distinct() -> None:
    pseudo_tokens = PseudoTokens(MOONDREAMS["2b"].region)
    coordinates = pseudo_tokens.encode_coordinates(torch.tensor([0, 63])).tolist()
    sizes = pseudo_tokens.encode_sizes(torch.tensor([(0, 0), (63, 63), (5, 60)])).tolist()
    reasoning = [pseudo_tokens.encode_reasoning(token) for token in (0, 299)]
    ids = torch.tensor([7, *coordinates, *sizes, *reasoning])
    rows, is_size, size_bins = pseudo_tokens.split(ids, 300)
    assert rows[[0, 1, 2, 6, 7]].tolist() == [7, 300, 363, 0, 299]
    assert is_size.tolist() == [False] * 3 + [True] * 3 + [False] * 2
    assert size_bins[3:6].tolist() == [[0, 0], [63, 63], [5, 60]]
    coordinate_bins = [pseudo_tokens.decode_coordinate(output_id) for output_id in ids.tolist()]
    assert coordinate_bins == [None, 0, 63, None, None, None, None, None]
    reasoning_tokens = [pseudo_tokens.decode_reasoning(output_id) for output_id in ids.tolist()]
    assert reasoning_tokens == [None] * 6 + [0, 299]
    assert [pseudo_tokens.decode_size(size) for size in sizes] == [(0, 0), (63, 63), (5, 60)]


@pytest.mark.parametrize(
    ("height", "width", "tiling"),
    [
        (266, 900, (1, 1)),
        (267, 267, (3, 3)),
        (912, 656, (4, 3)),
        (640, 268, (5, 2)),
        (5000, 300, (10, 1)),
    ],
)
def test_tiling_follows_the_pictures_shape(
    height: int, width: int, tiling: tuple[int, int]
) -> None:
    assert select_tiling(height, width, 266, 12) == tiling


def test_stitching_restores_the_picture() -> None:
    config = MOONDREAMS["2b"].vision
    rows, columns = 2, 3
    side = config.grid
    margin = config.overlap_margin
    step = side - 2 * margin
    whole = torch.rand(rows * step + 2 * margin, columns * step + 2 * margin, 4)
    crops = [
        whole[row * step : row * step + side, column * step : column * step + side]
        for row in range(rows)
        for column in range(columns)
    ]
    assert torch.equal(stitch(torch.stack(crops), (rows, columns), margin), whole)


@pytest.mark.parametrize("checkpoint", ["md2", "md05"])
def test_real_configurations_give_the_tensors_of_their_checkpoints(checkpoint: str) -> None:
    shapes = tensor_shapes(parse_config(TENSORS[f"{checkpoint}_config"]))
    shape_and_count: dict[str, list[Any]] = {}
    for name, shape in shapes.items():
        pattern = re.sub(r"blocks\.\d+", "blocks.*", name)
        entry = shape_and_count.setdefault(pattern, [list(shape), 0])
        assert entry[0] == list(shape)
        entry[1] += 1
    assert shape_and_count == TENSORS[checkpoint]


def test_an_empty_configuration_is_moondream_2() -> None:
    assert tensor_shapes(parse_config({})) == tensor_shapes(parse_config(TENSORS["md2_config"]))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"text": {"group_size": 128}}, "text.group_size: 4-bit weights are not supported"),
        ({"text": {"experts": 8}}, "text.experts: unknown field; known: dim, ff_dim"),
        ({"vision": {"dim": 8}}, "vision.dim: unknown field; known: enc_dim"),
        ({"audio": {}}, "audio: unknown section; known: text, vision, region, tokenizer"),
        (
            {"tokenizer": {"templates": {"segment": {}}}},
            "tokenizer.templates.segment: unknown template; known: caption, query, detect, point",
        ),
        ({"tokenizer": {"templates": {"detect": None}}}, "tokenizer.templates.detect: null"),
        ({"text": {"prefix_attn": 100}}, "text.prefix_attn: 100; expected 730"),
    ],
)
def test_an_unsupported_configuration_is_refused(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_config(sections)


@pytest.mark.parametrize("config", MOONDREAMS.values(), ids=NAMES)
def test_a_written_configuration_is_read_back_unchanged(config: MoondreamConfig) -> None:
    sections = config.to_dict()
    assert parse_config(sections) == config
    assert parse_config(json.loads(json.dumps(sections))) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda tensors: tensors.pop("text.blocks.1.ln.bias"),
            "tensor text.blocks.1.ln.bias: missing",
        ),
        (
            lambda tensors: tensors.update({"text.spare": np.zeros(1)}),
            "unknown tensors: text.spare",
        ),
        (
            lambda tensors: tensors.update({"vision.post_ln.bias": np.zeros(7)}),
            r"tensor vision.post_ln.bias: shape \[7\]; expected \[48\]",
        ),
    ],
)
def test_a_checkpoint_with_wrong_tensors_is_refused(
    tmp_path: Path, change: Any, message: str
) -> None:
    folder = random_moondream(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointMismatch, match=message):
        moondream.load(str(folder))


def test_tensor_names_may_have_the_prefix_model_as_on_the_hub(tmp_path: Path, load) -> None:
    folder = random_moondream(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    prefixed = {f"model.{name}": tensor for name, tensor in tensors.items()}
    save_file(prefixed, folder / "model.safetensors")
    picture = random_pixels(70, 70)
    assert torch.equal(encode(moondream.load(str(folder)), picture), encode(load("2b"), picture))


def test_int8_features_are_close_to_full_precision(tmp_path: Path, load) -> None:
    quantized = moondream.load(str(random_moondream(tmp_path)), LoadOptions(quantize="int8"))
    picture = random_pixels(300, 200)
    exact = encode(load("2b"), picture)
    assert (encode(quantized, picture) - exact).abs().mean() < 0.1 * exact.std()
    recorded_answers = RECORDED["2b"]["answers"][:14]
    run(quantized, [recorded_sequences(quantized, recorded) for recorded in recorded_answers])


class RecordingMetrics(EngineMetrics):
    """Records the hits and misses of the caches."""

    def __init__(self) -> None:
        self.lookups: list[tuple[str, int, int]] = []

    def record_cache_lookup(self, cache: str, hits: int, misses: int) -> None:
        self.lookups.append((cache, hits, misses))


def chat(*messages: tuple[Role, tuple[Any, ...]]) -> Chat:
    return Chat(tuple(Message(role, parts) for role, parts in messages))


def test_a_chat_is_a_query_after_a_transcript(load) -> None:
    model = load("2b")
    task = chat(
        (Role.SYSTEM, (TextPart("short"),)),
        (Role.USER, (ImagePart(0), TextPart("what?"))),
        (Role.ASSISTANT, (TextPart("a cat"),)),
        (Role.USER, (TextPart("where?"),)),
    )
    picture = random_pixels(60, 60)
    query = Query("system: short\nuser: what?\nassistant: a cat\nwhere?")
    chat_prompt = model.prepare(request(task), [picture])
    query_prompt = model.prepare(request(query), [picture])
    assert chat_prompt.token_ids == query_prompt.token_ids


@pytest.mark.parametrize(
    ("task", "pictures", "error", "message"),
    [
        (Caption(), 2, UnsupportedTask, "2 pictures; the limit is 1"),
        (
            chat((Role.USER, (ImagePart(0), ImagePart(1)))),
            2,
            UnsupportedTask,
            "image.1: 2 pictures; the limit is 1",
        ),
        (chat((Role.USER, (VideoPart((0, 1)),))), 2, UnsupportedTask, "no videos"),
        (
            Query("a" * 2100),
            1,
            InvalidRequest,
            "question: the prompt takes 2131 tokens or more.* the model's context is 2048",
        ),
    ],
)
def test_an_unsupported_request_is_refused(
    load, task: Task, pictures: int, error: type[RaylensError], message: str
) -> None:
    with pytest.raises(error, match=message):
        load("2b").prepare(request(task), [random_pixels(60, 60)] * pictures)
