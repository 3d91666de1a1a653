"""Trains the pocket SmolVLM on drawn scenes.

The recipe, the same on a CPU and on a GPU:

- One process draws scenes without end into a pool; every picture is used a few times, with other questions.
- Every picture is encoded once a step and asked up to eight things in one packed row (:mod:`models.pocket.rows`).
  Further rows put the text before the picture, a system prompt before both, or a second turn after the first.
- Half of the rows show the picture as tiles and a global view. Most tiles' features are those of *other* pictures,
  at no cost for encoding, and some are the picture's own parts: the model learns to read the global view only.
- A linear probe names the shape and color in each of the nine image tokens. Its loss teaches the vision tower in
  minutes what the captions alone teach in an hour. The probe is not part of the checkpoint.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter, defaultdict, deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast, SmolVLMForConditionalGeneration

from models.pocket.pictures import Picture, Pictures, Pool
from models.pocket.prompts import SYSTEM_PROMPTS, caption_request
from models.pocket.rows import IGNORED, PackedBatch, Row, Segment, exact_segments, pack
from models.pocket.scenes import (
    CELLS,
    COLORS,
    KINDS,
    LENGTHS,
    Scene,
    ask_color,
    ask_presence,
    questions,
)
from models.pocket.smolvlm_checkpoint import TILE, pocket_config, pocket_tokenizer, save_pocket

IMAGE_TOKENS = 9
TASK_PROMPTS = {
    "short": "Caption this image in one short sentence.",
    "normal": "Describe this image.",
    "long": "Describe this image in detail.",
}
COLOR_INDEX = {name: index + 1 for index, name in enumerate(COLORS)}
KIND_INDEX = {name: index + 1 for index, name in enumerate(KINDS)}


@dataclass(frozen=True)
class Settings:
    minutes: float = 88.0
    images_per_step: int = 48
    """Every picture is encoded in every step; the two mixes say how many of them are asked what."""
    first_mix: tuple[int, int] = (48, 32)
    """Packed rows, with the picture first, and rows with other orders of text and picture: to learn to see."""
    last_mix: tuple[int, int] = (16, 128)
    """The same for the last part: other orders share no work, and come once the rest is known."""
    last_part: float = 0.65
    own_tiles: int = 16
    """Pictures of a step whose tiles are their own quarters or halves, enlarged; the others' are other pictures."""
    learning_rate: float = 1.5e-3
    warmup: float = 0.02
    weight_decay: float = 0.02
    pool: int = 24_000
    max_side: int = 640
    seed: int = 0


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

    def turn(self, question: str, answer: str) -> tuple[list[int], list[bool]]:
        asked = self.encode(f"{question}<end_of_utterance>\nAssistant:")
        answered = self.encode(f" {answer}<end_of_utterance>")
        return asked + answered, [False] * len(asked) + [True] * len(answered)

    def segment(self, kind: str, *turns: tuple[str, str]) -> Segment:
        ids, learn = self.turn(*turns[0])
        for question, answer in turns[1:]:
            link = self.encode("\nUser: ")
            more_ids, more_learn = self.turn(question, answer)
            ids, learn = ids + link + more_ids, learn + [False] * len(link) + more_learn
        return Segment(kind, ids, learn)


def tasks(scene: Scene, rng: random.Random) -> list[tuple[str, str, str]]:
    """(kind, question, answer) triples about a scene: the table's rows, captions asked in other words, and aids."""
    asked = [(f"caption {length}", TASK_PROMPTS[length], scene.caption(length)) for length in LENGTHS]
    asked += [(question.kind, question.text, question.answer) for question in questions(scene, rng)]
    asked += aids(scene, rng)
    length = rng.choice(LENGTHS)
    asked.append(("phrasing", caption_request(length, rng), scene.caption(length)))
    return asked


