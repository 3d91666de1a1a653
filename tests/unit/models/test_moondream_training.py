"""What trains the pocket Moondream computes what the engine's model does."""

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
from raylens.engine.sequence import sequences
from testing.exactness import request
from testing.pictures import random_pixels
from training.moondream import Picture, Pictures, Prompts, Settings, probe_targets, row, size_bins
from training.moondream_checkpoint import pocket_config, pocket_tokenizer, save_pocket
from training.moondream_net import Net
from training.rows import IGNORED, pack


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Net, Moondream]:
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


def seen(net: Net, pictures: list[np.ndarray]) -> torch.Tensor:
    cut = [crop(picture, net.config.vision) for picture in pictures]
    crops = (
        torch.from_numpy(np.concatenate([each.pixels for each in cut])).permute(0, 3, 1, 2).float()
    )
    return net.image_tokens(crops.div(127.5).sub(1), [each.tiling for each in cut])


@torch.no_grad()
def test_pictures_of_all_shapes_have_the_same_features(both: tuple[Net, Moondream]) -> None:
    net, model = both
    pictures = [random_pixels(*size) for size in ((96, 96), (300, 200), (260, 500), (700, 700))]
    together = seen(net, pictures)
    slices = model._vision.slices(
        [crop(picture, model.config.vision) for picture in pictures], 10**9
    )
    try:
        while True:
            next(slices)
    except StopIteration as done:
        for seen_alone, expected in zip(done.value, together, strict=True):
            torch.testing.assert_close(seen_alone, expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_an_answer_of_the_engine_is_what_the_net_finds_most_likely(
    both: tuple[Net, Moondream],
) -> None:
    """Word by word, and place by place: the net reads the whole answer at once."""
    net, model = both
    picture = random_pixels(300, 200)
    features = seen(net, [picture])
    for task in (Query("What is this?"), Detect("circle", 3)):
        wanted = request(task, max_tokens=10)
        (answer,) = sequences(wanted, model.prepare(wanted, [picture]), model.tokenizer)
        engine = Engine(model, EngineLimits(max_batch_size=1))
        engine.scheduler.add([answer])
        while engine.has_work:
            engine.step()
        first = net.first_coordinate
        said = [number if number >= 0 else first - 1 - number for number in answer.output_ids]
        if isinstance(task, Detect) and len(said) == 10:
            said.pop()  # the end, which comes after three objects whatever the net would say
        ids = torch.tensor([[*answer.prompt.token_ids, *said]])
        length = ids.shape[1]
        mask = torch.ones(length, length, dtype=torch.bool).tril()
        mask[: answer.prompt.bidirectional_prefix_len, : answer.prompt.bidirectional_prefix_len] = (
            True
        )
        states = net.states(ids, features, mask[None, None], torch.arange(length)[None])[0]
        for place, number in enumerate(said, len(answer.prompt.token_ids)):
            before = states[place - 1]
            if number >= net.first_size:
                expected = net.size_id(tuple(net.size_logits(before).argmax(-1).tolist()))
            elif number >= first:
                expected = first + int(net.coordinate_logits(before).argmax())
            else:
                logits = net.logits(before)
                if isinstance(task, Query) and place > len(answer.prompt.token_ids):
                    logits[model.config.tokenizer.answer_id] = -torch.inf
                expected = int(logits.argmax())
            assert number == expected


def test_a_training_row_holds_the_truth(both: tuple[Net, Moondream]) -> None:
    net, _ = both
    config = net.config
    prompts = Prompts(pocket_tokenizer(), config, net)
    picture = next(iter(Pictures(3, 300, config)))
    made = row(0, picture, prompts, Settings(), random.Random(1))
    batch = pack([made], config.tokenizer.eos_id, torch.device("cpu"), whole_prefix=True)
    prefix = 1 + config.vision.grid**2
    assert batch.mask[0, 0, :prefix, :prefix].all()
    assert not batch.mask[0, 0, :prefix, prefix:].any()
    detects = [segment for segment in made.segments if segment.kind == "detect"]
    for segment in detects:
        places = [place for place in segment.places if place is not None]  # type: ignore[attr-defined]
        boxes = [picture.box(shape) for shape in picture.scene.shapes]
        for x, y, (width, height) in zip(places[::3], places[1::3], places[2::3], strict=True):
            said = x[0] - width / 2, y[0] - height / 2, x[0] + width / 2, y[0] + height / 2
            assert any(np.allclose(said, box) for box in boxes)
    assert (batch.labels != IGNORED).sum() > 20


def test_probe_targets_name_what_a_token_shows() -> None:
    config = pocket_config(pocket_tokenizer())
    scene = random_scene(random.Random(5), 300)
    picture = Picture(
        crop(random_pixels(96, 96), config.vision), scene, (0, 0, scene.width, scene.height), False
    )
    classes, places, known = probe_targets([picture], config.vision.grid)
    middles = classes[0, classes[0, :, 3] == 1]
    assert {int(cell) - 1 for cell in middles[:, 2]} == {shape.cell for shape in scene.shapes}
    assert (classes[0, :, 0] > 0).equal(known[0])
    at = {tuple(round(float(value), 4) for value in place) for place in places[0, known[0]]}
    assert at == {
        tuple(
            round(float(np.float32(value)), 4)
            for value in (*picture.middle(shape), *picture.size(shape))
        )
        for shape in scene.shapes
    }


def test_bins_of_sizes_are_the_engine_s(both: tuple[Net, Moondream]) -> None:
    _, model = both
    bins = torch.arange(model.config.region.size_bins).float()
    torch.testing.assert_close(
        size_bins(model._regions.sizes_of(bins), len(bins)), bins, atol=1e-3, rtol=1e-3
    )
