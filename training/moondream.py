"""Training of the pocket Moondream on drawn scenes; :mod:`training.trainer` has the common parts.

Besides captions and queries, the model learns boxes and points through the region head, reasoning
that points at the shapes it names, and questions about a given point or box. Three measures make
coordinates fast to learn:

- The target of a coordinate or a size is a narrow normal distribution over the bins: a bin off is
  nearly right.
- The probe reads the content of each image token: kind, color and cell of the shape there and,
  through the region head itself, the center and size of its box. The text model then only has to
  copy what the encoder wrote into the token.
- A quarter of the pictures are cropped at random around their shapes. The cells of the grid mean
  nothing there, but boxes do.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset
from transformers import PreTrainedTokenizerFast

from models.moondream.config import MoondreamConfig
from models.moondream.crops import Crops, crop
from models.pocket.scenes import COLORS, KINDS, LENGTHS, Scene, Shape, article, questions
from training import trainer
from training.json_answers import (
    JsonExample,
    build_json_examples,
    encode_answer,
    schema_prompt,
    write_answer,
)
from training.moondream_checkpoint import pocket_config, pocket_tokenizer, save_pocket
from training.moondream_net import Net
from training.pictures import draw_scenes
from training.prompts import SYSTEM_PROMPTS
from training.rows import IGNORED, PackedBatch, Row, Segment, pack, score_segments
from training.trainer import Example, build_examples, group_by_length
from training.warm_start import copy_weights
from training.windows import (
    COLOR_INDEX,
    GRID_TASKS,
    KIND_INDEX,
    Window,
    random_subject,
    random_window,
)

TOLERANCE = 2
"""Bins within which a coordinate or a size counts as right."""


@dataclass(frozen=True)
class TrainingSettings(trainer.TrainingSettings):
    images_per_step: int = 32
    fresh_per_step: int = 12
    first_mix: tuple[int, int] = (32, 0)
    last_mix: tuple[int, int] = (32, 0)
    target_std: float = 1.0
    """Standard deviation of the target of a coordinate or a size, in bins."""


@dataclass(frozen=True)
class Picture:
    """The vision encoder's input for a scene."""

    crops: Crops
    scene: Scene
    window: Window
    """The part of the scene that the picture shows."""
    is_cropped: bool
    """Whether the window is smaller than the scene."""

    def box_center(self, shape: Shape) -> tuple[float, float]:
        """Return the center (x, y) of the shape's box, normalized to the window."""
        left, top, right, bottom = self.box(shape)
        return (left + right) / 2, (top + bottom) / 2

    def center(self, shape: Shape) -> tuple[float, float]:
        """Return the shape's own center (x, y), normalized to the window."""
        left, top, right, bottom = self.window
        return (shape.x - left) / (right - left), (shape.y - top) / (bottom - top)

    def box(self, shape: Shape) -> tuple[float, float, float, float]:
        """Return the shape's box (x_min, y_min, x_max, y_max), normalized to the window."""
        left, top, right, bottom = self.window
        width = right - left
        height = bottom - top
        x_min, y_min, x_max, y_max = shape.box
        return (
            (x_min - left) / width,
            (y_min - top) / height,
            (x_max - left) / width,
            (y_max - top) / height,
        )

    def size(self, shape: Shape) -> tuple[float, float]:
        """Return the (width, height) of the shape's box, normalized to the window."""
        left, top, right, bottom = self.box(shape)
        return right - left, bottom - top


class Pictures(IterableDataset[Picture]):
    """An endless dataset of scenes as crops for the vision encoder."""

    def __init__(self, seed: int, max_side: int, config: MoondreamConfig) -> None:
        self.seed = seed
        self.max_side = max_side
        self.config = config.vision

    def __iter__(self) -> Iterator[Picture]:
        rng = random.Random(self.seed)
        for scene, pixels in draw_scenes(rng, self.max_side):
            is_cropped = rng.random() < 0.25
            window = random_window(scene, rng) if is_cropped else (0, 0, scene.width, scene.height)
            resized = _resize_sometimes(Image.fromarray(pixels).crop(window), rng)
            yield Picture(crop(np.asarray(resized), self.config), scene, window, is_cropped)


def _resize_sometimes(picture: Image.Image, rng: random.Random) -> Image.Image:
    """Resize half of the pictures, as a server may do."""
    if rng.random() < 0.5:
        return picture
    scale = rng.uniform(96, 512) / max(picture.size)
    size = max(32, round(picture.width * scale)), max(32, round(picture.height * scale))
    return picture.resize(
        size, rng.choice((Image.Resampling.LANCZOS, Image.Resampling.BOX, Image.Resampling.BICUBIC))
    )


