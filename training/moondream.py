"""Trains the pocket Moondream on drawn scenes; :mod:`training.trainer` has what all families share.

Beside captions and queries it learns boxes and points by the region head, thoughts that point at
what they name, and questions about a given place. What makes the places quick to learn:

- A coordinate's or a size's target is a narrow normal distribution over the bins, so that a bin off is nearly right.
- The probe reads what is in each image token: kind and color, its cell of the grid, and, through the region head
  itself, the middle and size of the shape there. What the encoder writes there the text model only has to copy.
- A quarter of the pictures are cut at random around their shapes: places in the grid mean nothing there, boxes do.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset
from transformers import PreTrainedTokenizerFast

from models.moondream.config import MoondreamConfig
from models.moondream.crops import Crops, crop
from models.pocket.scenes import COLORS, KINDS, LENGTHS, Scene, Shape, article, questions
from training import trainer
from training.moondream_checkpoint import pocket_config, pocket_tokenizer, save_pocket
from training.moondream_net import Net
from training.pictures import drawn_scenes
from training.prompts import SYSTEM_PROMPTS
from training.rows import IGNORED, PackedBatch, Row, Segment, exact_segments, pack
from training.trainer import buckets, tasks
from training.windows import COLOR_INDEX, KIND_INDEX, PLACED, Window, random_window, subject

CLOSE = 2
"""Bins within which a place counts as right."""


@dataclass(frozen=True)
class Settings(trainer.Settings):
    images_per_step: int = 32
    fresh_per_step: int = 12
    asked: int = 10
    """Questions in words to a row."""
    first_mix: tuple[int, int] = (32, 0)
    last_mix: tuple[int, int] = (32, 0)
    spread: float = 1.0
    """Standard deviation of a place's target, in bins."""


@dataclass(frozen=True)
class Picture:
    """What the vision encoder sees of a scene's ``window``."""

    crops: Crops
    scene: Scene
    window: Window
    cut: bool

    def middle(self, shape: Shape) -> tuple[float, float]:
        """Normalized to the window."""
        left, top, right, bottom = self.box(shape)
        return (left + right) / 2, (top + bottom) / 2

    def center(self, shape: Shape) -> tuple[float, float]:
        left, top, right, bottom = self.window
        return (shape.x - left) / (right - left), (shape.y - top) / (bottom - top)

    def box(self, shape: Shape) -> tuple[float, float, float, float]:
        left, top, right, bottom = self.window
        width, height = right - left, bottom - top
        x_min, y_min, x_max, y_max = shape.box
        return (
            (x_min - left) / width,
            (y_min - top) / height,
            (x_max - left) / width,
            (y_max - top) / height,
        )

    def size(self, shape: Shape) -> tuple[float, float]:
        left, top, right, bottom = self.box(shape)
        return right - left, bottom - top


class Pictures(IterableDataset[Picture]):
    """Scenes without end, as the model sees them."""

    def __init__(self, seed: int, max_side: int, config: MoondreamConfig) -> None:
        self.seed = seed
        self.max_side = max_side
        self.config = config.vision

    def __iter__(self) -> Iterator[Picture]:
        rng = random.Random(self.seed)
        for scene, pixels in drawn_scenes(rng, self.max_side):
            cut = rng.random() < 0.25
            window = random_window(scene, rng) if cut else (0, 0, scene.width, scene.height)
            shown = _resized(Image.fromarray(pixels).crop(window), rng)
            yield Picture(crop(np.asarray(shown), self.config), scene, window, cut)


def _resized(picture: Image.Image, rng: random.Random) -> Image.Image:
    """Sometimes in another size, as a server may have made it."""
    if rng.random() < 0.5:
        return picture
    scale = rng.uniform(96, 512) / max(picture.size)
    size = max(32, round(picture.width * scale)), max(32, round(picture.height * scale))
    return picture.resize(
        size, rng.choice((Image.Resampling.LANCZOS, Image.Resampling.BOX, Image.Resampling.BICUBIC))
    )


@dataclass
class Said:
    """Ids of a part of a segment, with what the loss counts: whether each is learned, and its exact
    place, where it is one: (x or width, y or height), as a share of the picture."""

    ids: list[int]
    learn: list[bool]
    places: list[tuple[float, float] | None]


@dataclass
class PlacedSegment(Segment):
    places: list[tuple[float, float] | None] = None  # type: ignore[assignment]


