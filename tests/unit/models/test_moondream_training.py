"""The network that trains the pocket Moondream computes the same as the engine's model."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from models.moondream import model as moondream
from models.moondream.crops import crop
from models.moondream.model import Moondream
from models.pocket.scenes import random_scene
from raylens.core.types import Detect, Query
from raylens.engine.engine import Engine
from raylens.engine.limits import EngineLimits
from raylens.engine.sequence import make_sequences
from testing.exactness import request
from testing.families import run_slices
from testing.pictures import random_pixels
from training.moondream import (
    Picture,
    Pictures,
    Prompts,
    TrainingSettings,
    build_row,
    probe_targets,
    size_bins,
)
from training.moondream_checkpoint import pocket_config, pocket_tokenizer, save_pocket
from training.moondream_net import Net
from training.rows import IGNORED, pack


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Net, Moondream]:
    """The training network and the engine's model, with the same random weights."""
    torch.manual_seed(0)
    tokenizer = pocket_tokenizer()
    config = pocket_config(tokenizer)
    net = Net(config)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(parameter.half().float())
    folder = tmp_path_factory.mktemp("pocket")
    save_pocket(folder, config, net.tensors(), tokenizer)
    return net, moondream.load(str(folder))


def image_tokens(net: Net, pictures: list[np.ndarray]) -> torch.Tensor:
    crops = [crop(picture, net.config.vision) for picture in pictures]
    pixels = np.concatenate([picture_crops.pixels for picture_crops in crops])
    channels_first = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
    tilings = [picture_crops.tiling for picture_crops in crops]
    return net.image_tokens(channels_first.div(127.5).sub(1), tilings)


@torch.no_grad()
def test_pictures_of_all_shapes_have_the_same_features(both: tuple[Net, Moondream]) -> None:
    net, model = both
    pictures = [random_pixels(*size) for size in ((96, 96), (300, 200), (260, 500), (700, 700))]
    crops = [crop(picture, model.config.vision) for picture in pictures]
    features = run_slices(model._vision_encoder.encode_in_slices(crops, 10**9))
    expected_features = image_tokens(net, pictures)
    for actual, expected in zip(features, expected_features, strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_every_token_and_bin_of_an_answer_is_the_networks_most_likely(
    both: tuple[Net, Moondream],
) -> None:
    """The network reads the complete answer at once."""
    net, model = both
    picture = random_pixels(300, 200)
    features = image_tokens(net, [picture])
    for task in (Query("What is this?"), Detect("circle", 3)):
        vision_request = request(task, max_tokens=10)
        prompt = model.prepare(vision_request, [picture])
        (answer,) = make_sequences(vision_request, prompt, model.tokenizer)
        engine = Engine(model, EngineLimits(max_batch_size=1))
        engine.scheduler.add([answer])
        while engine.has_work:
            engine.step()
        first_coordinate = net.first_coordinate
        answer_ids = [
            output_id if output_id >= 0 else first_coordinate - 1 - output_id
            for output_id in answer.output_ids
        ]
        if isinstance(task, Detect) and len(answer_ids) == 10:
            answer_ids.pop()  # the end, which always comes after max_objects
        ids = torch.tensor([[*prompt.token_ids, *answer_ids]])
        length = ids.shape[1]
        prefix_len = prompt.bidirectional_prefix_len
        mask = torch.ones(length, length, dtype=torch.bool).tril()
        mask[:prefix_len, :prefix_len] = True
        states = net.states(ids, features, mask[None, None], torch.arange(length)[None])[0]
        for position, answer_id in enumerate(answer_ids, len(prompt.token_ids)):
            state = states[position - 1]
            if answer_id >= net.first_size:
                expected = net.size_id(tuple(net.size_logits(state).argmax(-1).tolist()))
            elif answer_id >= first_coordinate:
                expected = first_coordinate + int(net.coordinate_logits(state).argmax())
            else:
                logits = net.logits(state)
                if isinstance(task, Query) and position > len(prompt.token_ids):
                    logits[model.config.tokenizer.answer_id] = -torch.inf
                expected = int(logits.argmax())
            assert answer_id == expected


def test_a_training_row_has_the_boxes_of_the_scene(both: tuple[Net, Moondream]) -> None:
    net, _ = both
    config = net.config
    prompts = Prompts(pocket_tokenizer(), config, net)
    picture = next(iter(Pictures(3, 300, config)))
    training_row = build_row(0, picture, prompts, TrainingSettings(), random.Random(1))
    batch = pack(
        [training_row], config.tokenizer.eos_id, torch.device("cpu"), bidirectional_prefix=True
    )
    prefix = 1 + config.vision.grid**2
    assert batch.mask[0, 0, :prefix, :prefix].all()
    assert not batch.mask[0, 0, :prefix, prefix:].any()
    detects = [segment for segment in training_row.segments if segment.task == "detect"]
    scene_boxes = [picture.box(shape) for shape in picture.scene.shapes]
    for segment in detects:
        values = [value for value in segment.coordinates if value is not None]  # type: ignore[attr-defined]
        for x, y, (width, height) in zip(values[::3], values[1::3], values[2::3], strict=True):
            box = x[0] - width / 2, y[0] - height / 2, x[0] + width / 2, y[0] + height / 2
            assert any(np.allclose(box, scene_box) for scene_box in scene_boxes)
    assert (batch.labels != IGNORED).sum() > 20


def test_probe_targets_describe_the_shapes_at_each_token() -> None:
    config = pocket_config(pocket_tokenizer())
    scene = random_scene(random.Random(5), 300)
    picture = Picture(
        crop(random_pixels(96, 96), config.vision), scene, (0, 0, scene.width, scene.height), False
    )
    classes, boxes, has_box = probe_targets([picture], config.vision.grid)
    centers = classes[0, classes[0, :, 3] == 1]
    assert {int(cell) - 1 for cell in centers[:, 2]} == {shape.cell for shape in scene.shapes}
    assert (classes[0, :, 0] > 0).equal(has_box[0])
    expected_boxes = {
        rounded(*picture.box_center(shape), *picture.size(shape)) for shape in scene.shapes
    }
    assert {rounded(*box.tolist()) for box in boxes[0, has_box[0]]} == expected_boxes


def rounded(*values: float) -> tuple[float, ...]:
    return tuple(round(float(np.float32(value)), 4) for value in values)


def test_bins_of_sizes_equal_the_engines(both: tuple[Net, Moondream]) -> None:
    _, model = both
    bins = torch.arange(model.config.region.size_bins).float()
    torch.testing.assert_close(
        size_bins(model._regions.bins_to_sizes(bins), len(bins)), bins, atol=1e-3, rtol=1e-3
    )
