"""Trains the pocket SmolVLM on drawn scenes; :mod:`training.trainer` has what all families share.

Half of the rows show the picture as tiles and a global view. Most tiles' features are those of
*other* pictures, at no cost for encoding, and some are the picture's own parts: the model learns to
read the global view only. The probe names the shape and color in each of the nine image tokens.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast, SmolVLMForConditionalGeneration

from models.pocket.scenes import COLORS, KINDS, Scene
from training import trainer
from training.pictures import Picture, Pictures
from training.prompts import SYSTEM_PROMPTS
from training.rows import IGNORED, PackedBatch, Row, Segment, exact_segments, pack
from training.smolvlm_checkpoint import TILE, pocket_config, pocket_tokenizer, save_pocket
from training.trainer import buckets, tasks

IMAGE_TOKENS = 9
COLOR_INDEX = {name: index + 1 for index, name in enumerate(COLORS)}
KIND_INDEX = {name: index + 1 for index, name in enumerate(KINDS)}


@dataclass(frozen=True)
class Settings(trainer.Settings):
    own_tiles: int = 16
    """Pictures of a step whose tiles are their own quarters or halves, enlarged; the others' are
    other pictures."""


class Prompts:
    """Turns questions into token ids in the checkpoint's own chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.encode = lambda text: tokenizer.encode(text, add_special_tokens=False)
        self.image_end = "<fake_token_around_image>"

    def picture(self, rows: int, columns: int) -> list[int]:
        """A picture's tokens as SmolVLM lays them out: tiles row by row, then the global view."""
        tokens = "<image>" * IMAGE_TOKENS
        text = ""
        for row in range(rows):
            for column in range(columns):
                text += f"{self.image_end}<row_{row + 1}_col_{column + 1}>{tokens}"
            text += "\n"
        text += ("\n" if rows else "") + f"{self.image_end}<global-img>{tokens}{self.image_end}"
        return self.encode(text)

    def apply_rope(self, question: str, answer: str) -> tuple[list[int], list[bool]]:
        asked = self.encode(f"{question}<end_of_utterance>\nAssistant:")
        answered = self.encode(f" {answer}<end_of_utterance>")
        return asked + answered, [False] * len(asked) + [True] * len(answered)

    def segment(self, kind: str, *turns: tuple[str, str]) -> Segment:
        ids, learn = self.apply_rope(*turns[0])
        for question, answer in turns[1:]:
            link = self.encode("\nUser: ")
            more_ids, more_learn = self.apply_rope(question, answer)
            ids, learn = ids + link + more_ids, learn + [False] * len(link) + more_learn
        return Segment(kind, ids, learn)


GRIDS = ((2, 2), (1, 2), (2, 1))


def layout(index: int, settings: Settings, rng: random.Random) -> tuple[int, int, list[int]]:
    """Rows, columns and the features behind them; the last, the global view, is the picture itself."""
    if rng.random() < 0.5:
        return 0, 0, [index]
    rows, columns = GRIDS[index % len(GRIDS)] if index < settings.own_tiles else rng.choice(GRIDS)
    count = rows * columns
    if index < settings.own_tiles:
        first = settings.images_per_step + sum(_tile_count(earlier) for earlier in range(index))
        return rows, columns, [*range(first, first + count), index]
    return rows, columns, [rng.randrange(settings.images_per_step) for _ in range(count)] + [index]


def _tile_count(index: int) -> int:
    rows, columns = GRIDS[index % len(GRIDS)]
    return rows * columns


def own_tiles(pixels: Tensor, count: int) -> Tensor:
    """The parts of the first ``count`` pictures (pictures, 3, side, side), each enlarged to a tile
    of its own."""
    tiles = []
    for index in range(count):
        rows, columns = GRIDS[index % len(GRIDS)]
        for band in pixels[index].chunk(rows, dim=1):
            tiles += list(band.chunk(columns, dim=2))
    return torch.cat([F.interpolate(tile[None], size=TILE, mode="bicubic") for tile in tiles])


def build_rows(
    pictures: list[Picture],
    prompts: Prompts,
    settings: Settings,
    mix: tuple[int, int],
    rng: random.Random,
) -> list[Row]:
    packed, other_orders = mix
    rows = []
    for index in range(packed):
        rows.append(_packed_row(pictures[index].scene, layout(index, settings, rng), prompts, rng))
    for number in range(other_orders):
        index = number % len(pictures)
        rows.append(_other_order(pictures[index].scene, layout(index, settings, rng), prompts, rng))
    return rows


def _packed_row(
    scene: Scene, laid_out: tuple[int, int, list[int]], prompts: Prompts, rng: random.Random
) -> Row:
    """The picture, and everything that is asked about it; sometimes one more question in a second
    turn."""
    tile_rows, tile_columns, tiles = laid_out
    asked = tasks(scene, rng)
    segments = [prompts.segment(kind, (question, answer)) for kind, question, answer in asked]
    if rng.random() < 0.2:
        first, second = rng.sample(asked, 2)
        segments[-1] = prompts.segment("second turn", first[1:], second[1:])
    return Row(
        prompts.encode("<|im_start|>User:") + prompts.picture(tile_rows, tile_columns),
        tiles,
        segments,
    )


