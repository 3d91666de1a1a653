"""Training of the pocket SmolVLM on drawn scenes; :mod:`training.trainer` has the common parts.

Half of the rows show the picture as tiles and a global view. Most tiles have the features of
*other* pictures, which costs no encoding; some are parts of the picture itself. The model learns to
read the global view only. The probe names the shape and the color in each of the nine image tokens.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast, SmolVLMForConditionalGeneration

from models.pocket.scenes import COLORS, KINDS, Scene
from training import trainer
from training.json_answers import (
    JsonExample,
    build_json_examples,
    encode_answer,
    schema_prompt,
    write_answer,
)
from training.pictures import Picture, Pictures
from training.prompts import SYSTEM_PROMPTS
from training.rows import IGNORED, PackedBatch, Row, Segment, pack, score_segments
from training.smolvlm_checkpoint import TILE, pocket_config, pocket_tokenizer, save_pocket
from training.trainer import build_examples, group_by_length
from training.warm_start import copy_weights
from training.windows import COLOR_INDEX, KIND_INDEX

IMAGE_TOKENS = 9
"""Image tokens of a tile."""
GRIDS = ((2, 2), (1, 2), (2, 1))
"""Rows and columns of tiles."""


@dataclass(frozen=True)
class TrainingSettings(trainer.TrainingSettings):
    own_tiles: int = 16
    """Pictures per step with their own enlarged parts as tiles. The others get other pictures as
    tiles."""


class Prompts:
    """Builds token ids in the checkpoint's own chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self.encode = lambda text: tokenizer.encode(text, add_special_tokens=False)
        self.image_end = "<fake_token_around_image>"

    def encode_picture(self, rows: int, columns: int) -> list[int]:
        """Return a picture's tokens in SmolVLM's layout: tiles row by row, then the global view."""
        tokens = "<image>" * IMAGE_TOKENS
        text = ""
        for row in range(rows):
            for column in range(columns):
                text += f"{self.image_end}<row_{row + 1}_col_{column + 1}>{tokens}"
            text += "\n"
        text += ("\n" if rows else "") + f"{self.image_end}<global-img>{tokens}{self.image_end}"
        return self.encode(text)

    def encode_turn(self, question: str, answer: str) -> tuple[list[int], list[bool]]:
        """Return the ids of a turn, and whether the loss includes each of them."""
        question_ids = self.encode(f"{question}<end_of_utterance>\nAssistant:")
        answer_ids = self.encode(f" {answer}<end_of_utterance>")
        learn = [False] * len(question_ids) + [True] * len(answer_ids)
        return question_ids + answer_ids, learn

    def build_segment(self, task: str, *turns: tuple[str, str]) -> Segment:
        """Return a segment of (question, answer) turns; the loss includes the answers."""
        ids, learn = self.encode_turn(*turns[0])
        for question, answer in turns[1:]:
            separator = self.encode("\nUser: ")
            turn_ids, turn_learn = self.encode_turn(question, answer)
            ids = ids + separator + turn_ids
            learn = learn + [False] * len(separator) + turn_learn
        return Segment(task, ids, learn)

    def build_json_segment(self, example: JsonExample, question: str | None = None) -> Segment:
        """Return a segment with an answer as JSON; the loss includes its values."""
        text = example.question if question is None else question
        ids = self.encode(f"{text}<end_of_utterance>\nAssistant:")
        answer_ids, learn = encode_answer(write_answer(example, " "), self._tokenizer)
        return Segment(example.task, ids + answer_ids, [False] * len(ids) + learn)


class TileLayout(NamedTuple):
    """Tiles of a picture and their features."""

    rows: int
    columns: int
    feature_indices: list[int]
    """Features of the tiles, and last the picture itself as the global view."""


def choose_layout(index: int, settings: TrainingSettings, rng: random.Random) -> TileLayout:
    """Choose the tiles of picture ``index``. Half of the pictures have only the global view."""
    if rng.random() < 0.5:
        return TileLayout(0, 0, [index])
    has_own_tiles = index < settings.own_tiles
    rows, columns = _own_grid(index) if has_own_tiles else rng.choice(GRIDS)
    count = rows * columns
    if has_own_tiles:
        first = settings.images_per_step + sum(_tile_count(earlier) for earlier in range(index))
        return TileLayout(rows, columns, [*range(first, first + count), index])
    other_pictures = [rng.randrange(settings.images_per_step) for _ in range(count)]
    return TileLayout(rows, columns, [*other_pictures, index])


