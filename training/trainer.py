"""What training a pocket model takes whatever its family: what is asked about a scene, and the
loop.

The recipe, the same on a CPU and on a GPU:

- One process draws scenes without end into a pool; every picture is used a few times, with other questions.
- Every picture is encoded once a step and asked many things in one packed row (:mod:`training.rows`). Rows with
  other orders of text and picture share no work, and come in the last part, once the rest is known.
- A linear probe names what is in each image token. Its loss teaches the vision tower in minutes what the captions
  alone teach in an hour. The probe is not part of the checkpoint.
"""

from __future__ import annotations

import json
import random
import time
from abc import ABC, abstractmethod
from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from models.pocket.scenes import (
    CELLS,
    LENGTHS,
    Scene,
    ask_color,
    ask_presence,
    ask_shape,
    questions,
)
from training.pictures import Pool
from training.prompts import caption_request
from training.rows import Row

TASK_PROMPTS = {
    "short": "Caption this image in one short sentence.",
    "normal": "Describe this image.",
    "long": "Describe this image in detail.",
}
P = TypeVar("P")
"""A family's picture to train on."""


@dataclass(frozen=True)
class Settings:
    minutes: float = 88.0
    images_per_step: int = 48
    """Every picture is encoded in every step; the two mixes say how many of them are asked what."""
    fresh_per_step: int = 16
    first_mix: tuple[int, int] = (48, 32)
    """Packed rows, with the picture first, and rows with other orders of text and picture: to learn
    to see."""
    last_mix: tuple[int, int] = (16, 128)
    """The same for the last part."""
    last_part: float = 0.65
    learning_rate: float = 1.5e-3
    warmup: float = 0.02
    weight_decay: float = 0.02
    pool: int = 24_000
    max_side: int = 640
    seed: int = 0


def tasks(scene: Scene, rng: random.Random) -> list[tuple[str, str, str]]:
    """(kind, question, answer) triples about a scene: the table's rows, captions asked in other
    words, and aids."""
    asked = [
        (f"caption {length}", TASK_PROMPTS[length], scene.caption(length)) for length in LENGTHS
    ]
    asked += [(question.kind, question.text, question.answer) for question in questions(scene, rng)]
    asked += aids(scene, rng)
    length = rng.choice(LENGTHS)
    asked.append(("phrasing", caption_request(length, rng), scene.caption(length)))
    return asked


def aids(scene: Scene, rng: random.Random) -> list[tuple[str, str, str]]:
    """Questions outside the table that need the same look-ups: a shape by its color, a color by its
    place.

    Finding a picture's token by what is in it is the last thing that the model learns; more such
    questions, and both answers to the question of presence, bring it forward.
    """
    presence = [ask_presence(scene, rng, present) for present in (True, False)]
    asked = [("presence", question.text, question.answer) for question in presence]
    cell = rng.choice([shape.cell for shape in scene.shapes])
    color = next(shape.color for shape in scene.shapes if shape.cell == cell)
    asked.append(("aid", f"What color is at the {CELLS[cell]}?", color))
    anywhere = ask_shape(scene, rng, rng.randrange(9))
    asked.append((anywhere.kind, anywhere.text, anywhere.answer))
    colors = Counter(shape.color for shape in scene.shapes)
    for shape in scene.shapes:
        if colors[shape.color] == 1:
            asked.append(("aid", f"What shape is {shape.color}?", shape.kind))
    other = ask_color(scene, rng)
    if other is not None:
        asked.append((other.kind, other.text, other.answer))
    return asked


def buckets(rows: list[Row], count: int = 4) -> list[list[Row]]:
    """The rows in a few groups of like length, so that little is padding."""
    ordered = sorted(rows, key=len)
    size = -(-len(ordered) // count)
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


class Trainer(ABC, Generic[P]):
    """Model, probe, optimizer and progress; resumes from ``work`` where an earlier run stopped."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerFast

    def __init__(self, model: nn.Module, probe: nn.Module, settings: Settings, work: Path) -> None:
        self.settings = settings
        self.work = work
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = model.to(self.device).train()
        self.probe = probe.to(self.device)
        parameters = [*self.model.parameters(), *self.probe.parameters()]
        self.optimizer = torch.optim.AdamW(
            parameters,
            settings.learning_rate,
            betas=(0.9, 0.98),
            weight_decay=settings.weight_decay,
        )
        self.seconds = 0.0
        self.steps = 0
        self._resume()

    @property
    def progress(self) -> float:
        return self.seconds / (60 * self.settings.minutes)

    @property
    def mix(self) -> tuple[int, int]:
        settings = self.settings
        return settings.first_mix if self.progress < settings.last_part else settings.last_mix

    @abstractmethod
    def pictures(self) -> Iterator[list[P]]:
        """Fresh pictures without end, a batch at a time."""

    @abstractmethod
    def loss(self, pictures: list[P], rng: random.Random) -> tuple[Tensor, list[tuple[str, bool]]]:
        """The loss of a step, and (kind, whether its answer was right) of every segment."""

    @abstractmethod
    def write(self, out: Path) -> None:
        """Writes the checkpoint."""

    def step(self, pictures: list[P], rng: random.Random) -> tuple[float, list[tuple[str, bool]]]:
        """One update; the loss, and which segments were exact before it."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * _schedule(
                self.progress, self.settings.warmup
            )
        loss, exact = self.loss(pictures, rng)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.steps += 1
        return loss.item(), exact

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


def _schedule(progress: float, warmup: float) -> float:
    """A short linear warm-up, then linear down to nothing."""
    if progress < warmup:
        return max(0.02, progress / warmup)
    return max(0.005, (1 - progress) / (1 - warmup))


def train(trainer: Trainer[Any], out: Path) -> None:
    """Trains for ``settings.minutes`` and writes the checkpoint to ``out``.

    The time is that of torch's threads, so that other work on the machine takes none of it.
    """
    settings = trainer.settings
    rng = random.Random(settings.seed + trainer.steps)
    pool: Pool[Any] = Pool(trainer.pictures(), settings.pool)
    recent: dict[str, deque[bool]] = defaultdict(lambda: deque(maxlen=2000))
    saved = reported = time.monotonic()
    before = trainer.seconds - time.process_time() / torch.get_num_threads()
    while trainer.progress < 1:
        loss, exact = trainer.step(
            pool.draw(settings.images_per_step, settings.fresh_per_step, rng), rng
        )
        for kind, right in exact:
            recent[kind].append(right)
        now = time.monotonic()
        trainer.seconds = before + time.process_time() / torch.get_num_threads()
        if now - reported > 30:
            reported = now
            rates = {
                kind: round(100 * sum(hits) / len(hits), 1) for kind, hits in sorted(recent.items())
            }
            print(
                f"{trainer.seconds / 60:5.1f} min, step {trainer.steps}, loss {loss:.4f} {json.dumps(rates)}",
                flush=True,
            )
        if now - saved > 180:
            saved = now
            trainer.save()
    trainer.save()
    trainer.write(out)