@dataclass
class Tokens:
    """Part of a segment: token ids with their training targets."""

    ids: list[int]
    learn: list[bool]
    """Whether the loss includes each token."""
    coordinates: list[tuple[float, float] | None]
    """The exact value of each coordinate token (x, x) or (y, y) and size token (width, height), as
    a share of the picture's sides; None for other tokens."""


@dataclass
class GroundedSegment(Segment):
    """A segment with the exact values of its coordinate and size tokens."""

    coordinates: list[tuple[float, float] | None] = None  # type: ignore[assignment]
    """As in :class:`Tokens`."""


class Prompts:
    """Builds segments of token ids in the checkpoint's own templates."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, config: MoondreamConfig, net: Net
    ) -> None:
        self._config = config
        self._ids = config.tokenizer
        self._net = net
        self._tokenizer = tokenizer
        self.encode: Callable[[str], list[int]] = lambda text: tokenizer.encode(
            text, add_special_tokens=False
        )
        self.prefix = [self._ids.bos_id] * (1 + config.vision.grid**2)

    def build_caption(self, length: str, answer: str) -> GroundedSegment:
        prompt = _prompt_tokens(self._ids.caption[length])
        return self._build_segment(f"caption {length}", prompt, self._encode_answer(answer))

    def build_query(
        self, task: str, question: str, answer: str, reference: Tokens | None = None
    ) -> GroundedSegment:
        """Return a question, optionally about the point or box in ``reference``."""
        template = self._ids.query
        prompt = [_prompt_tokens(template.prefix)]
        if reference is not None:
            prompt.append(reference)
        prompt.append(_prompt_tokens(self.encode(question)))
        # Upstream repeats the suffix if there is no reasoning.
        prompt.append(_prompt_tokens((*template.suffix, *template.suffix)))
        return self._build_segment(task, *prompt, self._encode_answer(answer))

    def build_json(self, example: JsonExample, question: str) -> GroundedSegment:
        """Return a question with an answer as JSON; the loss includes its values."""
        template = self._ids.query
        prompt = (*template.prefix, *self.encode(question), *template.suffix, *template.suffix)
        ids, learn = encode_answer(write_answer(example, " "), self._tokenizer)
        answer = Tokens(ids, learn, [None] * len(ids))
        return self._build_segment(example.task, _prompt_tokens(prompt), answer)

    def build_reasoning(self, question: str, picture: Picture, answer: str) -> GroundedSegment:
        """Return a question, reasoning that names and points at each shape, and the answer."""
        ids = self._ids
        template = ids.query
        assert ids.thinking_id is not None
        prompt = [*template.prefix, *self.encode(question), *template.suffix, ids.thinking_id]
        thoughts = []
        for shape in picture.scene.shapes:
            name = self.encode(f" {article(shape.color)} {shape.name}")
            thoughts.append(_learned_tokens([ids.start_ground_points_id, *name]))
            thoughts.append(self.encode_point(picture.center(shape), True))
            thoughts.append(_learned_tokens([ids.end_ground_id]))
        thoughts.append(_learned_tokens([ids.answer_id]))
        return self._build_segment(
            "reasoning", _prompt_tokens(prompt), *thoughts, self._encode_answer(answer)
        )

    def build_localization(self, task: str, name: str, picture: Picture) -> GroundedSegment:
        """Return a request for the boxes or points of the shapes that ``name`` matches.

        The segment includes the answer. ``task`` is ``detect`` or ``point``.
        """
        template = self._ids.detect if task == "detect" else self._ids.point
        prompt = [*template.prefix, *self.encode(f" {name}"), *template.suffix]
        answer = []
        for shape in picture.scene.shapes:
            if not shape.matches(name):
                continue
            if task == "detect":
                answer.append(self.encode_point(picture.box_center(shape), True))
                answer.append(self.encode_size(picture.size(shape), True))
            else:
                answer.append(self.encode_point(picture.center(shape), True))
        return self._build_segment(
            task, _prompt_tokens(prompt), *answer, _learned_tokens([self._ids.eos_id])
        )

    def encode_point(self, point: tuple[float, float], learn: bool) -> Tokens:
        """Return the two coordinate tokens of a normalized point (x, y)."""
        bins = self._config.region.coord_out_dim
        ids = []
        for value in point:
            bin_index = min(bins - 1, max(0, round(value * bins)))
            ids.append(self._net.first_coordinate + bin_index)
        return Tokens(ids, [learn] * 2, [(value, value) for value in point])

    def encode_size(self, size: tuple[float, float], learn: bool) -> Tokens:
        """Return the size token of a normalized (width, height), with logarithmic bins."""
        last = self._config.region.size_bins - 1
        width, height = (
            min(last, max(0, round((math.log2(value) + 10) / 10 * last))) for value in size
        )
        return Tokens([self._net.size_id((width, height))], [learn], [size])

    def _encode_answer(self, answer: str) -> Tokens:
        return _learned_tokens([*self.encode(f" {answer}"), self._ids.eos_id])

    def _build_segment(self, task: str, *parts: Tokens) -> GroundedSegment:
        segment = GroundedSegment(task, [], [], [])
        for part in parts:
            segment.ids += part.ids
            segment.learn += part.learn
            segment.coordinates += part.coordinates
        return segment


def _prompt_tokens(ids: Sequence[int]) -> Tokens:
    """Return tokens of the prompt, which the loss ignores."""
    return Tokens(list(ids), [False] * len(ids), [None] * len(ids))


def _learned_tokens(ids: list[int]) -> Tokens:
    """Return text and special tokens that the loss includes."""
    return Tokens(ids, [True] * len(ids), [None] * len(ids))


def build_row(
    index: int, picture: Picture, prompts: Prompts, settings: TrainingSettings, rng: random.Random
) -> Row:
    """Return a row with the picture and many questions about it."""
    scene = picture.scene
    lengths = [length for length in LENGTHS if length == "short" or not picture.is_cropped]
    segments = [prompts.build_caption(length, scene.caption(length)) for length in lengths]
    candidates = [
        example
        for example in build_examples(scene, rng)
        if not example.task.startswith("caption") and _is_answerable(example.task, picture)
    ]
    count = min(len(candidates), settings.text_questions - len(segments))
    for example in rng.sample(candidates, count):
        question = _add_context(example.question, candidates, rng)
        segments.append(prompts.build_query(example.task, question, example.answer))
    for _ in range(settings.json_rounds):
        for json_example in build_json_examples(scene, rng, not picture.is_cropped):
            question = _add_json_context(json_example, candidates, rng)
            segments.append(prompts.build_json(json_example, question))
    for task in ("detect", "point") * 2:
        segments.append(prompts.build_localization(task, random_subject(scene, rng), picture))
    segments.append(_question_about_reference(picture, prompts, rng))
    reasoned = rng.choice(
        [
            question
            for question in questions(scene, rng)
            if _is_answerable(question.category, picture)
        ]
    )
    segments.append(prompts.build_reasoning(reasoned.text, picture, reasoned.answer))
    return Row(prompts.prefix, [index], list(segments))


def _is_answerable(task: str, picture: Picture) -> bool:
    """Whether the picture still has the grid that the task may need."""
    return task not in GRID_TASKS or not picture.is_cropped


def _add_context(question: str, candidates: list[Example], rng: random.Random) -> str:
    """Prepend a system prompt or an earlier turn now and then, in the form that chats take."""
    pick = rng.random()
    if pick < 0.06:
        return f"system: {rng.choice(SYSTEM_PROMPTS)}\n{question}"
    if pick < 0.16:
        earlier = rng.choice(candidates)
        return f"user: {earlier.question}\nassistant: {earlier.answer}\n{question}"
    return question


def _add_json_context(example: JsonExample, candidates: list[Example], rng: random.Random) -> str:
    """Prepend a system prompt with the schema now and then."""
    if rng.random() < 0.1:
        return f"system: {schema_prompt(example, rng)}\n{example.question}"
    return _add_context(example.question, candidates, rng)


def _question_about_reference(
    picture: Picture, prompts: Prompts, rng: random.Random
) -> GroundedSegment:
    """Return a question about the point or the box of a random shape."""
    shape = rng.choice(picture.scene.shapes)
    reference = prompts.encode_point(picture.center(shape), False)
    if rng.random() < 0.5:
        middle = prompts.encode_point(picture.box_center(shape), False)
        size = prompts.encode_size(picture.size(shape), False)
        reference = Tokens(
            middle.ids + size.ids,
            middle.learn + size.learn,
            middle.coordinates + size.coordinates,
        )
    question, answer = rng.choice(
        (
            ("What is this?", f"{article(shape.color)} {shape.name}"),
            ("What color is this?", shape.color),
        )
    )
    return prompts.build_query("place", question, answer, reference)


class Probe(nn.Module):
    """A linear readout of image tokens."""

    sizes = (len(KINDS) + 1, len(COLORS) + 1, 10, 2)
    """Classes of each readout: kind, color, cell, and whether the token contains the center of the
    shape's box."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.classes = nn.Linear(hidden, sum(self.sizes))
        # Three states, from which the region head reads x, y, and the size.
        self.places = nn.Linear(hidden, 3 * hidden)


