"""The questions, the scenes that they are about, and the answers that a scene makes right."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np
from numpy.typing import NDArray

from models.pocket.drawing import draw
from models.pocket.scenes import Scene, Shape
from raylens.core.types import Caption, Detect, Findings, Point, Query, Task

SCENES = (
    Scene(
        480,
        360,
        128,
        (
            Shape("circle", "red", 0, 80, 60, 44, (220, 40, 40)),
            Shape("square", "blue", 4, 240, 180, 40, (50, 80, 220)),
            Shape("triangle", "yellow", 8, 400, 300, 42, (235, 210, 50)),
        ),
    ),
    Scene(300, 500, 140, (Shape("circle", "green", 1, 150, 85, 40, (40, 170, 60)),)),
)
MIN_IOU = 0.5
"""Intersection over union from which two boxes count as the same."""


@dataclass(frozen=True)
class Question:
    """A task about ``SCENES[scene]``. A right answer contains one of ``keywords``."""

    task: Task
    scene: int
    keywords: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        match self.task:
            case Query(question):
                return question
            case Detect(subject) | Point(subject):
                return f"{self.task.name} {subject}"
        return self.task.name

    def picture(self) -> NDArray[np.uint8]:
        """Draw the scene: RGB pixels (height, width, 3)."""
        return draw(SCENES[self.scene], random.Random(self.scene))

    def is_right(self, answer: str, findings: Findings) -> bool | None:
        """Whether the answer fits the scene; None if the scene doesn't tell."""
        scene = SCENES[self.scene]
        match self.task:
            case Detect(subject):
                return _has_the_boxes(scene.boxes(subject), findings)
            case Point(subject):
                return _has_the_points(scene.boxes(subject), findings)
        if not self.keywords:
            return None
        return any(keyword in answer for keyword in self.keywords)


QUESTIONS = (
    Question(Caption(), 0),
    Question(Caption(), 1),
    Question(Query("What color is the circle?"), 0, ("red",)),
    Question(Query("What color is the circle?"), 1, ("green",)),
    Question(Query("How many shapes are there?"), 0, ("3", "three", "Three")),
    Question(Detect("circle"), 0),
    Question(Detect("shape"), 0),
    Question(Point("square"), 0),
)


def normalize_text(text: str) -> str:
    """Return text in the form in which answers are compared and shown: words of printable
    characters, separated by single spaces."""
    printable = (character if character.isprintable() else " " for character in text)
    return " ".join("".join(printable).split())


def format_findings(findings: Findings) -> str | None:
    """Return boxes or points as text; None if there are neither."""
    if findings.regions is not None:
        return format_numbers([astuple(region) for region in findings.regions])
    if findings.locations is not None:
        return format_numbers([astuple(location) for location in findings.locations])
    return None


def format_numbers(rows: Sequence[Sequence[float]]) -> str:
    return " ".join(f"[{' '.join(f'{number:.2f}' for number in row)}]" for row in rows)


def _has_the_boxes(boxes: Sequence[Sequence[float]], findings: Findings) -> bool:
    regions = [astuple(region) for region in findings.regions or ()]
    matches = sum(any(_iou(box, region) >= MIN_IOU for region in regions) for box in boxes)
    return matches == len(boxes) == len(regions)


def _has_the_points(boxes: Sequence[Sequence[float]], findings: Findings) -> bool:
    points = findings.locations or ()
    hits = [
        any(x_min <= point.x <= x_max and y_min <= point.y <= y_max for point in points)
        for x_min, y_min, x_max, y_max in boxes
    ]
    return all(hits) and len(points) == len(boxes)


def _iou(a: Sequence[float], b: Sequence[float]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    intersection = width * height
    area_a = (a[2] - a[0]) * (a[3] - a[1])
    area_b = (b[2] - b[0]) * (b[3] - b[1])
    return intersection / (area_a + area_b - intersection)
