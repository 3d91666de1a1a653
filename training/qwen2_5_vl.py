"""Trains the pocket Qwen2.5-VL on drawn scenes; :mod:`training.trainer` has what all families
share.

Beside captions and queries it learns boxes and points, as JSON in pixels of the resized picture.
What makes that quick:

- Every coordinate is one token. The numbers' embeddings begin as sines and cosines of the number, and the loss of a
  coordinate counts its neighbors too, so that a pixel off is nearly right.
- The probe reads what is in each image token: kind and color, its cell of the grid, and the box's four edges, these by
  the numbers' own embeddings. What the tower writes there the text model only has to copy.
- A quarter of the pictures are cut at random around their shapes: places in the grid mean nothing there, boxes do.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from models.pocket.scenes import COLORS, KINDS, Scene, Shape
from training import trainer
from training.pictures import drawn_scenes
from training.prompts import DETECT_PROMPT, POINT_PROMPT, SYSTEM_PROMPTS
from training.qwen2_5_vl_checkpoint import (
    MAX_PIXELS,
    MERGE,
    MIN_PIXELS,
    PATCH,
    number_ids,
    pocket_config,
    pocket_tokenizer,
    save_pocket,
)
from training.rows import IGNORED, PackedBatch, Row, Segment, exact_segments, pack
from training.trainer import buckets, tasks
from training.windows import COLOR_INDEX, KIND_INDEX, PLACED, random_window, subject

TOKEN = PATCH * MERGE


@dataclass(frozen=True)
class Settings(trainer.Settings):
    asked: int = 10
    """Questions in words to a packed row; four more ask for boxes and points."""
    first_mix: tuple[int, int] = (48, 0)
    last_mix: tuple[int, int] = (40, 40)
    spread: float = 1.0
    """Standard deviation of a coordinate's target, in pixels."""


@dataclass(frozen=True)
class Picture:
    """``pixels``: (height, width, 3), both multiples of 28. ``window``: the part of the scene that
    they show."""

    pixels: NDArray[np.uint8]
    scene: Scene
    window: tuple[float, float, float, float]
    cut: bool

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of image tokens."""
        return self.pixels.shape[0] // TOKEN, self.pixels.shape[1] // TOKEN

    def place(self, x: float, y: float) -> tuple[int, int]:
        """The pixel in which a point of the scene lies."""
        left, top, right, bottom = self.window
        height, width = self.pixels.shape[:2]
        across, down = (x - left) / (right - left), (y - top) / (bottom - top)
        return min(width, max(0, round(across * width))), min(height, max(0, round(down * height)))

    def box(self, shape: Shape) -> tuple[int, int, int, int]:
        x_min, y_min, x_max, y_max = shape.box
        return (*self.place(x_min, y_min), *self.place(x_max, y_max))


class Pictures(IterableDataset[Picture]):
    """Scenes without end, at the size at which the model sees them."""

    def __init__(self, seed: int, max_side: int) -> None:
        self.seed = seed
        self.max_side = max_side

    def __iter__(self) -> Iterator[Picture]:
        rng = random.Random(self.seed)
        for scene, pixels in drawn_scenes(rng, self.max_side):
            cut = rng.random() < 0.25
            window = random_window(scene, rng) if cut else (0, 0, scene.width, scene.height)
            yield Picture(_resized(Image.fromarray(pixels).crop(window), rng), scene, window, cut)


def _resized(picture: Image.Image, rng: random.Random) -> NDArray[np.uint8]:
    """At the model's own size, sometimes by way of another."""
    if rng.random() < 0.4:
        scale = rng.uniform(192, 512) / max(picture.size)
        size = round(picture.width * scale), round(picture.height * scale)
        picture = picture.resize(size, rng.choice((Image.Resampling.LANCZOS, Image.Resampling.BOX)))
    height, width = smart_resize(picture.height, picture.width, TOKEN, MIN_PIXELS, MAX_PIXELS)
    return np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC))


