"""Training of pocket models, common to all families: the questions about a scene, and the loop.

The recipe is the same on a CPU and on a GPU:

- A worker process draws scenes endlessly into a pool. Every picture is used several times, with
  different questions.
- Every picture is encoded once per step and asked many questions in one packed row
  (:mod:`training.rows`). Rows with other orders of text and picture share no work. They come in the
  last phase, when the rest is learned.
- A linear probe classifies the content of each image token. Its loss teaches the vision encoder in
  minutes what captions alone teach in an hour. The probe is not part of the checkpoint.
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
from typing import Any, Generic, NamedTuple, TypeVar

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

CAPTION_PROMPTS = {
    "short": "Caption this image in one short sentence.",
    "normal": "Describe this image.",
    "long": "Describe this image in detail.",
}
P = TypeVar("P")
"""A family's training picture."""


@dataclass(frozen=True)
class TrainingSettings:
    minutes: float = 88.0
    """Training time."""
    images_per_step: int = 48
    """Pictures encoded in every step. The two mixes set how many rows are built from them."""
    fresh_per_step: int = 16
    """Minimum number of new pictures per step."""
    text_questions: int = 10
    """Captions and questions with answers in words, per packed row."""
    json_rounds: int = 3
    """Times that a packed row asks for each kind of JSON: a query, fields and a list."""
    first_mix: tuple[int, int] = (48, 32)
    """Rows per step in the first phase, in which the model learns to see: packed rows with the
    picture first, and rows with other orders of text and picture."""
    last_mix: tuple[int, int] = (16, 128)
    """The same for the last phase."""
    last_phase_start: float = 0.65
    """Progress, from 0 to 1, at which the last phase begins."""
    learning_rate: float = 1.5e-3
    warmup: float = 0.02
    """Progress, from 0 to 1, at which the warm-up ends."""
    weight_decay: float = 0.02
    pool_size: int = 24_000
    """Pictures in the pool."""
    max_side: int = 640
    """Maximum side of most scenes, in pixels."""
    seed: int = 0


class Example(NamedTuple):
    """A question about a scene and its exact answer."""

    task: str
    """Task name for progress reports."""
    question: str
    answer: str


def build_examples(scene: Scene, rng: random.Random) -> list[Example]:
    """Return training examples about a scene.

    They are the rows of the benchmark's table, auxiliary questions, and a caption request in
    other words.
    """
    result = [
        Example(f"caption {length}", CAPTION_PROMPTS[length], scene.caption(length))
        for length in LENGTHS
    ]
    result += [
        Example(question.category, question.text, question.answer)
        for question in questions(scene, rng)
    ]
    result += build_auxiliary_examples(scene, rng)
    length = rng.choice(LENGTHS)
    result.append(Example("phrasing", caption_request(length, rng), scene.caption(length)))
    return result


def build_auxiliary_examples(scene: Scene, rng: random.Random) -> list[Example]:
    """Return questions outside the benchmark's table that need the same lookups.

    They ask for a shape by its color and for a color by its cell. Finding an image token by its
    content is the last skill that the model learns. More such questions, and presence questions
    with both answers, teach it earlier.
    """
    result = []
    for is_present in (True, False):
        presence = ask_presence(scene, rng, is_present)
        result.append(Example("presence", presence.text, presence.answer))
    cell = rng.choice([shape.cell for shape in scene.shapes])
    color = next(shape.color for shape in scene.shapes if shape.cell == cell)
    result.append(Example("aid", f"What color is at the {CELLS[cell]}?", color))
    any_cell = ask_shape(scene, rng, rng.randrange(9))
    result.append(Example(any_cell.category, any_cell.text, any_cell.answer))
    colors = Counter(shape.color for shape in scene.shapes)
    for shape in scene.shapes:
        if colors[shape.color] == 1:
            result.append(Example("aid", f"What shape is {shape.color}?", shape.kind))
    color_question = ask_color(scene, rng)
    if color_question is not None:
        result.append(Example(color_question.category, color_question.text, color_question.answer))
    return result