class Prompts:
    """Turns questions into ids in the checkpoint's own templates."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, config: MoondreamConfig, net: Net
    ) -> None:
        self._config = config
        self._ids = config.tokenizer
        self._net = net
        self.encode: Callable[[str], list[int]] = lambda text: tokenizer.encode(
            text, add_special_tokens=False
        )
        self.prefix = [self._ids.bos_id] * (1 + config.vision.grid**2)

    def caption(self, length: str, answer: str) -> PlacedSegment:
        return self._segment(
            f"caption {length}", _asked(self._ids.caption[length]), self._spoken(answer)
        )

    def query(
        self, kind: str, question: str, answer: str, places: Said | None = None
    ) -> PlacedSegment:
        template = self._ids.query
        suffix = (*template.suffix, *template.suffix)
        asked = [
            _asked(template.prefix),
            *([places] if places else []),
            _asked(self.encode(question)),
            _asked(suffix),
        ]
        return self._segment(kind, *asked, self._spoken(answer))

    def reasoning(self, question: str, picture: Picture, answer: str) -> PlacedSegment:
        """Thoughts that name and point at each shape, and then the answer."""
        ids = self._ids
        template = ids.query
        asked = [*template.prefix, *self.encode(question), *template.suffix, ids.thinking_id]
        thoughts = []
        for shape in picture.scene.shapes:
            named = self.encode(f" {article(shape.color)} {shape.name}")
            thoughts += [
                _learned([ids.start_ground_points_id, *named]),
                self.point(picture.center(shape), True),
            ]
            thoughts.append(_learned([ids.end_ground_id]))
        return self._segment(
            "reasoning", _asked(asked), *thoughts, _learned([ids.answer_id]), self._spoken(answer)
        )

    def locate(self, kind: str, name: str, picture: Picture) -> PlacedSegment:
        """The boxes or the points of what the name means."""
        template = self._ids.detect if kind == "detect" else self._ids.point
        asked = [*template.prefix, *self.encode(f" {name}"), *template.suffix]
        found = [shape for shape in picture.scene.shapes if shape.matches(name)]
        parts = []
        for shape in found:
            if kind == "detect":
                parts += [
                    self.point(picture.middle(shape), True),
                    self.size(picture.size(shape), True),
                ]
            else:
                parts.append(self.point(picture.center(shape), True))
        return self._segment(kind, _asked(asked), *parts, _learned([self._ids.eos_id]))

    def point(self, at: tuple[float, float], learn: bool) -> Said:
        bins = self._config.region.coord_out_dim
        ids = [
            self._net.first_coordinate + min(bins - 1, max(0, round(value * bins))) for value in at
        ]
        return Said(ids, [learn] * 2, [(value, value) for value in at])

    def size(self, size: tuple[float, float], learn: bool) -> Said:
        last = self._config.region.size_bins - 1
        width, height = (
            min(last, max(0, round((math.log2(value) + 10) / 10 * last))) for value in size
        )
        return Said([self._net.size_id((width, height))], [learn], [size])

    def _spoken(self, answer: str) -> Said:
        return _learned([*self.encode(f" {answer}"), self._ids.eos_id])

    def _segment(self, kind: str, *parts: Said) -> PlacedSegment:
        ids = [each for part in parts for each in part.ids]
        learn = [each for part in parts for each in part.learn]
        return PlacedSegment(kind, ids, learn, [each for part in parts for each in part.places])


def _asked(ids: Any) -> Said:
    return Said(list(ids), [False] * len(ids), [None] * len(ids))


def _learned(ids: list[int]) -> Said:
    return Said(ids, [True] * len(ids), [None] * len(ids))


def row(
    index: int, picture: Picture, prompts: Prompts, settings: Settings, rng: random.Random
) -> Row:
    """The picture, and many questions about it."""
    scene = picture.scene
    segments = [
        prompts.caption(length, scene.caption(length))
        for length in LENGTHS
        if _is_placed(picture, length)
    ]
    asked = [each for each in tasks(scene, rng) if not each[0].startswith("caption")]
    asked = [each for each in asked if each[0] not in PLACED or not picture.cut]
    for kind, question, answer in rng.sample(
        asked, min(len(asked), settings.asked - len(segments))
    ):
        segments.append(prompts.query(kind, _in_a_chat(question, asked, rng), answer))
    segments += [
        prompts.locate(kind, subject(scene, rng), picture) for kind in ("detect", "point") * 2
    ]
    segments.append(_about_a_place(picture, prompts, rng))
    thought = rng.choice(
        [each for each in questions(scene, rng) if each.kind not in PLACED or not picture.cut]
    )
    segments.append(prompts.reasoning(thought.text, picture, thought.answer))
    return Row(prompts.prefix, [index], list(segments))


def _is_placed(picture: Picture, length: str) -> bool:
    return length == "short" or not picture.cut


def _in_a_chat(question: str, asked: list[tuple[str, str, str]], rng: random.Random) -> str:
    """Sometimes behind a system prompt or an earlier turn, as a chat is told."""
    pick = rng.random()
    if pick < 0.06:
        return f"system: {rng.choice(SYSTEM_PROMPTS)}\n{question}"
    if pick < 0.12:
        _, before, answer = rng.choice(asked)
        return f"user: {before}\nassistant: {answer}\n{question}"
    return question


def _about_a_place(picture: Picture, prompts: Prompts, rng: random.Random) -> PlacedSegment:
    shape = rng.choice(picture.scene.shapes)
    place = prompts.point(picture.center(shape), False)
    if rng.random() < 0.5:
        middle, size = (
            prompts.point(picture.middle(shape), False),
            prompts.size(picture.size(shape), False),
        )
        place = Said(middle.ids + size.ids, middle.learn + size.learn, middle.places + size.places)
    question, answer = rng.choice(
        (
            ("What is this?", f"{article(shape.color)} {shape.name}"),
            ("What color is this?", shape.color),
        )
    )
    return prompts.query("place", question, answer, place)


class Probe(nn.Module):
    """What is linearly read in an image token: classes, and states in which the region head reads a
    middle and a size."""

    sizes = (len(KINDS) + 1, len(COLORS) + 1, 10, 2)

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.classes = nn.Linear(hidden, sum(self.sizes))
        self.places = nn.Linear(hidden, 3 * hidden)


class Trainer(trainer.Trainer[Picture]):
    """The pocket Moondream in the making."""

    settings: Settings
    model: Net
    probe: Probe

    def __init__(self, settings: Settings, work: Path) -> None:
        torch.manual_seed(settings.seed)
        self.tokenizer = pocket_tokenizer()
        self.config = pocket_config(self.tokenizer)
        net = Net(self.config)
        self.prompts = Prompts(self.tokenizer, self.config, net)
        super().__init__(net, Probe(self.config.text.dim), settings, work)

    def pictures(self) -> Iterator[list[Picture]]:
        """Implements :meth:`training.trainer.Trainer.pictures`."""
        source = Pictures(self.settings.seed + 1 + self.steps, self.settings.max_side, self.config)
        return iter(
            DataLoader(source, batch_size=16, num_workers=1, collate_fn=list, prefetch_factor=4)
        )

    def loss(
        self, pictures: list[Picture], rng: random.Random
    ) -> tuple[Tensor, list[tuple[str, bool]]]:
        """Implements :meth:`training.trainer.Trainer.loss`."""
        pixels = torch.from_numpy(
            np.concatenate([picture.crops.pixels for picture in pictures])
        ).to(self.device)
        crops = pixels.permute(0, 3, 1, 2).float().div(127.5).sub(1)
        features = self.model.image_tokens(crops, [picture.crops.tiling for picture in pictures])
        rows = [
            row(index, picture, self.prompts, self.settings, rng)
            for index, picture in enumerate(pictures)
        ]
        losses, weight, exact = [], 0.0, []
        for bucket in buckets(rows, 2):
            batch = pack(bucket, self.config.tokenizer.eos_id, self.device, whole_prefix=True)
            loss, predicted = self._answer_loss(
                batch, features[batch.tiles], _places(bucket, batch)
            )
            losses.append(loss)
            weight += batch.weights.sum().item()
            exact += exact_segments(batch, predicted)
        return torch.stack(losses).sum() / weight + 0.5 * self._probe_loss(
            features, pictures
        ), exact

    def write(self, out: Path) -> None:
        """Implements :meth:`training.trainer.Trainer.write`."""
        save_pocket(out, self.config, self.model.tensors(), self.tokenizer)

    def _answer_loss(
        self, batch: PackedBatch, features: Tensor, places: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The weighted sum of the learned ids' losses, and the labels' most likely ids; a place is
        right where it is close."""
        net = self.model
        states = net.states(batch.ids, features, batch.mask, batch.positions[0])
        learned = batch.labels != IGNORED
        states, labels, weights = states[learned], batch.labels[learned], batch.weights[learned]
        places = places[learned]
        is_size = labels >= net.first_size
        is_coordinate = (labels >= net.first_coordinate) & ~is_size
        spoken = torch.where(is_coordinate, self.config.tokenizer.coord_id, labels)[~is_size]
        logits = net.logits(states[~is_size])
        losses = torch.zeros_like(weights)
        losses[~is_size] = F.cross_entropy(logits, spoken, reduction="none")
        best = labels.clone()
        best[~is_size] = torch.where(
            logits.argmax(-1) == spoken, labels[~is_size], logits.argmax(-1)
        )
        wrong = torch.zeros_like(is_size)
        if is_coordinate.any():
            said = net.coordinate_logits(states[is_coordinate])
            bins = places[is_coordinate, 0] * said.shape[-1]
            losses = losses.index_add(0, is_coordinate.nonzero()[:, 0], self._near(said, bins))
            wrong[is_coordinate] = (said.argmax(-1) - bins).abs() > CLOSE
        if is_size.any():
            said = net.size_logits(states[is_size])
            bins = size_bins(places[is_size], said.shape[-1])
            losses = losses.index_add(0, is_size.nonzero()[:, 0], self._near(said, bins).mean(-1))
            wrong[is_size] = ((said.argmax(-1) - bins).abs() > CLOSE).any(-1)
        best[wrong] = -1
        predicted = batch.labels.clone()
        predicted[learned] = best
        return (losses * weights).sum(), predicted

    def _near(self, logits: Tensor, bins: Tensor) -> Tensor:
        """Cross entropy (…,) of logits (…, bins) to a normal distribution about each place (…,), in
        bins."""
        distance = torch.arange(logits.shape[-1], device=logits.device) - bins[..., None]
        targets = (-0.5 * (distance / self.settings.spread) ** 2).softmax(-1)
        return -(targets * logits.log_softmax(-1)).sum(-1)

    def _probe_loss(self, features: Tensor, pictures: list[Picture]) -> Tensor:
        net = self.model
        classes, places, has_place = (
            part.to(self.device) for part in probe_targets(pictures, self.config.vision.grid)
        )
        loss = torch.zeros((), device=self.device)
        logits = self.probe.classes(features).split(Probe.sizes, -1)
        for each, target in zip(logits, classes.unbind(-1), strict=True):
            loss = loss + F.cross_entropy(each.flatten(0, 1), target.flatten())
        x, y, size = self.probe.places(features[has_place]).chunk(3, -1)
        said = net.coordinate_logits(torch.stack([x, y], 1))
        sizes = net.size_logits(size)
        known = places[has_place]
        near = (
            self._near(said, known[:, :2] * said.shape[-1]),
            self._near(sizes, size_bins(known[:, 2:], sizes.shape[-1])),
        )
        return loss + near[0].mean() + near[1].mean()


