"""What an object looked like when the model saw it, to correct drift.

Features on the outline of a plain object slip towards what is behind it. The object as a whole
doesn't.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from raylens.realtime.tracking.flow import Pixels
from raylens.realtime.tracking.motion import Floats

_SIDE = 40
"""Longest side of a template, in its own pixels."""
_SHORTEST = 8
_MARGIN = 0.12
"""A template shows this share of the box's sides around it."""
_REACH = 4
"""Largest correction, in a template's pixels."""
_BETTER = 0.8
"""A correction is made if it leaves less than this share of the difference."""
_ALIKE = 0.35
"""What is found differs by at most this share of the template's own contrast."""
_MIN_BOX = 6
"""Shortest side of a box that gets a template, in pixels."""


@dataclass(frozen=True)
class Template:
    """A box of a frame with a margin, made small."""

    pixels: Pixels

    def correct(self, gray: Pixels, boxes: Sequence[Floats]) -> Floats:
        """Return the best of some boxes, moved onto the object.

        The first one stays as it is if it is almost as good.
        """
        found = [self._find(gray, box) for box in boxes]
        best = min(range(len(boxes)), key=lambda index: found[index].difference)
        if found[best].difference >= _BETTER * found[0].difference_here:
            return boxes[0]
        return boxes[best] + np.tile(found[best].shift, 2)

    def find(self, gray: Pixels, box: Floats) -> Floats | None:
        """Return where the object is, near a box; None if it isn't there."""
        found = self._find(gray, box)
        spread = float(self.pixels.std())
        if found.difference > self.pixels.size * (_ALIKE * spread) ** 2:
            return None
        return box + np.tile(found.shift, 2)

    def _find(self, gray: Pixels, box: Floats) -> _Found:
        """Look for the object around a box, at the box's size."""
        height, width = self.pixels.shape
        around = _sample(gray, box, width, height, _REACH)
        differences = cv2.matchTemplate(around, self.pixels, cv2.TM_SQDIFF)
        row, column = (int(i) for i in np.unravel_index(differences.argmin(), differences.shape))
        x = column + _bottom(differences[row], column) - _REACH
        y = row + _bottom(differences[:, column], row) - _REACH
        shift = np.array((x, y), np.float32) * _pixel_size(box, width, height)
        here = float(differences[_REACH, _REACH])
        return _Found(shift, float(differences[row, column]), here)


@dataclass(frozen=True)
class _Found:
    """How far the object is from a box, and the difference there and without the shift."""

    shift: Floats
    difference: float
    difference_here: float


def take_template(gray: Pixels, box: Floats) -> Template | None:
    """Return the template of a box; None if the box is too small."""
    width, height = (float(side) for side in box[2:] - box[:2])
    if min(width, height) < _MIN_BOX:
        return None
    factor = min(1.0, _SIDE / max(width, height))
    columns, rows = (max(_SHORTEST, round(side * factor)) for side in (width, height))
    return Template(_sample(gray, box, columns, rows, 0))


def _sample(gray: Pixels, box: Floats, width: int, height: int, extra: int) -> Pixels:
    """Return a box with its margin as ``width`` × ``height`` pixels, and ``extra`` on each side."""
    pixel = _pixel_size(box, width, height)
    size = pixel * np.array((width + 2 * extra, height + 2 * extra), np.float32)
    corner = (box[:2] + box[2:] - size) / 2 + pixel / 2 - 0.5
    matrix = np.array([[pixel[0], 0, corner[0]], [0, pixel[1], corner[1]]], np.float64)
    sampled: Pixels = cv2.warpAffine(
        gray,
        matrix,
        (width + 2 * extra, height + 2 * extra),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return sampled


def _pixel_size(box: Floats, width: int, height: int) -> Floats:
    """Return width and height of a template's pixel in the picture."""
    size = (box[2:] - box[:2]) * np.float32(1 + 2 * _MARGIN)
    return np.asarray(size / np.array((width, height), np.float32), np.float32)


def _bottom(values: Floats, index: int) -> float:
    """Return how far the parabola through a least value and its neighbors is lowest from it."""
    if not 0 < index < len(values) - 1:
        return 0.0
    before, least, after = (float(value) for value in values[index - 1 : index + 2])
    bend = before - 2 * least + after
    return (before - after) / (2 * bend) if bend > 0 else 0.0
