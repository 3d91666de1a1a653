"""How well a tracker follows a drawn video, whose boxes are known."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from raylens.core.types import Region
from raylens.realtime.tracking.tracker import Tracker
from testing.moving_shapes import Pixels

_SAME = 0.2
"""A box and an object with at least this IoU are the same for counting numbers."""


class Video(Protocol):
    """As :class:`testing.moving_shapes.ShapeVideo` is."""

    def draw(self, number: int) -> Pixels: ...
    def boxes(self, number: int, min_visible: float = 0.5) -> dict[str, Region]: ...


class RecordedVideo:
    """A video that is drawn once, and played often."""

    def __init__(self, video: Video, frame_count: int) -> None:
        self._frames = [video.draw(number) for number in range(frame_count)]
        self._boxes = {
            (number, min_visible): video.boxes(number, min_visible)
            for number in range(frame_count)
            for min_visible in (0.0, 0.5)
        }

    def draw(self, number: int) -> Pixels:
        return self._frames[number]

    def boxes(self, number: int, min_visible: float = 0.5) -> dict[str, Region]:
        return self._boxes[number, min_visible]


@dataclass
class Model:
    """Gives the true boxes of a frame. ``jitter`` is the largest error of an edge, as a share of
    the box's side. ``misses`` are numbers of results that contain nothing, by name."""

    jitter: float = 0.0
    misses: Mapping[str, frozenset[int]] = field(default_factory=dict)

    def look(self, video: Video, frame: int, result: int) -> dict[str, Region]:
        boxes = {
            name: _shake(box, self.jitter, random.Random(f"{frame} {name}"))
            for name, box in video.boxes(frame).items()
            if result not in self.misses.get(name, ())
        }
        names = list(boxes)
        random.Random(frame).shuffle(names)  # a model's order says nothing
        return {name: boxes[name] for name in names}


@dataclass
class Score:
    """IoU with the truth, of each object on each frame since it was in a result.

    ``fixed`` is the same if the last result is shown where it was.
    """

    followed: list[float] = field(default_factory=list)
    fixed: list[float] = field(default_factory=list)
    numbers: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    worst_at: tuple[int, str] = (0, "")

    @property
    def has_swapped(self) -> bool:
        """Whether a number was given to two objects."""
        all_numbers = [number for numbers in self.numbers.values() for number in numbers]
        return len(set(all_numbers)) < len(all_numbers)

    @property
    def renumbered(self) -> int:
        """How often an object got another number."""
        return sum(len(numbers) - 1 for numbers in self.numbers.values())


def play(
    video: Video,
    frame_count: int,
    interval: int,
    delay: int,
    model: Model | None = None,
    tracker: Tracker | None = None,
) -> Score:
    """Show a video, in which every ``interval``-th frame has a result, ``delay`` frames later."""
    tracker = tracker or Tracker()
    model = model or Model()
    score = Score()
    last: dict[str, Region] = {}
    for number in range(frame_count):
        tracker.add(number, video.draw(number))
        seen = number - delay
        if seen >= 0 and seen % interval == 0:
            last = model.look(video, seen, seen // interval)
            tracker.observe(seen, list(last.values()), [])
        _rate(score, video, tracker, number, last)
    return score


def _rate(
    score: Score, video: Video, tracker: Tracker, number: int, last: Mapping[str, Region]
) -> None:
    truth = video.boxes(number)
    shown = tracker.shown()
    for name in truth.keys() & last.keys():
        ious = [overlap(truth[name], region) for region in shown.regions]
        best = max(ious, default=0.0)
        if best < min(score.followed, default=1.0):
            score.worst_at = number, name
        score.followed.append(best)
        score.fixed.append(overlap(truth[name], last[name]))
    everything = video.boxes(number, 0.0)
    for region, identity in zip(shown.regions, shown.region_numbers, strict=True):
        ious_by_name = sorted(((overlap(box, region), name) for name, box in everything.items()))
        # Where two objects are at the same place, nobody can say whose box it is.
        is_clear = len(ious_by_name) == 1 or (
            ious_by_name and ious_by_name[-2][0] < ious_by_name[-1][0] / 3
        )
        if is_clear and ious_by_name[-1][0] >= _SAME:
            score.numbers[ious_by_name[-1][1]].add(identity)


def overlap(box: Region, other: Region) -> float:
    """Return the IoU of two boxes."""
    width = min(box.x_max, other.x_max) - max(box.x_min, other.x_min)
    height = min(box.y_max, other.y_max) - max(box.y_min, other.y_min)
    shared = max(0.0, width) * max(0.0, height)
    union = _area(box) + _area(other) - shared
    return shared / union if union > 0 else 0.0


def _area(box: Region) -> float:
    return (box.x_max - box.x_min) * (box.y_max - box.y_min)


def _shake(box: Region, jitter: float, rng: random.Random) -> Region:
    width, height = box.x_max - box.x_min, box.y_max - box.y_min
    x_min, x_max = (edge + rng.uniform(-jitter, jitter) * width for edge in (box.x_min, box.x_max))
    y_min, y_max = (edge + rng.uniform(-jitter, jitter) * height for edge in (box.y_min, box.y_max))
    return Region(max(0.0, x_min), max(0.0, y_min), min(1.0, x_max), min(1.0, y_max))
