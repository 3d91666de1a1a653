"""Requests to the pocket models for boxes and points, and the scores of the answers.

Each task is asked about a plain picture, about one that EXIF rotates, about one with letterbox bars
that smart crop removes, about one that is rotated *and* has bars, and about one that preprocessing
resizes or stretches. Answers are in the coordinates of the upright picture, and so are the boxes
that they are compared with.
"""

from __future__ import annotations

import base64
import io
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from models.pocket.drawing import Pixels, draw
from models.pocket.scenes import COLORS, KINDS, Scene
from testing.grounding import Box, Point, center, count_matching_boxes, count_matching_points
from testing.pictures import ORIENTATION_TAG, TURNS

NAMES = [f"{color} {kind}" for color in COLORS for kind in KINDS]
TASKS = ("detect", "point")


@dataclass(frozen=True)
class Goal:
    """Target scores of a family's pocket model."""

    min_iou: float
    """Minimum IoU of a correct box."""
    f1: float
    """Minimum F1 of boxes."""
    precision: float
    """Minimum share of the points that lie inside a matching shape; each shape counts one point."""
    exact: float = 0.0
    """Minimum share of point requests with nothing missed and nothing invented."""


GOALS = {
    "moondream": Goal(min_iou=0.7, f1=0.95, precision=0.98, exact=0.95),
    "qwen2_5_vl": Goal(min_iou=0.6, f1=0.90, precision=0.95),
}


@dataclass(frozen=True)
class GroundingTrial:
    """A request for boxes or points, with the expected boxes."""

    row: str
    """Row of the table that counts this trial."""
    path: str
    body: dict[str, Any]
    boxes: tuple[Box, ...]
    blind: tuple[Box, ...]
    """Boxes of the same subject in another random scene: a blind guess."""


@dataclass(frozen=True)
class StoredPicture:
    """A picture file as a data URL, and the map from the scene's coordinates to those of the
    upright picture."""

    url: str
    fields: dict[str, Any]
    """Further fields of the request."""
    map_point: Callable[[float, float], Point]

    def map_box(self, box: Box) -> Box:
        x1, y1 = self.map_point(box[0], box[1])
        x2, y2 = self.map_point(box[2], box[3])
        return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def grounding_trials(
    scene: Scene, other: Scene, rng: random.Random, model: str
) -> Iterator[GroundingTrial]:
    """Yield a detect and a point trial for each way to store the scene's picture.

    ``other`` is the scene of the blind guess.
    """
    pixels = draw(scene, rng)
    for name, store in STORES.items():
        stored = store(pixels, rng)
        for task in TASKS:
            subject = random_subject(scene, rng)
            body = {"model": model, "image_url": stored.url, "object": subject, **stored.fields}
            boxes = tuple(map(stored.map_box, scene.boxes(subject)))
            blind = tuple(map(stored.map_box, other.boxes(subject)))
            yield GroundingTrial(f"{task}, {name}", f"/v1/{task}", body, boxes, blind)


def random_subject(scene: Scene, rng: random.Random) -> str:
    """Return a subject such as ``red circle``, ``circle`` or ``shape``.

    A fourth of the subjects are absent from the scene.
    """
    subject_type = rng.choice(("name", "kind", "shape", "absent"))
    if subject_type == "shape":
        return "shape"
    if subject_type == "absent":
        kinds = [kind for kind in KINDS if not scene.boxes(kind)]
        names = [name for name in NAMES if not scene.boxes(name)]
        return rng.choice(kinds if kinds and rng.random() < 0.3 else names)
    shape = rng.choice(scene.shapes)
    return shape.name if subject_type == "name" else shape.kind


def store_plain(pixels: Pixels, rng: random.Random) -> StoredPicture:
    """Store the picture as it is."""
    return StoredPicture(_data_url(Image.fromarray(pixels), rng), {}, lambda x, y: (x, y))


def store_rotated(pixels: Pixels, rng: random.Random) -> StoredPicture:
    """Store the picture rotated or mirrored, with the EXIF tag that restores it."""
    return StoredPicture(_rotated_url(pixels, rng), {}, lambda x, y: (x, y))


def store_letterboxed(pixels: Pixels, rng: random.Random) -> StoredPicture:
    """Store the picture between black or white bars, on two opposite sides or on all four."""
    barred, map_point = _add_bars(pixels, rng)
    url = _data_url(Image.fromarray(barred), rng)
    return StoredPicture(url, {"recipe": {"smart_crop": True}}, map_point)


def store_rotated_and_letterboxed(pixels: Pixels, rng: random.Random) -> StoredPicture:
    """Store the picture between bars, and rotated or mirrored by EXIF."""
    barred, map_point = _add_bars(pixels, rng)
    return StoredPicture(_rotated_url(barred, rng), {"recipe": {"smart_crop": True}}, map_point)


def _rotated_url(pixels: Pixels, rng: random.Random) -> str:
    orientation = rng.choice(list(TURNS))
    return _data_url(Image.fromarray(pixels).transpose(TURNS[orientation]), rng, orientation)