def group_by_length(rows: list[Row], count: int = 4) -> list[list[Row]]:
    """Return the rows in ``count`` groups of similar length, which keeps padding small."""
    ordered = sorted(rows, key=len)
    size = -(-len(ordered) // count)
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


class Trainer(ABC, Generic[P]):
    """Model, probe, optimizer and progress. Resumes an earlier run from ``work``."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerFast

    def __init__(
        self, model: nn.Module, probe: nn.Module, settings: TrainingSettings, work: Path
    ) -> None:
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
        """Share of the training time that has passed, from 0 to 1."""
        return self.seconds / (60 * self.settings.minutes)

    @property
    def mix(self) -> tuple[int, int]:
        """Rows per step in the current phase: packed rows, and rows with other orders."""
        settings = self.settings
        is_first_phase = self.progress < settings.last_phase_start
        return settings.first_mix if is_first_phase else settings.last_mix

    @abstractmethod
    def start_from(self, folder: Path) -> None:
        """Copy the weights of an earlier checkpoint."""

    @abstractmethod
    def pictures(self) -> Iterator[list[P]]:
        """Yield batches of fresh pictures endlessly."""

    @abstractmethod
    def loss(self, pictures: list[P], rng: random.Random) -> tuple[Tensor, list[tuple[str, bool]]]:
        """Return the loss of a step, and (task, whether the answer was right) of every segment."""

    @abstractmethod
    def write(self, out: Path) -> None:
        """Write the checkpoint to ``out``."""

    def step(self, pictures: list[P], rng: random.Random) -> tuple[float, list[tuple[str, bool]]]:
        """Update the weights once.

        Returns the loss, and (task, whether the answer was right) of every segment. Both are from
        before the update.
        """
        factor = _learning_rate_factor(self.progress, self.settings.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * factor
        loss, exact = self.loss(pictures, rng)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.steps += 1
        return loss.item(), exact

    def save(self) -> None:
        """Save the progress to ``work``, replacing the old file atomically."""
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
        self.seconds = state["seconds"]
        self.steps = state["steps"]
        print(f"resumed at step {self.steps}, {self.seconds / 60:.1f} minutes", flush=True)


def _learning_rate_factor(progress: float, warmup: float) -> float:
    """Return the factor of a short linear warm-up followed by a linear decay."""
    if progress < warmup:
        return max(0.02, progress / warmup)
    return max(0.005, (1 - progress) / (1 - warmup))


def train(trainer: Trainer[Any], out: Path) -> None:
    """Train for ``settings.minutes`` and write the checkpoint to ``out``.

    The time is CPU time divided by torch's threads, so other load on the machine does not shorten
    the training.
    """
    settings = trainer.settings
    rng = random.Random(settings.seed + trainer.steps)
    pool: Pool[Any] = Pool(trainer.pictures(), settings.pool_size)
    recent: dict[str, deque[bool]] = defaultdict(lambda: deque(maxlen=2000))
    last_save = last_report = time.monotonic()
    start = trainer.seconds - time.process_time() / torch.get_num_threads()
    while trainer.progress < 1:
        pictures = pool.sample(settings.images_per_step, settings.fresh_per_step, rng)
        loss, exact = trainer.step(pictures, rng)
        for task, is_right in exact:
            recent[task].append(is_right)
        now = time.monotonic()
        trainer.seconds = start + time.process_time() / torch.get_num_threads()
        if now - last_report > 30:
            last_report = now
            _report(trainer, loss, recent)
        if now - last_save > 180:
            last_save = now
            trainer.save()
    trainer.save()
    trainer.write(out)


def _report(trainer: Trainer[Any], loss: float, recent: dict[str, deque[bool]]) -> None:
    """Print the time, the step, the loss and the percentage of recent right answers per task."""
    rates = {task: round(100 * sum(hits) / len(hits), 1) for task, hits in sorted(recent.items())}
    minutes = trainer.seconds / 60
    print(
        f"{minutes:5.1f} min, step {trainer.steps}, loss {loss:.4f} {json.dumps(rates)}",
        flush=True,
    )