class Trainer(trainer.Trainer[Picture]):
    """Trains the pocket Moondream."""

    settings: TrainingSettings
    model: Net
    probe: Probe

    def __init__(self, settings: TrainingSettings, work: Path) -> None:
        torch.manual_seed(settings.seed)
        self.tokenizer = pocket_tokenizer()
        self.config = pocket_config(self.tokenizer)
        net = Net(self.config)
        self.prompts = Prompts(self.tokenizer, self.config, net)
        super().__init__(net, Probe(self.config.text.dim), settings, work)

    def start_from(self, folder: Path) -> None:
        earlier = {
            name.removeprefix("model."): tensor
            for name, tensor in load_file(folder / "model.safetensors").items()
        }
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        copy_weights(self.model.tensors(), earlier, self.tokenizer, tokenizer)

    def pictures(self) -> Iterator[list[Picture]]:
        source = Pictures(self.settings.seed + 1 + self.steps, self.settings.max_side, self.config)
        return iter(
            DataLoader(source, batch_size=16, num_workers=1, collate_fn=list, prefetch_factor=4)
        )

    def loss(
        self, pictures: list[Picture], rng: random.Random
    ) -> tuple[Tensor, list[tuple[str, bool]]]:
        with torch.autocast(self.device.type, torch.bfloat16):
            return self._loss(pictures, rng)

    def _loss(
        self, pictures: list[Picture], rng: random.Random
    ) -> tuple[Tensor, list[tuple[str, bool]]]:
        pixels = torch.from_numpy(
            np.concatenate([picture.crops.pixels for picture in pictures])
        ).to(self.device)
        crops = pixels.permute(0, 3, 1, 2).float().div(127.5).sub(1)
        features = self.model.image_tokens(crops, [picture.crops.tiling for picture in pictures])
        rows = [
            build_row(index, picture, self.prompts, self.settings, rng)
            for index, picture in enumerate(pictures)
        ]
        losses = []
        weight = 0.0
        exact = []
        for bucket in group_by_length(rows, 2):
            batch = pack(
                bucket, self.config.tokenizer.eos_id, self.device, bidirectional_prefix=True
            )
            loss, predicted = self._answer_loss(
                batch, features[batch.feature_indices], _exact_coordinates(bucket, batch)
            )
            losses.append(loss)
            weight += batch.weights.sum().item()
            exact += score_segments(batch, predicted)
        answer_loss = torch.stack(losses).sum() / weight
        return answer_loss + 0.5 * self._probe_loss(features, pictures), exact

    def write(self, out: Path) -> None:
        save_pocket(out, self.config, self.model.tensors(), self.tokenizer)

    def _answer_loss(
        self, batch: PackedBatch, features: Tensor, coordinates: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the weighted sum of the losses of learned tokens, and the most likely tokens.

        A coordinate or size within ``TOLERANCE`` of the exact one is replaced by its label.
        """
        net = self.model
        states = net.states(batch.ids, features, batch.mask, batch.positions[0])
        is_learned = batch.labels != IGNORED
        states = states[is_learned]
        labels = batch.labels[is_learned]
        weights = batch.weights[is_learned]
        coordinates = coordinates[is_learned]
        is_size = labels >= net.first_size
        is_coordinate = (labels >= net.first_coordinate) & ~is_size
        coord_id = self.config.tokenizer.coord_id
        text_labels = torch.where(is_coordinate, coord_id, labels)[~is_size]
        logits = net.logits(states[~is_size])
        losses = torch.zeros_like(weights)
        losses[~is_size] = F.cross_entropy(logits, text_labels, reduction="none")
        best = labels.clone()
        best[~is_size] = torch.where(
            logits.argmax(-1) == text_labels, labels[~is_size], logits.argmax(-1)
        )
        is_wrong = torch.zeros_like(is_size)
        if is_coordinate.any():
            bin_logits = net.coordinate_logits(states[is_coordinate])
            bins = coordinates[is_coordinate, 0] * bin_logits.shape[-1]
            indices = is_coordinate.nonzero()[:, 0]
            losses = losses.index_add(0, indices, self._bin_loss(bin_logits, bins))
            is_wrong[is_coordinate] = (bin_logits.argmax(-1) - bins).abs() > TOLERANCE
        if is_size.any():
            bin_logits = net.size_logits(states[is_size])
            bins = size_bins(coordinates[is_size], bin_logits.shape[-1])
            indices = is_size.nonzero()[:, 0]
            losses = losses.index_add(0, indices, self._bin_loss(bin_logits, bins).mean(-1))
            is_wrong[is_size] = ((bin_logits.argmax(-1) - bins).abs() > TOLERANCE).any(-1)
        best[is_wrong] = -1
        predicted = batch.labels.clone()
        predicted[is_learned] = best
        return (losses * weights).sum(), predicted

    def _bin_loss(self, logits: Tensor, bins: Tensor) -> Tensor:
        """Return the cross entropy (…,) of logits (…, bins).

        The target is a normal distribution around each exact position (…,), in bins.
        """
        distance = torch.arange(logits.shape[-1], device=logits.device) - bins[..., None]
        targets = (-0.5 * (distance / self.settings.target_std) ** 2).softmax(-1)
        return -(targets * logits.log_softmax(-1)).sum(-1)

    def _probe_loss(self, features: Tensor, pictures: list[Picture]) -> Tensor:
        net = self.model
        classes, boxes, has_shape = (
            target.to(self.device) for target in probe_targets(pictures, self.config.vision.grid)
        )
        loss = torch.zeros((), device=self.device)
        class_logits = self.probe.classes(features).split(Probe.sizes, -1)
        for logits, target in zip(class_logits, classes.unbind(-1), strict=True):
            loss = loss + F.cross_entropy(logits.flatten(0, 1), target.flatten())
        x, y, size = self.probe.places(features[has_shape]).chunk(3, -1)
        coordinate_logits = net.coordinate_logits(torch.stack([x, y], 1))
        size_logits = net.size_logits(size)
        exact = boxes[has_shape]
        coordinate_bins = exact[:, :2] * coordinate_logits.shape[-1]
        middle_loss = self._bin_loss(coordinate_logits, coordinate_bins)
        size_loss = self._bin_loss(size_logits, size_bins(exact[:, 2:], size_logits.shape[-1]))
        return loss + middle_loss.mean() + size_loss.mean()


def size_bins(sizes: Tensor, bins: int) -> Tensor:
    """Return the fractional bins of sizes, which are shares of a side."""
    return (sizes.log2() + 10) / 10 * (bins - 1)


def _exact_coordinates(rows: list[Row], batch: PackedBatch) -> Tensor:
    """Return the exact coordinates (rows, length, 2) that each position predicts."""
    coordinates = np.zeros((*batch.labels.shape, 2), np.float32)
    segments = (segment for row in rows for segment in row.segments)
    for segment, (_, index, start, _) in zip(segments, batch.spans, strict=True):
        for offset, values in enumerate(segment.coordinates):  # type: ignore[attr-defined]
            if values is not None:
                coordinates[index, start + offset - 1] = values
    return torch.from_numpy(coordinates).to(batch.labels.device)


def probe_targets(pictures: list[Picture], grid: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the targets of the probe for each image token.

    A token belongs to a shape if the shape's box contains the token's center, or if the token
    contains the center of the shape's box. The targets are:

    - (pictures, tokens, 4): kind, color and cell of the shape, 0 for none, and whether the token
      contains the center of the shape's box.
    - (pictures, tokens, 4): center and size of the shape's box.
    - (pictures, tokens): True if the token belongs to a shape.
    """
    rows, columns = np.divmod(np.arange(grid**2), grid)
    x = (columns + 0.5) / grid
    y = (rows + 0.5) / grid
    half = 0.5 / grid
    classes = np.zeros((len(pictures), grid**2, 4), np.int64)
    boxes = np.full((len(pictures), grid**2, 4), 0.5, np.float32)
    for index, picture in enumerate(pictures):
        for shape in picture.scene.shapes:
            left, top, right, bottom = picture.box(shape)
            middle = picture.box_center(shape)
            has_middle = (abs(x - middle[0]) <= half) & (abs(y - middle[1]) <= half)
            in_box = (left <= x) & (x <= right) & (top <= y) & (y <= bottom)
            in_shape = has_middle | in_box
            cell = 0 if picture.is_cropped else shape.cell + 1
            classes[index, in_shape, :3] = KIND_INDEX[shape.kind], COLOR_INDEX[shape.color], cell
            classes[index, has_middle, 3] = 1
            boxes[index, in_shape] = (*middle, *picture.size(shape))
    return (
        torch.from_numpy(classes),
        torch.from_numpy(boxes),
        torch.from_numpy(classes[..., 0] > 0),
    )