def _add_bars(pixels: Pixels, rng: random.Random) -> tuple[Pixels, Callable[[float, float], Point]]:
    """Return the picture between bars, and the map of its coordinates to the new ones."""
    height, width = pixels.shape[:2]
    sides = rng.choice(("two across", "two down", "four"))
    share = rng.uniform(0.05, 0.18) if sides == "four" else rng.uniform(0.05, 0.6)
    across = 0 if sides == "two down" else round(share * width)
    down = 0 if sides == "two across" else round(share * height)
    level = rng.choice((0, 255))
    barred = np.pad(pixels, ((down, down), (across, across), (0, 0)), constant_values=level)

    def map_point(x: float, y: float) -> Point:
        return (
            (x * width + across) / (width + 2 * across),
            (y * height + down) / (height + 2 * down),
        )

    return barred, map_point


def store_resized(pixels: Pixels, rng: random.Random) -> StoredPicture:
    """Store the picture as it is, and have preprocessing shrink or stretch it."""
    side = rng.choice((128, 256, 512))
    size = [side, side] if rng.random() < 0.5 else [side, rng.choice((128, 256, 512))]
    recipe = {
        "size": size,
        "preserve_aspect_ratio": rng.random() < 0.5,
        "min_size": rng.choice((0, 256)),
    }
    url = _data_url(Image.fromarray(pixels), rng)
    return StoredPicture(url, {"recipe": recipe}, lambda x, y: (x, y))


def _data_url(picture: Image.Image, rng: random.Random, orientation: int = 1) -> str:
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    buffer = io.BytesIO()
    file_format = "PNG" if rng.random() < 0.35 else "JPEG"
    jpeg_options: dict[str, Any] = {
        "quality": rng.randint(70, 98),
        "subsampling": rng.choice((0, 1, 2)),
    }
    options = jpeg_options if file_format == "JPEG" else {"compress_level": 1}
    picture.save(buffer, file_format, exif=exif, **options)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f"data:{Image.MIME[file_format]};base64,{data}"


STORES = {
    "plain": store_plain,
    "rotated by EXIF": store_rotated,
    "smart-cropped": store_letterboxed,
    "rotated and smart-cropped": store_rotated_and_letterboxed,
    "resized": store_resized,
}
"""Ways to store a picture, by the name in the table."""


@dataclass
class Score:
    """Counts of boxes or points in one row."""

    expected: int = 0
    answered: int = 0
    correct: int = 0
    requests: int = 0
    exact: int = 0
    """Requests with nothing missed and nothing invented."""

    def add(self, expected: int, answered: int, correct: int) -> None:
        """Count one request."""
        self.expected += expected
        self.answered += answered
        self.correct += correct
        self.requests += 1
        self.exact += expected == answered == correct

    @property
    def f1(self) -> float:
        return 2 * self.correct / max(1, self.expected + self.answered)

    @property
    def precision(self) -> float:
        return self.correct / max(1, self.answered)

    @property
    def recall(self) -> float:
        return self.correct / max(1, self.expected)

    def meets(self, goal: Goal, row: str) -> bool:
        if row.startswith("detect"):
            return self.f1 >= goal.f1
        return self.precision >= goal.precision and self.exact >= goal.exact * self.requests


@dataclass
class GroundingScores:
    """Scores of all rows and of the blind guesses, and examples of wrong answers."""

    goal: Goal
    scores: dict[str, Score] = field(default_factory=dict)
    blind: dict[str, Score] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def add(self, trial: GroundingTrial, reply: dict[str, Any]) -> None:
        count_matches: Callable[[Sequence[Box], Sequence[Any]], int]
        if "objects" in reply:
            count_matches = partial(count_matching_boxes, min_iou=self.goal.min_iou)
            answers = [tuple(box.values()) for box in reply["objects"]]
            guesses: tuple[Any, ...] = trial.blind
        else:
            count_matches = count_matching_points
            answers = [tuple(point.values()) for point in reply["points"]]
            guesses = tuple(map(center, trial.blind))
        expected = len(trial.boxes)
        correct = count_matches(trial.boxes, answers)
        score = self.scores.setdefault(trial.row, Score())
        score.add(expected, len(answers), correct)
        blind = self.blind.setdefault(trial.row, Score())
        blind.add(expected, len(guesses), count_matches(trial.boxes, guesses))
        if not correct == len(answers) == expected:
            subject = trial.body["object"]
            self.wrong.append(f"{trial.row}: {subject}: got {answers}, expected {trial.boxes}")

    def table(self) -> Iterator[str]:
        yield (
            f"A box is correct at an IoU of {self.goal.min_iou:g} or more,"
            " a point if it lies inside its shape.\n"
        )
        yield (
            "| row | F1 | precision | recall | none missed or invented | requests | objects"
            " | F1 of a blind guess |"
        )
        yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
        for row, score in sorted(self.scores.items()):
            yield (
                f"| {row} | {score.f1:.3f} | {score.precision:.1%} | {score.recall:.1%}"
                f" | {score.exact / score.requests:.1%} | {score.requests} | {score.expected}"
                f" | {self.blind[row].f1:.3f} |"
            )

    @property
    def meets_target(self) -> bool:
        return all(score.meets(self.goal, row) for row, score in self.scores.items())
