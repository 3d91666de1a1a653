"""Boxes and points of the pocket models: what is asked about a scene, and how right the answers
are.

Each question comes about a plain picture, about one that EXIF turns, about one with letterbox bars
that smart crop takes off, and about one that preprocessing brings to another size or shape. Answers
are in the coordinates of the picture as it is stored, and so is what they are compared with.
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

Box = tuple[float, float, float, float]
"""(x_min, y_min, x_max, y_max), normalized to [0, 1]."""
Point = tuple[float, float]
Turn = Image.Transpose

NAMES = [f"{color} {kind}" for color in COLORS for kind in KINDS]
TASKS = ("detect", "point")
ORIENTATION_TAG = 0x0112
TURNED: dict[int, tuple[Turn, Callable[[float, float], Point]]] = {
    2: (Turn.FLIP_LEFT_RIGHT, lambda x, y: (1 - x, y)),
    3: (Turn.ROTATE_180, lambda x, y: (1 - x, 1 - y)),
    4: (Turn.FLIP_TOP_BOTTOM, lambda x, y: (x, 1 - y)),
    5: (Turn.TRANSPOSE, lambda x, y: (y, x)),
    6: (Turn.ROTATE_90, lambda x, y: (y, 1 - x)),
    7: (Turn.TRANSVERSE, lambda x, y: (1 - y, 1 - x)),
    8: (Turn.ROTATE_270, lambda x, y: (1 - y, x)),
}
"""How an upright picture is stored so that the orientation (EXIF 2.32, tag 0x0112) brings it back,
and where its points then lie. Said apart from the server's own table, so that a mistake there
shows."""


@dataclass(frozen=True)
class Goal:
    """What a family's pocket model should reach."""

    iou: float
    """From which on a box is right."""
    f1: float
    """Of boxes."""
    inside: float
    """Of the points that are said, the share that lies inside a shape that was meant, one in each."""
    whole: float = 0.0
    """The share of searches for points in which none is missed and none invented."""


GOALS = {
    "moondream": Goal(iou=0.7, f1=0.95, inside=0.98, whole=0.95),
    "qwen2_5_vl": Goal(0.6, 0.90, 0.95),
}


@dataclass(frozen=True)
class Search:
    """One request: its row in the table, path and body, what there is to find, and that of a scene
    at random."""

    row: str
    path: str
    body: dict[str, Any]
    boxes: tuple[Box, ...]
    blind: tuple[Box, ...]


@dataclass(frozen=True)
class Stored:
    """A picture file as a data URL, what a request says beside it, and where the scene's points lie
    in it."""

    url: str
    more: dict[str, Any]
    place: Callable[[float, float], Point]

    def box(self, box: Box) -> Box:
        (x1, y1), (x2, y2) = self.place(box[0], box[1]), self.place(box[2], box[3])
        return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def searches(scene: Scene, other: Scene, rng: random.Random, model: str) -> Iterator[Search]:
    """A detect and a point about each kind of picture; ``other`` is what someone blind would guess
    to see."""
    pixels = draw(scene, rng)
    for name, store in (
        ("plain", plain),
        ("rotated by EXIF", rotated),
        ("smart-cropped", letterboxed),
        ("resized", resized),
    ):
        stored = store(pixels, rng)
        for task in TASKS:
            subject = random_subject(scene, rng)
            body = {"model": model, "image_url": stored.url, "object": subject, **stored.more}
            boxes, blind = (tuple(map(stored.box, seen.boxes(subject))) for seen in (scene, other))
            yield Search(f"{task}, {name}", f"/v1/{task}", body, boxes, blind)


def random_subject(scene: Scene, rng: random.Random) -> str:
    """``red circle``, ``circle`` or ``shape``; a fourth of them name something that is not there."""
    kind = rng.choice(("name", "kind", "shape", "absent"))
    if kind == "shape":
        return "shape"
    if kind == "absent":
        kinds = [name for name in KINDS if not scene.boxes(name)]
        names = [name for name in NAMES if not scene.boxes(name)]
        return rng.choice(kinds if kinds and rng.random() < 0.3 else names)
    shape = rng.choice(scene.shapes)
    return shape.name if kind == "name" else shape.kind


def plain(pixels: Pixels, rng: random.Random) -> Stored:
    """The picture as it is."""
    return Stored(_data_url(Image.fromarray(pixels), rng), {}, lambda x, y: (x, y))


def rotated(pixels: Pixels, rng: random.Random) -> Stored:
    """Stored in one of the seven other ways, with the tag that turns it upright."""
    orientation = rng.choice(list(TURNED))
    turn, place = TURNED[orientation]
    return Stored(_data_url(Image.fromarray(pixels).transpose(turn), rng, orientation), {}, place)


def letterboxed(pixels: Pixels, rng: random.Random) -> Stored:
    """Between black or white bars, on two opposite sides or on all four."""
    height, width = pixels.shape[:2]
    sides = rng.choice(("two across", "two down", "four"))
    share = rng.uniform(0.05, 0.18) if sides == "four" else rng.uniform(0.05, 0.6)
    across = 0 if sides == "two down" else round(share * width)
    down = 0 if sides == "two across" else round(share * height)
    level = rng.choice((0, 255))
    barred = np.pad(pixels, ((down, down), (across, across), (0, 0)), constant_values=level)

    def place(x: float, y: float) -> Point:
        return (x * width + across) / (width + 2 * across), (y * height + down) / (
            height + 2 * down
        )

    return Stored(_data_url(Image.fromarray(barred), rng), {"recipe": {"smart_crop": True}}, place)


