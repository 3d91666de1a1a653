"""Motion of a part of the picture: a shift and a change of size, fitted to points.

Coordinates are pixels, in float32 arrays (n, 2) of x and y.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]

_AGREES = 1.5
"""Largest distance between a point and where a motion leads that it agrees with, in pixels."""
_CLEAR = 0.8
"""If this share of the points agrees, no vote is needed."""
_FAR = 4.0
"""Points that are closer say nothing about a change of size, in pixels."""
_RESIZING = 4.0
"""A motion's score falls by this power of a change of scale."""
_SCALES = (0.2, 5.0)


@dataclass(frozen=True)
class Motion:
    """Maps a point p to ``scale * p + (dx, dy)``."""

    scale: float = 1.0
    dx: float = 0.0
    dy: float = 0.0

    def move(self, points: Floats) -> Floats:
        """Return where points, or the two corners of a box, are after the motion."""
        moved = points.reshape(-1, 2) * np.float32(self.scale)
        moved += np.array((self.dx, self.dy), np.float32)
        return moved.reshape(points.shape)

    def undo(self, points: Floats) -> Floats:
        """Return where points were before the motion."""
        shift = np.array((self.dx, self.dy), np.float32)
        return (points - shift) / np.float32(self.scale)


def fit_motion(before: Floats, after: Floats, usual_scale: float = 1.0) -> tuple[Motion, Mask]:
    """Return the motion of most of the points, and which points agree with it.

    If not almost all agree with the median shift at the usual scale, a vote decides: of the motions
    that each pair of points would give, and the shift that each single one would give, the one that
    most points agree with wins. A change of the scale counts against it: where one side of an
    object slips, shrinking explains that too. The points that agree then decide by least squares.
    There must be at least one point.
    """
    dx, dy = np.median(after - np.float32(usual_scale) * before, axis=0)
    guess = Motion(usual_scale, float(dx), float(dy))
    agrees = _errors(guess, before, after) < _AGREES
    if np.count_nonzero(agrees) < _CLEAR * len(before):
        guess = _best_guess(before, after, usual_scale)
        agrees = _errors(guess, before, after) < _AGREES
    if np.count_nonzero(agrees) < 2:
        return guess, agrees
    motion = _fit_by_squares(before[agrees], after[agrees], guess)
    return motion, _errors(motion, before, after) < _AGREES


def _best_guess(before: Floats, after: Floats, usual_scale: float) -> Motion:
    rows, columns = _pairs(len(before))
    old = np.hypot(*(before[rows] - before[columns]).T)
    new = np.hypot(*(after[rows] - after[columns]).T)
    is_far = old > _FAR
    scales = np.clip(new[is_far] / old[is_far], *_SCALES)
    scales = np.concatenate((scales, np.full(len(before), usual_scale))).astype(np.float32)
    middles = np.concatenate(((before[rows] + before[columns])[is_far] / 2, before))
    new_middles = np.concatenate(((after[rows] + after[columns])[is_far] / 2, after))
    shifts = new_middles - scales[:, None] * middles
    moved = scales[:, None, None] * before + shifts[:, None]
    errors = np.abs(moved - after).max(axis=2)
    scores = np.clip(1 - errors / _AGREES, 0, None).sum(axis=1)
    scores *= np.exp(-_RESIZING * np.abs(np.log(scales / usual_scale)))
    best = int(np.argmax(scores))
    return Motion(float(scales[best]), *(float(value) for value in shifts[best]))


def _errors(motion: Motion, before: Floats, after: Floats) -> Floats:
    errors: Floats = np.abs(motion.move(before) - after).max(axis=1)
    return errors


def _fit_by_squares(before: Floats, after: Floats, guess: Motion) -> Motion:
    center, new_center = before.mean(axis=0), after.mean(axis=0)
    spread = before - center
    size = float((spread * spread).sum())
    scale = guess.scale
    if size > _FAR**2 * len(before):
        scale = float(np.clip((spread * (after - new_center)).sum() / size, *_SCALES))
    return Motion(scale, *(float(value) for value in new_center - scale * center))


@cache
def _pairs(count: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    rows, columns = np.triu_indices(count, 1)
    return rows, columns