def _own_grid(index: int) -> tuple[int, int]:
    return GRIDS[index % len(GRIDS)]


def _tile_count(index: int) -> int:
    rows, columns = _own_grid(index)
    return rows * columns


def cut_own_tiles(pixels: Tensor, count: int) -> Tensor:
    """Cut the first ``count`` of pictures (pictures, 3, side, side) into parts.

    Returns all parts, each enlarged to a tile (tiles, 3, side, side).
    """
    parts = []
    for index in range(count):
        rows, columns = _own_grid(index)
        for band in pixels[index].chunk(rows, dim=1):
            parts += list(band.chunk(columns, dim=2))
    return torch.cat([F.interpolate(part[None], size=TILE, mode="bicubic") for part in parts])


def build_rows(
    pictures: list[Picture],
    prompts: Prompts,
    settings: TrainingSettings,
    mix: tuple[int, int],
    rng: random.Random,
) -> list[Row]:
    """Return the rows of one step. ``mix`` is the number of packed and of reordered rows."""
    packed_count, reordered_count = mix
    rows = []
    for index in range(packed_count):
        layout = choose_layout(index, settings, rng)
        rows.append(_build_packed_row(pictures[index].scene, layout, prompts, settings, rng))
    for number in range(reordered_count):
        index = number % len(pictures)
        layout = choose_layout(index, settings, rng)
        rows.append(_build_reordered_row(pictures[index].scene, layout, prompts, rng))
    return rows


def _build_packed_row(
    scene: Scene,
    layout: TileLayout,
    prompts: Prompts,
    settings: TrainingSettings,
    rng: random.Random,
) -> Row:
    """Return a row with the picture first and many questions about it.

    Every other time, the last segment is a conversation of two turns.
    """
    candidates = build_examples(scene, rng)
    chosen = rng.sample(candidates, min(len(candidates), settings.text_questions))
    segments = [
        prompts.build_segment(example.task, (example.question, example.answer))
        for example in chosen
    ]
    segments += [
        prompts.build_json_segment(example)
        for _ in range(settings.json_rounds)
        for example in build_json_examples(scene, rng)
    ]
    if rng.random() < 0.5:
        first, second = rng.sample(candidates, 2)
        segments[-1] = prompts.build_segment(
            "second turn", (first.question, first.answer), (second.question, second.answer)
        )
    picture = prompts.encode_picture(layout.rows, layout.columns)
    prefix = prompts.encode("<|im_start|>User:") + picture
    return Row(prefix, layout.feature_indices, segments)


def _build_reordered_row(
    scene: Scene, layout: TileLayout, prompts: Prompts, rng: random.Random
) -> Row:
    """Return a row with one question, before the picture or after a system prompt."""
    picture = prompts.encode_picture(layout.rows, layout.columns)
    if rng.random() < 0.35:
        return _build_json_row(scene, layout, picture, prompts, rng)
    example = rng.choice(build_examples(scene, rng))
    system = ""
    if rng.random() < 0.4:
        system = f"System: {rng.choice(SYSTEM_PROMPTS)}<end_of_utterance>\n"
    if rng.random() < 0.7:
        prefix = prompts.encode(f"<|im_start|>{system}User: {example.question}") + picture
        segment = prompts.build_segment("text first", ("", example.answer))
    else:
        prefix = prompts.encode(f"<|im_start|>{system}User:") + picture
        segment = prompts.build_segment("system prompt", (example.question, example.answer))
    return Row(prefix, layout.feature_indices, [segment])


def _build_json_row(
    scene: Scene, layout: TileLayout, picture: list[int], prompts: Prompts, rng: random.Random
) -> Row:
    """Return a row whose answer is JSON, with the question before the picture or after a system
    prompt."""
    example = rng.choice(build_json_examples(scene, rng))
    pick = rng.random()
    system = ""
    if pick < 0.5:
        prompt = rng.choice(SYSTEM_PROMPTS) if pick < 0.15 else schema_prompt(example, rng)
        system = f"System: {prompt}<end_of_utterance>\n"
    if pick > 0.35:
        prefix = prompts.encode(f"<|im_start|>{system}User: {example.question}") + picture
        return Row(prefix, layout.feature_indices, [prompts.build_json_segment(example, "")])
    prefix = prompts.encode(f"<|im_start|>{system}User:") + picture
    return Row(prefix, layout.feature_indices, [prompts.build_json_segment(example)])


