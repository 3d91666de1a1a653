"""Measure how long drawing on a frame takes.

``python -m benchmarks.overlays`` draws ten boxes and a question with its answer on frames of four
sizes, on one core. In the same run it measures what bounds it: a copy of the frame from below, and
from above a layer with alpha, composited by Pillow over the whole frame.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from itertools import count
from statistics import median

import cv2
import numpy as np
from PIL import Image

from raylens.core.types import Region
from raylens.realtime.overlay import Overlay, Pixels

SIZES = ((640, 480), (1280, 720), (1920, 1080), (3840, 2160))
REPEATS = 40
QUESTION = "What is in this picture?"
ANSWER = "A dog and two people are walking along a street in the rain."


def random_boxes(rng: random.Random, number: int) -> list[Region]:
    boxes = []
    for _ in range(number):
        x, y = rng.uniform(0, 0.7), rng.uniform(0, 0.7)
        boxes.append(Region(x, y, x + rng.uniform(0.1, 0.3), y + rng.uniform(0.1, 0.3)))
    return boxes


def draw(frame: Pixels, boxes: list[Region], answer: str, in_place: bool) -> Pixels:
    overlay = Overlay(frame, 0.8, 1.0, in_place=in_place)
    overlay.query(QUESTION, answer)
    overlay.boxes(boxes)
    return overlay.render()


def composite(frame: Pixels) -> Pixels:
    picture = Image.fromarray(frame).convert("RGBA")
    layer = Image.new("RGBA", picture.size, (0, 220, 0, 30))
    return np.asarray(Image.alpha_composite(picture, layer).convert("RGB"))


def measure_ms(work: Callable[[], object]) -> float:
    """Return the median of the CPU time."""
    work()
    times = []
    for _ in range(REPEATS):
        started = time.process_time()
        work()
        times.append(time.process_time() - started)
    return median(times) * 1000


def measure_size(width: int, height: int) -> dict[str, float]:
    """Return the milliseconds of each way to draw on frames of one size."""
    rng = random.Random(3)
    boxes, many = random_boxes(rng, 10), random_boxes(rng, 50)
    frame = np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)
    own = frame.copy()
    numbers = count()
    works: dict[str, Callable[[], object]] = {
        "copy alone": frame.copy,
        "drawn": lambda: draw(frame, boxes, ANSWER, False),
        "in place": lambda: draw(own, boxes, ANSWER, True),
        "new text": lambda: draw(frame, boxes, f"{next(numbers)} {ANSWER}", False),
        "50 boxes": lambda: draw(frame, many, ANSWER, False),
        "Pillow's layer": lambda: composite(frame),
    }
    return {name: measure_ms(work) for name, work in works.items()}


def main() -> None:
    cv2.setNumThreads(1)
    for number, (width, height) in enumerate(SIZES):
        times = measure_size(width, height)
        if number == 0:
            print("ms of CPU     " + "".join(f"{name:>16}" for name in times))
        print(f"{f'{width}×{height}':14}" + "".join(f"{ms:16.2f}" for ms in times.values()))


if __name__ == "__main__":
    main()