def resized(pixels: Pixels, rng: random.Random) -> Stored:
    """Brought down to fit, or stretched to another shape."""
    side = rng.choice((128, 256, 512))
    size = [side, side] if rng.random() < 0.5 else [side, rng.choice((128, 256, 512))]
    recipe = {
        "size": size,
        "preserve_aspect_ratio": rng.random() < 0.5,
        "min_size": rng.choice((0, 256)),
    }
    return Stored(_data_url(Image.fromarray(pixels), rng), {"recipe": recipe}, lambda x, y: (x, y))


def _data_url(picture: Image.Image, rng: random.Random, orientation: int = 1) -> str:
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    buffer = io.BytesIO()
    kind = "PNG" if rng.random() < 0.35 else "JPEG"
    options: dict[str, Any] = {"quality": rng.randint(70, 98), "subsampling": rng.choice((0, 1, 2))}
    picture.save(buffer, kind, exif=exif, **(options if kind == "JPEG" else {"compress_level": 1}))
    return f"data:{Image.MIME[kind]};base64,{base64.b64encode(buffer.getvalue()).decode()}"


KINDS_OF_PICTURE = {
    "plain": plain,
    "rotated by EXIF": rotated,
    "smart-cropped": letterboxed,
    "resized": resized,
}


@dataclass
class Score:
    """What was to be found, what was said, and how much of that is right."""

    expected: int = 0
    said: int = 0
    right: int = 0
    asked: int = 0
    whole: int = 0
    """Searches in which nothing was missed and nothing invented."""

    def add(self, expected: int, said: int, right: int) -> None:
        self.expected, self.said, self.right = (
            self.expected + expected,
            self.said + said,
            self.right + right,
        )
        self.asked += 1
        self.whole += expected == said == right

    @property
    def f1(self) -> float:
        return 2 * self.right / max(1, self.expected + self.said)

    @property
    def precision(self) -> float:
        return self.right / max(1, self.said)

    @property
    def recall(self) -> float:
        return self.right / max(1, self.expected)

    def reaches(self, goal: Goal, row: str) -> bool:
        if row.startswith("detect"):
            return self.f1 >= goal.f1
        return self.precision >= goal.inside and self.whole >= goal.whole * self.asked


@dataclass
class Places:
    """The scores of all rows, with those of the blind guesses, and examples of what was wrong."""

    goal: Goal
    scores: dict[str, Score] = field(default_factory=dict)
    blind: dict[str, Score] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def add(self, search: Search, reply: dict[str, Any]) -> None:
        is_detect = "objects" in reply
        matches = partial(matched_boxes, least=self.goal.iou) if is_detect else matched_points
        said = [tuple(place.values()) for place in reply["objects" if is_detect else "points"]]
        right = matches(search.boxes, said)
        self.scores.setdefault(search.row, Score()).add(len(search.boxes), len(said), right)
        guess = search.blind if is_detect else tuple(map(center, search.blind))
        guessed = matches(search.boxes, guess)
        self.blind.setdefault(search.row, Score()).add(len(search.boxes), len(guess), guessed)
        if not right == len(said) == len(search.boxes):
            self.wrong.append(
                f"{search.row}: {search.body['object']}: {said} is not {search.boxes}"
            )

    def table(self) -> Iterator[str]:
        yield f"Boxes are right from an IoU of {self.goal.iou:g} on, points inside their shape.\n"
        yield "| row | F1 | precision | recall | none missed or invented | asked | to be found | F1 of a blind guess |"
        yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
        for row, score in sorted(self.scores.items()):
            yield (
                f"| {row} | {score.f1:.3f} | {score.precision:.1%} | {score.recall:.1%} "
                f"| {score.whole / score.asked:.1%} | {score.asked} | {score.expected} | {self.blind[row].f1:.3f} |"
            )

    @property
    def reached(self) -> bool:
        return all(score.reaches(self.goal, row) for row, score in self.scores.items())


def center(box: Box) -> Point:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def matched_boxes(expected: Sequence[Box], said: Sequence[Any], least: float) -> int:
    """How many pairs there are at an IoU of ``least`` or more, the best first, each box in one
    pair."""
    pairs = [(iou(e, s), n, m) for n, e in enumerate(expected) for m, s in enumerate(said)]
    taken: set[int] = set()
    found: set[int] = set()
    for overlap, n, m in sorted(pairs, reverse=True):
        if overlap >= least and n not in found and m not in taken:
            found.add(n)
            taken.add(m)
    return len(found)


def matched_points(expected: Sequence[Box], said: Sequence[Any]) -> int:
    """How many boxes hold a point. Boxes of a scene don't overlap; a second point in one is one too
    many."""
    return sum(any(x1 <= x <= x2 and y1 <= y <= y2 for x, y in said) for x1, y1, x2, y2 in expected)


def iou(a: Box, b: Box) -> float:
    """Intersection over union."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)