def probe_targets(pictures: list[Picture], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the kind and the color in each cell, two tensors (pictures, 9); 0 means empty."""
    kinds = torch.zeros((len(pictures), 9), dtype=torch.long)
    colors = torch.zeros_like(kinds)
    for index, picture in enumerate(pictures):
        for shape in picture.scene.shapes:
            kinds[index, shape.cell] = KIND_INDEX[shape.kind]
            colors[index, shape.cell] = COLOR_INDEX[shape.color]
    return kinds.to(device), colors.to(device)


class Trainer(trainer.Trainer[Picture]):
    """Trains the pocket SmolVLM."""

    settings: TrainingSettings
    model: SmolVLMForConditionalGeneration

    def __init__(self, settings: TrainingSettings, work: Path) -> None:
        torch.manual_seed(settings.seed)
        self.tokenizer = pocket_tokenizer()
        self.prompts = Prompts(self.tokenizer)
        probe = nn.Linear(128, len(KINDS) + 1 + len(COLORS) + 1)
        model = SmolVLMForConditionalGeneration(pocket_config(self.tokenizer))
        super().__init__(model, probe, settings, work)

    def start_from(self, folder: Path) -> None:
        earlier = SmolVLMForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        copy_weights(self.model.state_dict(), earlier.state_dict(), self.tokenizer, tokenizer)

    def pictures(self) -> Iterator[list[Picture]]:
        source = Pictures(self.settings.seed + 1 + self.steps, self.settings.max_side)
        return iter(
            DataLoader(source, batch_size=16, num_workers=1, collate_fn=list, prefetch_factor=4)
        )

    def loss(
        self, pictures: list[Picture], rng: random.Random
    ) -> tuple[Tensor, list[tuple[str, bool]]]:
        pixels = torch.from_numpy(np.stack([picture.tile for picture in pictures])).to(self.device)
        pixels = pixels.permute(0, 3, 1, 2).float().div(127.5).sub(1)
        picture_features = self._encode(pixels)
        with torch.no_grad():
            tile_features = self._encode(cut_own_tiles(pixels, self.settings.own_tiles))
        features = torch.cat([picture_features, tile_features])
        rows = build_rows(pictures, self.prompts, self.settings, self.mix, rng)
        losses = []
        weight = 0.0
        exact = []
        for bucket in group_by_length(rows):
            batch = pack(bucket, self.tokenizer.pad_token_id, self.device)
            loss, predicted = self._answer_loss(batch, features)
            losses.append(loss)
            weight += batch.weights.sum().item()
            exact += score_segments(batch, predicted)
        answer_loss = torch.stack(losses).sum() / weight
        return answer_loss + 0.5 * self._probe_loss(picture_features, pictures), exact

    def write(self, out: Path) -> None:
        save_pocket(out, self.model, self.tokenizer)

    def _encode(self, pixels: Tensor) -> Tensor:
        """Return the image tokens (tiles, 9, hidden) of tiles (tiles, 3, side, side)."""
        model = self.model.model
        features: Tensor = model.connector(
            model.vision_model(pixel_values=pixels).last_hidden_state
        )
        return features

    def _answer_loss(self, batch: PackedBatch, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weighted sum of the losses of learned tokens, and the most likely tokens."""
        model = self.model.model
        embeds = model.get_input_embeddings()(batch.ids)
        is_image = (batch.ids == self.model.config.image_token_id)[..., None]
        batch_features = features[batch.feature_indices].reshape(-1, features.shape[-1])
        embeds = embeds.masked_scatter(is_image, batch_features)
        states = model.text_model(
            inputs_embeds=embeds,
            attention_mask=batch.mask,
            position_ids=batch.positions[0],
            use_cache=False,
        ).last_hidden_state
        is_learned = batch.labels != IGNORED
        logits = self.model.lm_head(states[is_learned])
        predicted = batch.labels.clone()
        predicted[is_learned] = logits.argmax(-1)
        losses = F.cross_entropy(logits, batch.labels[is_learned], reduction="none")
        return (losses * batch.weights[is_learned]).sum(), predicted

    def _probe_loss(self, features: Tensor, pictures: list[Picture]) -> Tensor:
        kinds, colors = probe_targets(pictures, self.device)
        kind_logits, color_logits = self.probe(features).split(
            (len(KINDS) + 1, len(COLORS) + 1), dim=-1
        )
        kind_loss = F.cross_entropy(kind_logits.flatten(0, 1), kinds.flatten())
        return kind_loss + F.cross_entropy(color_logits.flatten(0, 1), colors.flatten())