def aids(scene: Scene, rng: random.Random) -> list[tuple[str, str, str]]:
    """Questions outside the table that need the same look-ups: a shape by its color, a color by its place.

    Finding a picture's token by what is in it is the last thing that the model learns; more such questions, and both
    answers to the question of presence, bring it forward.
    """
    presence = [ask_presence(scene, rng, present) for present in (True, False)]
    asked = [("presence", question.text, question.answer) for question in presence]
    cell = rng.choice([shape.cell for shape in scene.shapes])
    color = next(shape.color for shape in scene.shapes if shape.cell == cell)
    asked.append(("aid", f"What color is at the {CELLS[cell]}?", color))
    colors = Counter(shape.color for shape in scene.shapes)
    for shape in scene.shapes:
        if colors[shape.color] == 1:
            asked.append(("aid", f"What shape is {shape.color}?", shape.kind))
    other = ask_color(scene, rng)
    if other is not None:
        asked.append((other.kind, other.text, other.answer))
    return asked


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
    """The parts of the first ``count`` pictures (pictures, 3, side, side), each enlarged to a tile of its own."""
    tiles = []
    for index in range(count):
        rows, columns = GRIDS[index % len(GRIDS)]
        for band in pixels[index].chunk(rows, dim=1):
            tiles += list(band.chunk(columns, dim=2))
    return torch.cat([F.interpolate(tile[None], size=TILE, mode="bicubic") for tile in tiles])


def build_rows(
    pictures: list[Picture], prompts: Prompts, settings: Settings, mix: tuple[int, int], rng: random.Random
) -> list[Row]:
    packed, other_orders = mix
    rows = []
    for index in range(packed):
        rows.append(_packed_row(pictures[index].scene, layout(index, settings, rng), prompts, rng))
    for number in range(other_orders):
        index = number % len(pictures)
        rows.append(_other_order(pictures[index].scene, layout(index, settings, rng), prompts, rng))
    return rows


def _packed_row(scene: Scene, laid_out: tuple[int, int, list[int]], prompts: Prompts, rng: random.Random) -> Row:
    """The picture, and everything that is asked about it; sometimes one more question in a second turn."""
    tile_rows, tile_columns, tiles = laid_out
    asked = tasks(scene, rng)
    segments = [prompts.segment(kind, (question, answer)) for kind, question, answer in asked]
    if rng.random() < 0.2:
        first, second = rng.sample(asked, 2)
        segments[-1] = prompts.segment("second turn", first[1:], second[1:])
    return Row(prompts.encode("<|im_start|>User:") + prompts.picture(tile_rows, tile_columns), tiles, segments)


def _other_order(scene: Scene, laid_out: tuple[int, int, list[int]], prompts: Prompts, rng: random.Random) -> Row:
    """One question before the picture, or behind a system prompt."""
    _, question, answer = rng.choice(tasks(scene, rng))
    tile_rows, tile_columns, tiles = laid_out
    picture = prompts.picture(tile_rows, tile_columns)
    system = f"System: {rng.choice(SYSTEM_PROMPTS)}<end_of_utterance>\n" if rng.random() < 0.4 else ""
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