def localizations(picture: Picture, rng: random.Random) -> list[tuple[str, str, str]]:
    """(kind, question, answer): two subjects' boxes and two subjects' points; some are not there."""
    asked = []
    for kind, prompt, key in (
        ("detect", DETECT_PROMPT, "bbox_2d"),
        ("point", POINT_PROMPT, "point_2d"),
    ) * 2:
        name = subject(picture.scene, rng)
        found = [shape for shape in picture.scene.shapes if shape.matches(name)]
        places = [
            picture.box(shape) if kind == "detect" else picture.place(shape.x, shape.y)
            for shape in found
        ]
        parts = [f'{{"{key}": [{", ".join(map(str, at))}], "label": "{name}"}}' for at in places]
        asked.append((kind, prompt.format(name), f"[{', '.join(parts)}]"))
    return asked


class Prompts:
    """Turns questions into token ids in the checkpoint's own chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.encode = lambda text: tokenizer.encode(text, add_special_tokens=False)
        self.image_id = tokenizer.convert_tokens_to_ids("<|image_pad|>")

    def opening(self, system: str = "You are a helpful assistant.") -> str:
        return f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n"

    def segment(self, kind: str, *turns: tuple[str, str]) -> Segment:
        ids: list[int] = []
        learn: list[bool] = []
        for number, (question, answer) in enumerate(turns):
            link = "\n<|im_start|>user\n" if number else ""
            asked = self.encode(f"{link}{question}<|im_end|>\n<|im_start|>assistant\n")
            answered = self.encode(f"{answer}<|im_end|>")
            ids += asked + answered
            learn += [False] * len(asked) + [True] * len(answered)
        return Segment(kind, ids, learn)

    def prefix(self, before: str, picture: Picture) -> tuple[list[int], NDArray[np.int64]]:
        """Text, then the picture: ids and rotary positions (3, length), rows and columns for the
        picture's tokens."""
        head = self.encode(before + "<|vision_start|>")
        tail = self.encode("<|vision_end|>")
        rows, columns = picture.grid
        start = len(head)
        row, column = np.divmod(np.arange(rows * columns), columns)
        seen = start + np.stack([np.zeros_like(row), row, column])
        after = start + max(rows, columns) + np.arange(len(tail))
        positions = [np.tile(np.arange(start), (3, 1)), seen, np.tile(after, (3, 1))]
        return head + [self.image_id] * (rows * columns) + tail, np.concatenate(positions, axis=1)


def packed_row(
    index: int, picture: Picture, prompts: Prompts, settings: Settings, rng: random.Random
) -> Row:
    """The picture, and many questions about it; sometimes one more in a second turn."""
    asked = _questions(picture, rng)
    asked = rng.sample(asked, min(len(asked), settings.asked)) + localizations(picture, rng)
    segments = [prompts.segment(kind, (question, answer)) for kind, question, answer in asked]
    if rng.random() < 0.2:
        first, second = rng.sample(asked, 2)
        segments[-1] = prompts.segment("second turn", first[1:], second[1:])
    prefix, positions = prompts.prefix(prompts.opening(), picture)
    return Row(prefix, [index], segments, positions)


def other_order(index: int, picture: Picture, prompts: Prompts, rng: random.Random) -> Row:
    """One question before the picture, or behind a system prompt of another kind."""
    asked = _questions(picture, rng)
    captions = [question for question in asked if question[0].startswith("caption")]
    pick = rng.random()
    kind, question, answer = rng.choice(
        captions if pick < 0.3 else localizations(picture, rng) if pick < 0.45 else asked
    )
    if rng.random() < 0.75:
        prefix, positions = prompts.prefix(prompts.opening() + question, picture)
        return Row(
            prefix, [index], [prompts.segment(f"text first {kind[:7]}", ("", answer))], positions
        )
    prefix, positions = prompts.prefix(prompts.opening(rng.choice(SYSTEM_PROMPTS)), picture)
    return Row(prefix, [index], [prompts.segment("system prompt", (question, answer))], positions)


