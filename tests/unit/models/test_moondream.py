"""Against numbers that the reference implementation gave (github.com/vikhyat/moondream,
``moondream/torch``, float32) for the same noise as weights; where it ties its grid to its layers
and its size bins to 1,024, it was untied."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from models.moondream import model as moondream
from models.moondream.config import MoondreamConfig, config_of
from models.moondream.crops import crop, stitch, tiling
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
    Length,
    Location,
    Message,
    Point,
    Query,
    Region,
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
from raylens.engine.sequence import Sequence, sequences
from testing.checkpoints import MOONDREAMS, random_moondream
from testing.exactness import request
from testing.pictures import random_pixels

DATA = Path(__file__).parent / "data"
RECORDED: dict[str, Any] = json.loads((DATA / "moondream.json").read_text())
TENSORS: dict[str, Any] = json.loads((DATA / "moondream_tensors.json").read_text())
NAMES = list(MOONDREAMS)
T = TypeVar("T")


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Moondream]:
    made: dict[str, Moondream] = {}

    def get(name: str) -> Moondream:
        if name not in made:
            made[name] = moondream.load(
                str(random_moondream(tmp_path_factory.mktemp(name), MOONDREAMS[name]))
            )
        return made[name]

    return get


def task_of(recorded: dict[str, Any]) -> Task:
    match recorded["kind"]:
        case "caption":
            return Caption(Length(recorded["length"]))
        case "detect":
            return Detect(recorded["object"], recorded["max_objects"])
        case "point":
            return Point(recorded["object"], recorded["max_objects"])
    places = [
        Location(*each) if len(each) == 2 else Region(*each) for each in recorded.get("places", ())
    ]
    return Query(recorded["question"], recorded["kind"] == "reasoning", tuple(places))


def ask(model: Moondream, recorded: dict[str, Any]) -> list[Sequence]:
    pictures = [random_pixels(*recorded["picture"])] if "picture" in recorded else []
    wanted = request(task_of(recorded), max_tokens=recorded.get("max_tokens", 4))
    return sequences(wanted, model.prepare(wanted, pictures), model.tokenizer)


def answer(model: Moondream, sequence: Sequence) -> Any:
    """What a finished sequence says, as the reference tells it."""
    found = model.parse_findings(sequence.prompt, sequence.output_ids)
    if found.regions is not None:
        return [
            [round(side, 6) for side in (r.x_min, r.y_min, r.x_max, r.y_max)] for r in found.regions
        ]
    if found.locations is not None:
        return [[round(at, 6) for at in (location.x, location.y)] for location in found.locations]
    text = model.tokenizer.decode([number for number in sequence.output_ids if number > 0])
    if found.reasoning is None:
        return text
    grounding = [
        {
            "start_idx": part.start,
            "end_idx": part.end,
            "points": [[point.x, point.y] for point in part.points],
        }
        for part in found.reasoning.groundings
    ]
    return {"reasoning": {"text": found.reasoning.text, "grounding": grounding}, "answer": text}


def expected(recorded: dict[str, Any]) -> Any:
    said = recorded["answer"]
    if isinstance(said, dict) and "reasoning" not in said:
        return said.get("answer", said.get("caption"))
    return said


def run(
    model: Moondream,
    waiting: list[list[Sequence]],
    seed: int = 0,
    batch: int = 6,
    limits: EngineLimits | None = None,
) -> None:
    """Requests that come at random, in small slices, with reuse of pictures and prefixes."""
    rng = random.Random(seed)
    engine = Engine(
        model,
        limits or EngineLimits(max_batch_size=batch, prefill_tokens=16, max_prefill_slice_s=0.0),
    )
    waiting = list(waiting)
    while waiting or engine.has_work:
        for _ in range(rng.choice((0, 1, 2))):
            if waiting:
                engine.scheduler.add(waiting.pop(0))
        assert not [output.error for output in engine.step() if output.error]


def encoded(model: Moondream, picture: NDArray[np.uint8]) -> torch.Tensor:
    (features,) = drained(model._vision.slices([crop(picture, model.config.vision)], 100))
    return features


def drained(slices: Generator[None, None, T]) -> T:
    """What comes of work that is done in slices."""
    while True:
        try:
            next(slices)
        except StopIteration as done:
            value: T = done.value
            return value


@pytest.mark.parametrize("name", NAMES)
def test_features_are_the_reference_s_at_every_size_and_shape(load, name: str) -> None:
    for recorded in RECORDED[name]["features"]:
        features = encoded(load(name), random_pixels(*recorded["picture"]))[::5, ::31].flatten()[
            :40
        ]
        np.testing.assert_allclose(features.numpy(), recorded["values"], atol=2e-4)


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_the_reference_s(load, name: str) -> None:
    model, recorded = load(name), RECORDED[name]["logits"]
    picture = random_pixels(*recorded["picture"])
    prompt = model.prepare(request(Caption()), [picture])
    cache: KVCache[str] = KVCache(model.kv_shape, 2**28, 1)
    cache.reserve("row", 128)
    positions = np.arange(len(prompt.token_ids))[None]
    part = PrefillChunk(
        0,
        prompt.token_ids,
        [(1, encoded(model, picture))],
        positions,
        prompt.bidirectional_prefix_len,
    )
    scores = drained(model.prefill([part], lambda: [cache.row("row")], 20))
    np.testing.assert_allclose(scores.logits[0][::7].numpy(), recorded["values"], atol=2e-3)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batch", [1, 6])
def test_answers_in_any_company_are_the_reference_s(load, name: str, batch: int) -> None:
    model, recorded = load(name), RECORDED[name]["answers"]
    asked = [ask(model, each) for each in recorded]
    run(model, asked, batch=batch)
    for (sequence,), each in zip(asked, recorded, strict=True):
        assert answer(model, sequence) == expected(each), each["kind"]


def test_the_recorded_answers_are_of_all_kinds() -> None:
    answers = [each for name in NAMES for each in RECORDED[name]["answers"]]
    assert {each["kind"] for each in answers} >= {
        "caption",
        "blind",
        "detect",
        "point",
        "reasoning",
        "places",
    }
    assert any(
        each["answer"]["reasoning"]["grounding"] for each in answers if each["kind"] == "reasoning"
    )
    assert len({json.dumps(each["answer"]) for each in answers}) > len(answers) * 0.8


def test_one_picture_is_encoded_once_for_caption_query_and_detect(load) -> None:
    model = load("2b")
    metrics = Recorded()
    engine = Engine(model, EngineLimits(max_batch_size=4, prefill_tokens=16), metrics)
    prefix = 1 + model.config.vision.grid**2
    for task in (Caption(), Query("what?"), Detect("x", 2)):
        wanted = request(task, max_tokens=3)
        engine.scheduler.add(
            sequences(wanted, model.prepare(wanted, [random_pixels(200, 100)]), model.tokenizer)
        )
        while engine.has_work:
            engine.step()
    assert metrics.reused == [
        ("prefix", 0, prefix + 5),
        ("features", 0, 1),
        ("prefix", prefix + 1, 9),  # the first token of the templates is the same
        ("features", 0, 0),
        ("prefix", prefix + 1, 6),
        ("features", 0, 0),
    ]


def test_streams_go_on_while_a_picture_s_prefix_is_read(load) -> None:
    model = load("2b")
    engine = Engine(
        model, EngineLimits(max_batch_size=1 + 1, prefill_tokens=16, max_prefill_slice_s=0.0)
    )
    wanted = request(Query("?"), max_tokens=60)
    (running,) = sequences(wanted, model.prepare(wanted, []), model.tokenizer)
    engine.model.eos_ids = frozenset()
    try:
        engine.scheduler.add([running])
        while (
            engine.scheduler.prefilling or engine.scheduler.waiting or len(running.output_ids) < 2
        ):
            engine.step()
        (prefilling,) = ask(
            model, {"kind": "query", "question": "?", "picture": [60, 60, 0], "max_tokens": 2}
        )
        engine.scheduler.add([prefilling])
        before = len(running.output_ids)
        while not prefilling.output_ids:
            engine.step()
        # One slice for the picture, one for each layer of the prefix, and one for the words.
        assert len(running.output_ids) - before >= model.config.text.n_layers
    finally:
        model.eos_ids = frozenset({model.config.tokenizer.eos_id})


def test_an_answer_of_places_takes_room_for_its_objects_only(load) -> None:
    model = load("2b")
    prompt = model.prepare(request(Detect("x", 5), max_tokens=500), [random_pixels(60, 60)])
    assert prompt.max_total_tokens(500, model.max_length) == len(prompt.token_ids) + 16


def test_thoughts_and_answer_may_take_max_tokens_each(load) -> None:
    model = load("0.5b")
    asked = [
        ask(model, {"kind": "reasoning", "question": f"{n}?", "max_tokens": 5}) for n in range(12)
    ]
    run(model, asked)
    ends = []
    for (sequence,) in asked:
        texts = [number for number in sequence.output_ids if number >= 0]
        thoughts = len(sequence.output_ids) - len(texts)
        assert 1 <= thoughts <= 6  # the last of them ends the thoughts
        ends.append((len([number for number in texts if number]), sequence.finish_reason))
    assert (5, FinishReason.LENGTH) in ends
    assert all(said == 5 for said, reason in ends if reason is FinishReason.LENGTH)


def test_thoughts_leave_room_for_an_answer(load) -> None:
    model = load("2b")
    wanted = request(Query("why?", reasoning=True), max_tokens=4000)
    prompt = model.prepare(wanted, [random_pixels(60, 60)])
    assert prompt.decode_plan.most * 2 < model.max_length - len(prompt.token_ids)


def test_places_are_the_same_at_any_temperature(load) -> None:
    model = load("2b")
    said = []
    for temperature in (0.0, 2.0):
        wanted = request(Detect("x", 3), temperature=temperature, seed=1)
        (sequence,) = sequences(
            wanted, model.prepare(wanted, [random_pixels(60, 60)]), model.tokenizer
        )
        run(model, [[sequence]])
        said.append(sequence.output_ids)
    assert said[0] == said[1]
    assert len(said[0]) > 3


def test_several_answers_think_each_their_own_thoughts(load) -> None:
    model = load("2b")
    wanted = request(Query("why?", reasoning=True), max_tokens=8, n=3, temperature=1.0, seed=5)
    made = sequences(wanted, model.prepare(wanted, [random_pixels(60, 60)]), model.tokenizer)
    run(model, [made])
    thoughts = [
        model.parse_findings(sequence.prompt, sequence.output_ids).reasoning for sequence in made
    ]
    assert all(thoughts)
    assert len({tuple(sequence.output_ids) for sequence in made}) > 1


def test_a_batch_that_fails_goes_on_row_by_row(load, monkeypatch: pytest.MonkeyPatch) -> None:
    """Failures of the model and of the course that no row has alone."""
    model, recorded = load("2b"), RECORDED["2b"]["answers"][:7]
    alone = [ask(model, each) for each in recorded]
    run(model, alone, batch=1)
    failures = []

    def flaky(work: Callable[..., Any], rows: int) -> Callable[..., Any]:
        def attempt(first: Any, *rest: Any) -> Any:
            if len(first) >= rows:
                failures.append(work)
                raise RuntimeError("out of memory")
            return work(first, *rest)

        return attempt

    monkeypatch.setattr(model, "decode", flaky(model.decode, 4))
    monkeypatch.setattr(
        model.token_policy, "resolve_tokens", flaky(model.token_policy.resolve_tokens, 3)
    )
    together = [ask(model, each) for each in recorded]
    run(model, together)
    assert len(set(failures)) == 2
    assert [s.output_ids for (s,) in together] == [s.output_ids for (s,) in alone]


def test_ids_of_places_and_thoughts_are_below_zero_and_tell_them_apart() -> None:
    region = MOONDREAMS["2b"].region
    ids = PseudoTokens(region)
    coordinates = ids.coordinate(torch.tensor([0, 63])).tolist()
    sizes = ids.size(torch.tensor([(0, 0), (63, 63), (5, 60)])).tolist()
    thoughts = [ids.thought(token) for token in (0, 299)]
    numbers = torch.tensor([7, *coordinates, *sizes, *thoughts])
    places, is_size, bins = ids.read(numbers, 300)
    assert places[[0, 1, 2, 6, 7]].tolist() == [7, 300, 363, 0, 299]
    assert is_size.tolist() == [False] * 3 + [True] * 3 + [False] * 2
    assert bins[3:6].tolist() == [[0, 0], [63, 63], [5, 60]]
    assert [ids.bin_of(number) for number in numbers.tolist()] == [
        None,
        0,
        63,
        None,
        None,
        None,
        None,
        None,
    ]
    assert [ids.token_of(number) for number in numbers.tolist()] == [None] * 6 + [0, 299]
    assert [ids.bins_of(number) for number in sizes] == [(0, 0), (63, 63), (5, 60)]


@pytest.mark.parametrize(
    ("height", "width", "tiles"),
    [
        (266, 900, (1, 1)),
        (267, 267, (3, 3)),
        (912, 656, (4, 3)),
        (640, 268, (5, 2)),
        (5000, 300, (10, 1)),
    ],
)
def test_a_picture_is_cut_into_crops_of_its_shape(
    height: int, width: int, tiles: tuple[int, int]
) -> None:
    assert tiling(height, width, 266, 12) == tiles


def test_stitched_crops_are_the_picture_they_were_cut_from() -> None:
    config = MOONDREAMS["2b"].vision
    rows, columns, side, margin = 2, 3, config.grid, config.overlap_margin
    step = side - 2 * margin
    whole = torch.rand(rows * step + 2 * margin, columns * step + 2 * margin, 4)
    crops = [
        whole[row * step : row * step + side, column * step : column * step + side]
        for row in range(rows)
        for column in range(columns)
    ]
    assert torch.equal(stitch(torch.stack(crops), (rows, columns), margin), whole)


@pytest.mark.parametrize("which", ["md2", "md05"])
def test_real_configurations_have_the_tensors_that_checkpoints_have(which: str) -> None:
    shapes = tensor_shapes(config_of(TENSORS[f"{which}_config"]))
    counted: dict[str, list[Any]] = {}
    for name, shape in shapes.items():
        entry = counted.setdefault(re.sub(r"blocks\.\d+", "blocks.*", name), [list(shape), 0])
        assert entry[0] == list(shape)
        entry[1] += 1
    assert counted == TENSORS[which]


def test_a_configuration_that_says_nothing_is_moondream_2() -> None:
    assert tensor_shapes(config_of({})) == tensor_shapes(config_of(TENSORS["md2_config"]))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"text": {"group_size": 128}}, "text.group_size: checkpoints of 4-bit"),
        ({"text": {"experts": 8}}, "text.experts: not known"),
        ({"vision": {"dim": 8}}, "vision.dim: not known"),
        ({"audio": {}}, "audio: not known"),
        ({"tokenizer": {"templates": {"segment": {}}}}, "segment: not known"),
        ({"tokenizer": {"templates": {"detect": None}}}, "tokenizer.templates.detect: none"),
        ({"text": {"prefix_attn": 100}}, "text.prefix_attn: 100"),
    ],
)
def test_what_a_configuration_should_not_say_is_named(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        config_of(given)


@pytest.mark.parametrize("config", MOONDREAMS.values(), ids=NAMES)
def test_a_configuration_is_read_as_it_was_written(config: MoondreamConfig) -> None:
    assert (
        config_of(json.loads(json.dumps(config.to_dict()))) == config_of(config.to_dict()) == config
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda tensors: tensors.pop("text.blocks.1.ln.bias"),
            "the tensor text.blocks.1.ln.bias is missing",
        ),
        (
            lambda tensors: tensors.update({"text.spare": np.zeros(1)}),
            "no such tensor is known: text.spare",
        ),
        (
            lambda tensors: tensors.update({"vision.post_ln.bias": np.zeros(7)}),
            r"vision.post_ln.bias has the shape \[7\]; \[48\] is needed",
        ),
    ],
)
def test_a_checkpoint_with_other_tensors_is_refused(
    tmp_path: Path, change: Any, words: str
) -> None:
    folder = random_moondream(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointMismatch, match=words):
        moondream.load(str(folder))


def test_names_may_stand_behind_model_as_they_do_on_the_hub(tmp_path: Path, load) -> None:
    folder = random_moondream(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {f"model.{name}": tensor for name, tensor in tensors.items()}, folder / "model.safetensors"
    )
    picture = random_pixels(70, 70)
    assert torch.equal(encoded(moondream.load(str(folder)), picture), encoded(load("2b"), picture))


def test_int8_answers_nearly_as_full_weights_do(tmp_path: Path, load) -> None:
    quantized = moondream.load(str(random_moondream(tmp_path)), LoadOptions(quantize="int8"))
    picture = random_pixels(300, 200)
    exact = encoded(load("2b"), picture)
    assert (encoded(quantized, picture) - exact).abs().mean() < 0.1 * exact.std()
    run(quantized, [ask(quantized, each) for each in RECORDED["2b"]["answers"][:14]])


class Recorded(EngineMetrics):
    def __init__(self) -> None:
        self.reused: list[tuple[str, int, int]] = []

    def reuse(self, cache: str, hits: int, misses: int) -> None:
        self.reused.append((cache, hits, misses))


def chat(*messages: tuple[Role, tuple[Any, ...]]) -> Chat:
    return Chat(tuple(Message(role, parts) for role, parts in messages))


def test_a_chat_is_one_question_behind_what_was_said(load) -> None:
    model = load("2b")
    task = chat(
        (Role.SYSTEM, (TextPart("short"),)),
        (Role.USER, (ImagePart(0), TextPart("what?"))),
        (Role.ASSISTANT, (TextPart("a cat"),)),
        (Role.USER, (TextPart("where?"),)),
    )
    asked = model.prepare(request(task), [random_pixels(60, 60)])
    same = model.prepare(
        request(Query("system: short\nuser: what?\nassistant: a cat\nwhere?")),
        [random_pixels(60, 60)],
    )
    assert asked.token_ids == same.token_ids


@pytest.mark.parametrize(
    ("task", "pictures", "error", "words"),
    [
        (chat((Role.USER, (ImagePart(0), ImagePart(1)))), 2, UnsupportedTask, "2 pictures"),
        (chat((Role.USER, (VideoPart((0, 1)),))), 2, UnsupportedTask, "no videos"),
        (
            Query("a" * 2100),
            1,
            InvalidRequest,
            "question: the prompt takes 2131 tokens or more.* the model's context is 2048",
        ),
    ],
)
def test_what_it_cannot_read_is_refused(
    load, task: Task, pictures: int, error: type[RaylensError], words: str
) -> None:
    with pytest.raises(error, match=words):
        load("2b").prepare(request(task), [random_pixels(60, 60)] * pictures)