def size_bins(sizes: Tensor, bins: int) -> Tensor:
    """Where shares of a side lie among the bins."""
    return (sizes.log2() + 10) / 10 * (bins - 1)


def _places(rows: list[Row], batch: PackedBatch) -> Tensor:
    """(rows, length, 2): the exact place that each position predicts."""
    places = np.zeros((*batch.labels.shape, 2), np.float32)
    segments = (segment for each in rows for segment in each.segments)
    for segment, (_, index, start, _) in zip(segments, batch.spans, strict=True):
        for offset, place in enumerate(segment.places):  # type: ignore[attr-defined]
            if place is not None:
                places[index, start + offset - 1] = place
    return torch.from_numpy(places).to(batch.labels.device)


def probe_targets(pictures: list[Picture], grid: int) -> tuple[Tensor, Tensor, Tensor]:
    """What a probe should read in each image token.

    (pictures, tokens, 4): kind, color and cell of the shape whose box holds the token's middle or
    whose middle lies in the token, 0 for none, and whether it is the latter. (pictures, tokens, 4):
    that shape's middle and size. A mask for these.
    """
    rows, columns = np.divmod(np.arange(grid**2), grid)
    x, y, half = (columns + 0.5) / grid, (rows + 0.5) / grid, 0.5 / grid
    classes = np.zeros((len(pictures), grid**2, 4), np.int64)
    places = np.full((len(pictures), grid**2, 4), 0.5, np.float32)
    for index, picture in enumerate(pictures):
        for shape in picture.scene.shapes:
            left, top, right, bottom = picture.box(shape)
            at, size = picture.middle(shape), picture.size(shape)
            middle = (abs(x - at[0]) <= half) & (abs(y - at[1]) <= half)
            inside = middle | ((left <= x) & (x <= right) & (top <= y) & (y <= bottom))
            cell = 0 if picture.cut else shape.cell + 1
            classes[index, inside, :3] = KIND_INDEX[shape.kind], COLOR_INDEX[shape.color], cell
            classes[index, middle, 3] = 1
            places[index, inside] = (*at, *size)
    return (
        torch.from_numpy(classes),
        torch.from_numpy(places),
        torch.from_numpy(classes[..., 0] > 0),
    )