def _other_order(
    scene: Scene, laid_out: tuple[int, int, list[int]], prompts: Prompts, rng: random.Random
) -> Row:
    """One question before the picture, or behind a system prompt."""
    _, question, answer = rng.choice(tasks(scene, rng))
    tile_rows, tile_columns, tiles = laid_out
    picture = prompts.picture(tile_rows, tile_columns)
    system = (
        f"System: {rng.choice(SYSTEM_PROMPTS)}<end_of_utterance>\n" if rng.random() < 0.4 else ""
    )
    if rng.random() < 0.7:
        prefix = prompts.encode(f"<|im_start|>{system}User: {question}") + picture
        return Row(prefix, tiles, [prompts.segment("text first", ("", answer))])
    prefix = prompts.encode(f"<|im_start|>{system}User:") + picture
    return Row(prefix, tiles, [prompts.segment("system prompt", (question, answer))])


def probe_targets(pictures: list[Picture], device: torch.device) -> tuple[Tensor, Tensor]:
    """The kind and the color in each cell, 0 where it is empty: two tensors of shape (pictures, 9)."""
    kinds = torch.zeros((len(pictures), 9), dtype=torch.long)
    colors = torch.zeros_like(kinds)
    for index, picture in enumerate(pictures):
        for shape in picture.scene.shapes:
            kinds[index, shape.cell] = KIND_INDEX[shape.kind]
            colors[index, shape.cell] = COLOR_INDEX[shape.color]
    return kinds.to(device), colors.to(device)


class Trainer(trainer.Trainer[Picture]):
    """The pocket SmolVLM in the making."""

    settings: Settings
    model: SmolVLMForConditionalGeneration

    def __init__(self, settings: Settings, work: Path) -> None:
        torch.manual_seed(settings.seed)
        self.tokenizer = pocket_tokenizer()
        self.prompts = Prompts(self.tokenizer)
        probe = nn.Linear(128, len(KINDS) + 1 + len(COLORS) + 1)
        super().__init__(
            SmolVLMForConditionalGeneration(pocket_config(self.tokenizer)), probe, settings, work
        )

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
        model = self.model.model
        pixels = torch.from_numpy(np.stack([picture.tile for picture in pictures])).to(self.device)
        pixels = pixels.permute(0, 3, 1, 2).float().div(127.5).sub(1)
        views = model.connector(model.vision_model(pixel_values=pixels).last_hidden_state)
        with torch.no_grad():
            parts = own_tiles(pixels, self.settings.own_tiles)
            part_features = model.connector(
                model.vision_model(pixel_values=parts).last_hidden_state
            )
        features = torch.cat([views, part_features])
        rows = build_rows(pictures, self.prompts, self.settings, self.mix, rng)
        losses, weight, exact = [], 0.0, []
        for bucket in buckets(rows):
            batch = pack(bucket, self.tokenizer.pad_token_id, self.device)
            loss, predicted = self._answer_loss(batch, features)
            losses.append(loss)
            weight += batch.weights.sum().item()
            exact += exact_segments(batch, predicted)
        return torch.stack(losses).sum() / weight + 0.5 * self._probe_loss(views, pictures), exact

    def write(self, out: Path) -> None:
        """Implements :meth:`training.trainer.Trainer.write`."""
        save_pocket(out, self.model, self.tokenizer)

    def _answer_loss(self, batch: PackedBatch, features: Tensor) -> tuple[Tensor, Tensor]:
        """The weighted sum of the learned tokens' losses, and the labels' most likely tokens."""
        model = self.model.model
        embeds = model.get_input_embeddings()(batch.ids)
        is_image = (batch.ids == self.model.config.image_token_id)[..., None]
        embeds = embeds.masked_scatter(
            is_image, features[batch.tiles].reshape(-1, features.shape[-1])
        )
        states = model.text_model(
            inputs_embeds=embeds,
            attention_mask=batch.mask,
            position_ids=batch.positions[0],
            use_cache=False,
        ).last_hidden_state
        learned = batch.labels != IGNORED
        logits = self.model.lm_head(states[learned])
        predicted = batch.labels.clone()
        predicted[learned] = logits.argmax(-1)
        losses = F.cross_entropy(logits, batch.labels[learned], reduction="none")
        return (losses * batch.weights[learned]).sum(), predicted

    def _probe_loss(self, features: Tensor, pictures: list[Picture]) -> Tensor:
        kinds, colors = probe_targets(pictures, self.device)
        kind_logits, color_logits = self.probe(features).split(
            (len(KINDS) + 1, len(COLORS) + 1), dim=-1
        )
        kind_loss = F.cross_entropy(kind_logits.flatten(0, 1), kinds.flatten())
        return kind_loss + F.cross_entropy(color_logits.flatten(0, 1), colors.flatten())
