"""Where labels go: beside what they name, within the frame, and clear of each other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from raylens.realtime.overlay.blending import Rectangle

_LABEL_COST, _MARK_COST = 4, 1
"""What covering a pixel of another label, or of a dot, counts."""
_ROWS = 4
"""Labels that are stacked above, and below, before one covers another."""


class LabelSpace:
    """The labels and dots of one frame."""

    def __init__(self, width: int, height: int) -> None:
        self._width, self._height = width, height
        self._labels: list[Rectangle] = []
        self._marks: list[Rectangle] = []

    def block(self, area: Rectangle) -> None:
        """Keep labels away from an area as from other labels."""
        self._labels.append(area)

    def add_mark(self, area: Rectangle) -> None:
        """Add a dot, which labels cover only if they must."""
        self._marks.append(area)

    def place_beside_box(self, box: Rectangle, width: int, height: int) -> Rectangle:
        """Return a place above a box, or below if it is at the top edge."""
        lefts = (box.left, box.right - width)
        rows = (box.top - height, box.bottom)
        first = max(0, box.top)
        further = [
            top
            for row in range(1, _ROWS)
            for top in (box.top - (row + 1) * height, box.bottom + row * height)
        ]
        places = [(left, top) for top in rows for left in lefts]
        beside = [(left, first) for left in (box.left - width, box.right)]
        inside = [(box.left, first), (box.right - width, first)]
        is_high = box.top < height and box.bottom + height > self._height
        places += inside + beside if is_high else beside + inside
        places += [(left, top) for top in further for left in lefts]
        return self._take(places, width, height)

    def place_beside_dot(self, dot: Rectangle, width: int, height: int) -> Rectangle:
        """Return a place to the right of a dot and above it, or elsewhere around it."""
        middle = (dot.left + dot.right - width) // 2
        sides = (dot.right, dot.left - width)
        rows = (dot.top - height // 2, dot.bottom - height + height // 2)
        places = [(left, top) for top in rows for left in sides]
        places += [(middle, dot.top - height), (middle, dot.bottom)]
        places += [
            (left, top)
            for row in range(1, _ROWS)
            for top in (rows[0] - row * height, rows[1] + row * height)
            for left in (*sides, middle)
        ]
        return self._take(places, width, height)

    def _take(self, places: Sequence[tuple[int, int]], width: int, height: int) -> Rectangle:
        """Return the first place that covers nothing, or the one that covers least."""
        corners = np.array(places)
        is_inside = (corners[:, 1] >= 0) & (corners[:, 1] <= self._height - height)
        if is_inside.any():
            corners = corners[is_inside]
        corners[:, 0] = np.maximum(0, np.minimum(corners[:, 0], self._width - width))
        corners[:, 1] = np.maximum(0, np.minimum(corners[:, 1], self._height - height))
        areas = np.concatenate((corners, corners + np.array((width, height))), axis=1)
        costs = _LABEL_COST * _overlap(areas, self._labels) + _MARK_COST * _overlap(
            areas, self._marks
        )
        place = Rectangle(*map(int, areas[int(costs.argmin())]))
        self._labels.append(place)
        return place


def _overlap(areas: NDArray[np.int64], others: Sequence[Rectangle]) -> NDArray[np.int64]:
    """Return how many pixels of each area (N, 4) the others cover."""
    if not others:
        return np.zeros(len(areas), np.int64)
    taken = np.array([(one.left, one.top, one.right, one.bottom) for one in others])
    first = np.maximum(areas[:, np.newaxis, :2], taken[np.newaxis, :, :2])
    last = np.minimum(areas[:, np.newaxis, 2:], taken[np.newaxis, :, 2:])
    overlap: NDArray[np.int64] = np.maximum(last - first, 0).prod(axis=2).sum(axis=1)
    return overlap