class Trainer:
    """Model, probe, optimizer and progress; resumes from ``work`` where an earlier run stopped."""

    def __init__(self, settings: Settings, work: Path) -> None:
        torch.manual_seed(settings.seed)
        self.settings = settings
        self.work = work
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.tokenizer = pocket_tokenizer()
        self.prompts = Prompts(self.tokenizer)
        self.model = SmolVLMForConditionalGeneration(pocket_config(self.tokenizer)).to(self.device).train()
        self.probe = nn.Linear(128, len(KINDS) + 1 + len(COLORS) + 1).to(self.device)
        parameters = [*self.model.parameters(), *self.probe.parameters()]
        self.optimizer = torch.optim.AdamW(
            parameters, settings.learning_rate, betas=(0.9, 0.98), weight_decay=settings.weight_decay
        )
        self.seconds = 0.0
        self.steps = 0
        self._resume()

    @property
    def progress(self) -> float:
        return self.seconds / (60 * self.settings.minutes)

    def step(self, pictures: list[Picture], rng: random.Random) -> tuple[float, list[tuple[str, bool]]]:
        """One update; the loss, and which segments were exact before it."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * _schedule(self.progress, self.settings.warmup)
        loss, exact = self._loss(pictures, rng)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.steps += 1
        return loss.item(), exact

    def _loss(self, pictures: list[Picture], rng: random.Random) -> tuple[Tensor, list[tuple[str, bool]]]:
        model = self.model.model
        pixels = torch.from_numpy(np.stack([picture.tile for picture in pictures])).to(self.device)
        pixels = pixels.permute(0, 3, 1, 2).float().div(127.5).sub(1)
        settings = self.settings
        views = model.connector(model.vision_model(pixel_values=pixels).last_hidden_state)
        with torch.no_grad():
            parts = own_tiles(pixels, settings.own_tiles)
            part_features = model.connector(model.vision_model(pixel_values=parts).last_hidden_state)
        features = torch.cat([views, part_features])
        mix = settings.first_mix if self.progress < settings.last_part else settings.last_mix
        rows = build_rows(pictures, self.prompts, settings, mix, rng)
        losses, weight, exact = [], 0.0, []
        for bucket in _buckets(rows):
            batch = pack(bucket, self.tokenizer.pad_token_id, self.device)
            loss, predicted = self._answer_loss(batch, features)
            losses.append(loss)
            weight += batch.weights.sum().item()
            exact += exact_segments(batch, predicted)
        return torch.stack(losses).sum() / weight + 0.5 * self._probe_loss(views, pictures), exact

    def _answer_loss(self, batch: PackedBatch, features: Tensor) -> tuple[Tensor, Tensor]:
        """The weighted sum of the learned tokens' losses, and the labels' most likely tokens."""
        model = self.model.model
        embeds = model.get_input_embeddings()(batch.ids)
        is_image = (batch.ids == self.model.config.image_token_id)[..., None]
        embeds = embeds.masked_scatter(is_image, features[batch.tiles].reshape(-1, features.shape[-1]))
        states = model.text_model(
            inputs_embeds=embeds, attention_mask=batch.mask, position_ids=batch.positions, use_cache=False
        ).last_hidden_state
        learned = batch.labels != IGNORED
        logits = self.model.lm_head(states[learned])
        predicted = batch.labels.clone()
        predicted[learned] = logits.argmax(-1)
        losses = F.cross_entropy(logits, batch.labels[learned], reduction="none")
        return (losses * batch.weights[learned]).sum(), predicted

    def _probe_loss(self, features: Tensor, pictures: list[Picture]) -> Tensor:
        kinds, colors = probe_targets(pictures, self.device)
        kind_logits, color_logits = self.probe(features).split((len(KINDS) + 1, len(COLORS) + 1), dim=-1)
        kind_loss = F.cross_entropy(kind_logits.flatten(0, 1), kinds.flatten())
        return kind_loss + F.cross_entropy(color_logits.flatten(0, 1), colors.flatten())

    def save(self) -> None:
        self.work.mkdir(parents=True, exist_ok=True)
        state = {
            "model": self.model.state_dict(),
            "probe": self.probe.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "seconds": self.seconds,
            "steps": self.steps,
        }
        partial = self.work / "state.pt.partial"
        torch.save(state, partial)
        partial.replace(self.work / "state.pt")

    def _resume(self) -> None:
        path = self.work / "state.pt"
        if not path.exists():
            return
        state: dict[str, Any] = torch.load(path, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.probe.load_state_dict(state["probe"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.seconds, self.steps = state["seconds"], state["steps"]
        print(f"resumed at step {self.steps}, {self.seconds / 60:.1f} minutes", flush=True)


def _buckets(rows: list[Row], count: int = 4) -> list[list[Row]]:
    """The rows in a few groups of like length, so that little is padding."""
    ordered = sorted(rows, key=len)
    size = -(-len(ordered) // count)
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def _schedule(progress: float, warmup: float) -> float:
    """A short linear warm-up, then linear down to nothing."""
    if progress < warmup:
        return max(0.02, progress / warmup)
    return max(0.005, (1 - progress) / (1 - warmup))


def train(settings: Settings, work: Path, out: Path) -> None:
    """Trains for ``settings.minutes`` of computing time and writes the checkpoint to ``out``."""
    trainer = Trainer(settings, work)
    rng = random.Random(settings.seed + trainer.steps)
    pictures = Pictures(settings.seed + 1 + trainer.steps, settings.max_side)
    loader = DataLoader(pictures, batch_size=16, num_workers=1, collate_fn=list, prefetch_factor=4)
    pool = Pool(iter(loader), settings.pool)
    recent: dict[str, deque[bool]] = defaultdict(lambda: deque(maxlen=2000))
    started = saved = reported = time.monotonic()
    before = trainer.seconds
    while trainer.progress < 1:
        loss, exact = trainer.step(pool.draw(settings.images_per_step, 16, rng), rng)
        for kind, right in exact:
            recent[kind].append(right)
        now = time.monotonic()
        trainer.seconds = before + now - started
        if now - reported > 30:
            reported = now
            rates = {kind: round(100 * sum(hits) / len(hits), 1) for kind, hits in sorted(recent.items())}
            print(
                f"{trainer.seconds / 60:5.1f} min, step {trainer.steps}, loss {loss:.4f} {json.dumps(rates)}",
                flush=True,
            )
        if now - saved > 180:
            saved = now
            trainer.save()
    trainer.save()
    save_pocket(out, trainer.model, trainer.tokenizer)