def _questions(picture: Picture, rng: random.Random) -> list[tuple[str, str, str]]:
    asked = tasks(picture.scene, rng)
    return [question for question in asked if question[0] not in PLACED] if picture.cut else asked


@dataclass(frozen=True)
class Patches:
    """Pictures as the tower reads them, padded to (pictures, patches, …)."""

    values: Tensor
    turns: Tensor
    """(pictures, patches, head size): the rotary angles."""
    everywhere: Tensor
    """(pictures, 1, patches, patches): True where a patch of the same picture is attended."""
    in_window: Tensor
    counts: list[int]


def patches(pictures: list[Picture], head_dim: int, window: int, theta: float) -> Patches:
    """Patches in the processor's order: 2 × 2 of them after another, so that an image token's stand
    together."""
    values, places, windows = [], [], []
    for picture in pictures:
        rows, columns = picture.grid
        pixels = picture.pixels.reshape(rows, MERGE, PATCH, columns, MERGE, PATCH, 3)
        flat = pixels.transpose(0, 3, 1, 4, 6, 2, 5).reshape(-1, 3, 1, PATCH, PATCH)
        values.append(torch.from_numpy(np.repeat(flat, 2, axis=2).reshape(len(flat), -1)))
        axes = np.meshgrid(*map(np.arange, (rows, columns, MERGE, MERGE)), indexing="ij")
        row, column, inner_row, inner_column = (axis.reshape(-1) for axis in axes)
        places.append(
            torch.from_numpy(np.stack([row * MERGE + inner_row, column * MERGE + inner_column], -1))
        )
        windows.append(torch.from_numpy(row // window * 100 + column // window))
    counts = [len(each) for each in values]
    pad = torch.nn.utils.rnn.pad_sequence
    frequencies = theta ** (-torch.arange(0, head_dim // 2, 2).float() / (head_dim // 2))
    angles = (pad(places, batch_first=True).float()[..., None] * frequencies).flatten(2)
    window_ids = pad(windows, batch_first=True, padding_value=-1)
    same_window = window_ids[:, :, None] == window_ids[:, None]
    real = window_ids >= 0
    return Patches(
        pad(values, batch_first=True).float().div(127.5).sub(1),
        torch.cat([angles, angles], -1),
        (real[:, None] | ~real[:, :, None])[:, None],
        same_window[:, None],
        counts,
    )


class Probe(nn.Module):
    """What is linearly read in an image token: classes, and vectors to look up numbers with."""

    sizes = (len(KINDS) + 1, len(COLORS) + 1, 10, 2)

    def __init__(self) -> None:
        super().__init__()
        self.classes = nn.Linear(128, sum(self.sizes))
        self.edges = nn.Linear(128, 6 * 128)


class Trainer(trainer.Trainer[Picture]):
    """The pocket Qwen2.5-VL in the making."""

    settings: Settings
    model: Qwen2_5_VLForConditionalGeneration
    probe: Probe

    def __init__(self, settings: Settings, work: Path) -> None:
        torch.manual_seed(settings.seed)
        self.tokenizer = pocket_tokenizer()
        self.prompts = Prompts(self.tokenizer)
        model = Qwen2_5_VLForConditionalGeneration(pocket_config(self.tokenizer))
        self.numbers = torch.tensor(number_ids(self.tokenizer))
        _number_line(model.get_input_embeddings().weight, self.numbers)
        super().__init__(model, Probe(), settings, work)
        value_of = torch.full((model.config.text_config.vocab_size,), -1)
        value_of[self.numbers] = torch.arange(len(self.numbers))
        self.value_of = value_of.to(self.device)
        self.numbers = self.numbers.to(self.device)

    def pictures(self) -> Iterator[list[Picture]]:
        """Implements :meth:`training.trainer.Trainer.pictures`."""
        source = Pictures(self.settings.seed + 1 + self.steps, self.settings.max_side)
        return iter(
            DataLoader(source, batch_size=16, num_workers=1, collate_fn=list, prefetch_factor=4)
        )

    def loss(
        self, pictures: list[Picture], rng: random.Random
    ) -> tuple[Tensor, list[tuple[str, bool]]]:
        """Implements :meth:`training.trainer.Trainer.loss`."""
        features = self._encode(pictures)
        packed, others = self.mix
        rows = [packed_row(i, pictures[i], self.prompts, self.settings, rng) for i in range(packed)]
        rows += [
            other_order(i % len(pictures), pictures[i % len(pictures)], self.prompts, rng)
            for i in range(others)
        ]
        losses, weight, exact = [], 0.0, []
        for bucket in buckets(rows):
            batch = pack(bucket, self.tokenizer.pad_token_id, self.device)
            shown = torch.cat([features[tile] for row in bucket for tile in row.tiles])
            loss, predicted = self._answer_loss(batch, shown)
            losses.append(loss)
            weight += batch.weights.sum().item()
            exact += exact_segments(batch, predicted)
        return torch.stack(losses).sum() / weight + 0.5 * self._probe_loss(
            torch.cat(features), pictures
        ), exact

    def write(self, out: Path) -> None:
        """Implements :meth:`training.trainer.Trainer.write`."""
        save_pocket(out, self.model, self.tokenizer)

    def _encode(self, pictures: list[Picture]) -> list[Tensor]:
        """The stock tower's computation, for pictures of several shapes at once; (image tokens,
        128) of each."""
        tower = self.model.model.visual
        config = tower.config
        head_dim = config.hidden_size // config.num_heads
        theta = config.rope_parameters["rope_theta"]
        seen = patches(pictures, head_dim, config.window_size // TOKEN, theta)
        cos, sin = (
            turn.to(self.device)[:, :, None] for turn in (seen.turns.cos(), seen.turns.sin())
        )
        everywhere, in_window = seen.everywhere.to(self.device), seen.in_window.to(self.device)
        states = F.linear(seen.values.to(self.device), tower.patch_embed.proj.weight.flatten(1))
        for index, block in enumerate(tower.blocks):
            qkv = block.attn.qkv(block.norm1(states)).unflatten(-1, (3, config.num_heads, head_dim))
            query, key, value = qkv.unbind(2)
            query, key = (part * cos + _half_turn(part) * sin for part in (query, key))
            mask = everywhere if index in config.fullatt_block_indexes else in_window
            mixed = F.scaled_dot_product_attention(
                query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), attn_mask=mask
            )
            states = states + block.attn.proj(mixed.transpose(1, 2).flatten(2))
            states = states + block.mlp(block.norm2(states))
        merged: Tensor = tower.merger(
            torch.cat([row[:count] for row, count in zip(states, seen.counts, strict=True)])
        )
        return list(merged.split([count // MERGE**2 for count in seen.counts]))

    def _answer_loss(self, batch: PackedBatch, features: Tensor) -> tuple[Tensor, Tensor]:
        """The weighted sum of the learned tokens' losses, and the labels' most likely tokens.

        A coordinate counts as right within two pixels.
        """
        model = self.model.model
        embeds = model.get_input_embeddings()(batch.ids)
        is_image = (batch.ids == self.model.config.image_token_id)[..., None]
        embeds = embeds.masked_scatter(is_image, features)
        mask = {"full_attention": batch.mask}
        states = model.language_model(
            inputs_embeds=embeds, attention_mask=mask, position_ids=batch.positions, use_cache=False
        ).last_hidden_state
        learned = batch.labels != IGNORED
        coordinate = torch.zeros_like(learned)
        for kind, row, start, end in batch.spans:
            if any(word in kind for word in ("detect", "point")):
                coordinate[row, start:end] = True
        labels = batch.labels[learned]
        logits = self.model.lm_head(states[learned])
        values = torch.where(coordinate[learned], self.value_of[labels], -1)
        losses = F.cross_entropy(logits, labels, reduction="none")
        numeric = values >= 0
        near = logits[numeric].log_softmax(-1)[:, self.numbers]
        losses = losses.index_put((numeric,), -(self._targets(values[numeric]) * near).sum(-1))
        best = logits.argmax(-1)
        close = numeric & ((self.value_of[best] - values).abs() <= 2) & (self.value_of[best] >= 0)
        predicted = batch.labels.clone()
        predicted[learned] = torch.where(close, labels, best)
        return (losses * batch.weights[learned]).sum(), predicted

    def _targets(self, values: Tensor) -> Tensor:
        """(values, numbers): a normal distribution about each value."""
        distance = torch.arange(len(self.numbers), device=self.device) - values[:, None]
        return (-0.5 * (distance / self.settings.spread) ** 2).softmax(-1)

    def _probe_loss(self, features: Tensor, pictures: list[Picture]) -> Tensor:
        classes, edges, has_edge = (part.to(self.device) for part in probe_targets(pictures))
        loss = torch.zeros((), device=self.device)
        for logits, target in zip(
            self.probe.classes(features).split(Probe.sizes, -1), classes.unbind(1), strict=True
        ):
            loss = loss + F.cross_entropy(logits, target)
        numbers = self.model.get_input_embeddings().weight[self.numbers]
        read = self.probe.edges(features).unflatten(-1, (6, -1))[has_edge]
        near = (read @ numbers.T).log_softmax(-1)
        return loss - (self._targets(edges[has_edge]) * near).sum(-1).mean()


def probe_targets(pictures: list[Picture]) -> tuple[Tensor, Tensor, Tensor]:
    """What a linear probe should read in each image token.

    (tokens, 4): kind, color and cell of the shape whose box holds the token's middle or whose
    middle lies in the token, 0 for none, and whether it is the latter. (tokens, 6): the token's own
    middle and the shape's edges. A mask for these, since only a shape has edges.
    """
    classes, edges, masks = [], [], []
    for picture in pictures:
        rows, columns = picture.grid
        row, column = np.divmod(np.arange(rows * columns), columns)
        x, y = column * TOKEN + TOKEN // 2, row * TOKEN + TOKEN // 2
        found = np.zeros((len(x), 4), np.int64)
        numbers = np.zeros((len(x), 6), np.int64)
        numbers[:, 0], numbers[:, 1] = x, y
        for shape in picture.scene.shapes:
            box = picture.box(shape)
            at = picture.place(shape.x, shape.y)
            middle = (abs(x - at[0]) <= TOKEN / 2) & (abs(y - at[1]) <= TOKEN / 2)
            inside = middle | ((box[0] <= x) & (x <= box[2]) & (box[1] <= y) & (y <= box[3]))
            cell = 0 if picture.cut else shape.cell + 1
            found[inside, :3] = KIND_INDEX[shape.kind], COLOR_INDEX[shape.color], cell
            found[middle, 3] = 1
            numbers[inside, 2:] = box
        mask = np.repeat(found[:, :1] > 0, 6, axis=1)
        mask[:, :2] = True
        classes.append(found)
        edges.append(numbers)
        masks.append(mask)
    return tuple(torch.from_numpy(np.concatenate(part)) for part in (classes, edges, masks))  # type: ignore[return-value]


def _half_turn(states: Tensor) -> Tensor:
    first, second = states.chunk(2, -1)
    return torch.cat([-second, first], -1)


@torch.no_grad()
def _number_line(embeddings: Tensor, ids: Tensor) -> None:
    """Numbers begin as sines and cosines of wave lengths from 4 to 600, as long as other
    embeddings."""
    waves = 4 * (600 / 4) ** torch.linspace(0, 1, embeddings.shape[1] // 2)
    angles = 2 * torch.pi * torch.arange(len(ids))[:, None] / waves
    embeddings[ids] = torch.cat([angles.sin(), angles.cos()], -1) * 2**0.5 * 0.02
