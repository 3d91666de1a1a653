"""Measure how long drawing on a frame takes.

``python -m benchmarks.overlays`` draws ten boxes and a question with its answer on frames of four
sizes, on one core. In the same run it measures what bounds it: a copy of the frame from below, and
from above a layer with alpha, composited by Pillow over the whole frame.

``--sheet FILE`` draws every feature instead, on a light and on a dark frame, for people to look at.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from statistics import median

import cv2
import numpy as np
from PIL import Image

from raylens.core.types import Location, Region
from raylens.realtime.overlay import Overlay, Pixels
from raylens.realtime.pipeline import FrameResult
from raylens.realtime.pipeline import draw as draw_result
from raylens.realtime.settings import MoondreamConfig, MoondreamFeature

SIZES = ((640, 480), (1280, 720), (1920, 1080), (3840, 2160))
REPEATS = 40
QUESTION = "What is in this picture?"
ANSWER = "A dog and two people are walking along a street in the rain."
DISCS = 14
LONG = (
    "Zwei Kinder in gelben Regenjacken laufen über eine nasse Straße, während hinter ihnen ein"
    " roter Bus hält. 二人の子供が雨の中を走っています。 Дети бегут под дождём."
)
BOXES = (
    Region(0.05, 0.25, 0.3, 0.7),
    Region(0.35, 0.02, 0.5, 0.4),
    Region(0.42, 0.15, 0.58, 0.5),
    Region(0.7, 0.1, 0.99, 0.75),
    Region(0.6, 0.55, 0.64, 0.6),
)
POINTS = (Location(0.1, 0.3), Location(0.5, 0.5), Location(0.52, 0.52), Location(0.98, 0.03))
SHOWN = (
    (FrameResult(LONG), MoondreamConfig(feature=MoondreamFeature.CAPTION)),
    (FrameResult(ANSWER), MoondreamConfig(feature=MoondreamFeature.QUERY, question=QUESTION)),
    (FrameResult(regions=BOXES, region_numbers=(1, 2, 3, 12, 104)), MoondreamConfig()),
    (FrameResult(locations=POINTS), MoondreamConfig(feature=MoondreamFeature.POINT)),
)
"""Results of each feature."""


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


def shapes(ground: int, darkest: int, brightest: int, width: int, height: int) -> Pixels:
    """Return a frame with discs of random colors."""
    rng = np.random.default_rng(1)
    frame = np.full((height, width, 3), ground, np.uint8)
    for _ in range(DISCS):
        center = int(rng.integers(width)), int(rng.integers(height))
        color = [int(value) for value in rng.integers(darkest, brightest, 3)]
        radius = int(rng.integers(height // 12, height // 4))
        cv2.circle(frame, center, radius, color, -1, cv2.LINE_AA)
    return frame


def draw_sheet(width: int, height: int) -> Pixels:
    """Return all features side by side, above on light frames and below on dark ones."""
    grounds = (235, 150, 256), (18, 0, 90)
    rows = []
    for levels in grounds:
        frame = shapes(*levels, width, height)
        rows.append([draw_result(frame, result, settings) for result, settings in SHOWN])
    sheet: Pixels = np.concatenate([np.concatenate(row, axis=1) for row in rows])
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--height", type=int, default=240, help="of each frame of the sheet")
    options = parser.parse_args()
    if options.sheet is not None:
        sheet = draw_sheet(options.height * 4 // 3, options.height)
        Image.fromarray(sheet).quantize(128).save(options.sheet, optimize=True)
        return
    cv2.setNumThreads(1)
    for number, (width, height) in enumerate(SIZES):
        times = measure_size(width, height)
        if number == 0:
            print("ms of CPU     " + "".join(f"{name:>16}" for name in times))
        print(f"{f'{width}×{height}':14}" + "".join(f"{ms:16.2f}" for ms in times.values()))


if __name__ == "__main__":
    main()
