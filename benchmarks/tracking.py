"""Measure how well the tracker follows drawn videos, and what it costs.

``python -m benchmarks.tracking`` prints two tables:

- *following*: IoU with the truth on every frame, by the interval between results and their delay in
  frames; the baseline is the last result, shown where it was;
- *cost*: milliseconds of CPU time a frame and a result, in one thread, by the size of the picture
  and the number of boxes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import fmean, median, quantiles

import cv2

from models.pocket.scenes import COLORS, KINDS
from raylens.core.types import Region
from raylens.realtime.tracking.tracker import Tracker
from testing.moving_shapes import (
    Ground,
    MovingShape,
    Pixels,
    Place,
    ShapeVideo,
    to_and_fro,
)
from testing.shape_videos import FRAMES, VIDEOS
from testing.tracking import Model, RecordedVideo, play

INTERVALS = (1, 5, 10, 30)
DELAYS = (0, 3, 10)
SIZES = ((640, 480), (1920, 1080), (3840, 2160))
BOX_COUNTS = (1, 10)
COST_FRAMES = 100
INTERVAL, DELAY = 10, 9
"""At 30 frames a second, a model that needs 300 ms."""


def follow(jitter: float) -> None:
    """Print IoU by video, interval and delay."""
    print(f"\nIoU with the truth; edges of boxes are off by up to {jitter:.0%} of their sides\n")
    header = " | ".join(f"delay {delay}: fixed      followed   " for delay in DELAYS)
    print(f"{'video':32} {'interval':8} | {header}")
    print(f"{'':41} | " + " | ".join("         mean worst mean worst" for _ in DELAYS))
    for name, video in VIDEOS.items():
        recorded = RecordedVideo(video, FRAMES)
        for interval in INTERVALS:
            cells = [_cell(recorded, interval, delay, jitter) for delay in DELAYS]
            print(f"{name:32} {interval:8} | " + " | ".join(cells), flush=True)


def _cell(video: RecordedVideo, interval: int, delay: int, jitter: float) -> str:
    score = play(video, FRAMES, interval, delay, Model(jitter))
    note = "swapped" if score.has_swapped else f"+{score.renumbered}" if score.renumbered else ""
    fixed = f"{fmean(score.fixed):.2f} {min(score.fixed):5.2f}"
    return f"{note:8} {fixed} {fmean(score.followed):.2f} {min(score.followed):5.2f}"


@dataclass(frozen=True)
class Clip:
    """Frames in memory, played to and fro."""

    frames: list[Pixels]
    boxes: list[list[Region]]

    def index(self, number: int) -> int:
        phase = number % (2 * len(self.frames) - 2)
        return min(phase, 2 * len(self.frames) - 2 - phase)


def measure_cost() -> None:
    """Print what a frame and a result cost."""
    cv2.setNumThreads(1)
    print("\nms of CPU time in one thread: median, 95th percentile\n")
    print(f"{'size':10} {'boxes':5} {'ground':8} | {'a frame':12} | a result, {DELAY} frames late")
    for width, height in SIZES:
        for count in BOX_COUNTS:
            for contrast in (0, 50):
                clip = _make_clip(width, height, count, contrast)
                frame_ms, result_ms = _play_clip(clip)
                ground = "textured" if contrast else "flat"
                print(
                    f"{width}×{height:<5} {count:5} {ground:8} | "
                    f"{_summary(frame_ms)} | {_summary(result_ms)}",
                    flush=True,
                )


def _make_clip(width: int, height: int, count: int, contrast: int) -> Clip:
    shapes = {}
    for index in range(count):
        x, y = 0.1 + 0.18 * (index % 5), (0.15 + 0.5 * (index // 5)) * height / width
        path = to_and_fro(Place(x, y, 0.05), Place(x + 0.06, y + 0.05, 0.055), 12)
        kind, color = KINDS[index % len(KINDS)], list(COLORS)[index % len(COLORS)]
        shapes[str(index)] = MovingShape(kind, color, path, bool(contrast))
    video = ShapeVideo(shapes, Ground(contrast=contrast), width, height)
    numbers = range(12)
    frames = [video.draw(number) for number in numbers]
    return Clip(frames, [list(video.boxes(number).values()) for number in numbers])


def _play_clip(clip: Clip) -> tuple[list[float], list[float]]:
    tracker = Tracker()
    frame_ms, result_ms = list[float](), list[float]()
    for number in range(COST_FRAMES):
        pixels = clip.frames[clip.index(number)]
        cost = _time(partial(tracker.add, number, pixels))
        if tracker.shown().regions:
            frame_ms.append(cost)
        seen = number - DELAY
        if seen >= 0 and seen % INTERVAL == 0:
            boxes = clip.boxes[clip.index(seen)]
            result_ms.append(_time(partial(tracker.observe, seen, boxes, [])))
    return frame_ms, result_ms


def _time(work: Callable[[], object]) -> float:
    start = time.thread_time()
    work()
    return (time.thread_time() - start) * 1e3


def _summary(values: list[float]) -> str:
    return f"{median(values):5.2f} {quantiles(values, n=20)[-1]:5.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("following", "cost"))
    parser.add_argument("--jitter", type=float, default=0.0, help="error of boxes, of their sides")
    arguments = parser.parse_args()
    if arguments.only != "cost":
        follow(arguments.jitter)
    if arguments.only != "following":
        measure_cost()


if __name__ == "__main__":
    main()
