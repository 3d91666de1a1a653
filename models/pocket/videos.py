"""Videos of scenes, and exact answers about them.

In a video, one to three shapes appear and stay, and at most one of them moves in a straight line
from its cell to a free one.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

from models.pocket.scenes import Question, Scene, Shape, random_scene

MAX_SIDE = 320
SECONDS_RANGE = (2.0, 6.0)
MIN_GAP_S = 0.6
"""Least time between the appearances of two shapes."""
STILL_S = 0.6
"""Time at the end in which nothing happens."""


@dataclass(frozen=True)
class Track:
    """A shape over time, in seconds from the start of the video."""

    shape: Shape
    """At its first place."""
    appears_at: float
    target: Shape | None = None
    """At its last place, if it moves."""
    moves_at: float = 0.0
    stops_at: float = 0.0

    @property
    def last(self) -> Shape:
        return self.target or self.shape

    def at(self, second: float) -> Shape | None:
        """Return the shape at a time; None before it appears."""
        if second < self.appears_at:
            return None
        if self.target is None or second <= self.moves_at:
            return self.shape
        share = min(1.0, (second - self.moves_at) / (self.stops_at - self.moves_at))
        return replace(
            self.target,
            x=self.shape.x + share * (self.target.x - self.shape.x),
            y=self.shape.y + share * (self.target.y - self.shape.y),
        )


@dataclass(frozen=True)
class VideoScene:
    """The ground truth of a video."""

    canvas: Scene
    """Its size and background; the shapes are those of ``tracks``."""
    seconds: float
    tracks: tuple[Track, ...]

    def at(self, second: float) -> Scene:
        """Return the scene at a time. It may be empty."""
        shapes = [shape for track in self.tracks if (shape := track.at(second)) is not None]
        return replace(self.canvas, shapes=tuple(sorted(shapes, key=lambda shape: shape.cell)))

    @property
    def last(self) -> Scene:
        return self.at(self.seconds)

    def questions(self) -> Iterator[Question]:
        """Yield the questions that have one answer.

        ``first`` is left out if two shapes are there from the start.
        """
        yield Question("describe", "Describe the video.", self.last.caption())
        count = len(self.tracks)
        yield Question("end", "How many shapes are there at the end?", str(count))
        moving = [track.shape.name for track in self.tracks if track.target is not None]
        yield Question("moves", "Which shape moves?", moving[0] if moving else "none")
        first, *others = sorted(self.tracks, key=lambda track: track.appears_at)
        if not others or others[0].appears_at - first.appears_at >= MIN_GAP_S:
            yield Question("first", "Which shape appears first?", first.shape.name)


def random_video(rng: random.Random) -> VideoScene:
    """Return a random video scene."""
    while True:
        canvas = random_scene(rng, MAX_SIDE)
        seconds = rng.uniform(*SECONDS_RANGE)
        times = _appearances(rng, len(canvas.shapes), seconds - STILL_S)
        if times is not None:
            break
    tracks = [Track(shape, time) for shape, time in zip(canvas.shapes, times, strict=True)]
    if rng.random() < 0.6:
        index = rng.randrange(len(tracks))
        tracks[index] = _move(rng, tracks[index], canvas, seconds)
    return VideoScene(replace(canvas, shapes=()), seconds, tuple(tracks))


def _appearances(rng: random.Random, count: int, latest: float) -> list[float] | None:
    """Return when each shape appears; None if the times are too close to each other.

    Half of the videos begin with one or more shapes.
    """
    times = [rng.uniform(0, latest) for _ in range(count)]
    if rng.random() < 0.6:
        for index in range(rng.choice((1, 1, 1, count))):
            times[index] = 0.0
    later = sorted({0.0, *times} if 0.0 in times else times)
    if any(after - before < MIN_GAP_S for before, after in pairwise(later)):
        return None
    rng.shuffle(times)
    return times


def _move(rng: random.Random, track: Track, canvas: Scene, seconds: float) -> Track:
    """Return the track with a move to a free cell; unchanged if there is no time for it."""
    last = seconds - STILL_S
    start = rng.uniform(track.appears_at + 0.2, max(track.appears_at + 0.2, last - 0.8))
    stop = rng.uniform(start + 0.6, last)
    if stop - start < 0.6 or stop > last:
        return track
    taken = {shape.cell for shape in canvas.shapes}
    cell = rng.choice([cell for cell in range(9) if cell not in taken])
    shape = track.shape
    # It keeps its place within the cell, where it fits.
    x = shape.x + (cell % 3 - shape.cell % 3) * canvas.width / 3
    y = shape.y + (cell // 3 - shape.cell // 3) * canvas.height / 3
    target = replace(shape, cell=cell, x=x, y=y)
    return Track(shape, track.appears_at, target, start, stop)
