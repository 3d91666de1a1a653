"""Boxes and points in what the model writes, read tolerantly.

The checkpoints were trained to write JSON in pixels of the resized picture (Qwen2.5-VL technical
report, 2.1).
"""

from __future__ import annotations

import re

from raylens.core.types import Location, Region

_NUMBER = r"\s*(-?\d{1,5}(?:\.\d{1,9})?)\s*"
_BOX = re.compile(rf"[\[(]{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}[\])]")
_POINT = re.compile(rf"[\[(]{_NUMBER},{_NUMBER}[\])]|x\d*=\"{_NUMBER}\"\s+y\d*=\"{_NUMBER}\"")


def regions(text: str, width: int, height: int) -> tuple[Region, ...]:
    """Boxes ``[x1, y1, x2, y2]`` in pixels of a picture of this size, wherever they stand in the
    text: JSON that is fenced, cut short or not quite JSON is read as well. Boxes without area, and
    repeated ones, are left out."""
    found = []
    for match in _BOX.finditer(text):
        x1, y1, x2, y2 = (float(number) for number in match.groups())
        left, right = sorted((_share(x1, width), _share(x2, width)))
        top, bottom = sorted((_share(y1, height), _share(y2, height)))
        if left < right and top < bottom:
            found.append(Region(left, top, right, bottom))
    return tuple(dict.fromkeys(found))


def locations(text: str, width: int, height: int) -> tuple[Location, ...]:
    """The same for points: ``[x, y]``, or ``x="…" y="…"`` of XML. Where there are only boxes, their
    middles."""
    found = []
    for match in _POINT.finditer(text):
        x, y = (float(number) for number in match.groups() if number is not None)
        found.append(Location(_share(x, width), _share(y, height)))
    if not found:
        boxes = regions(text, width, height)
        found = [
            Location((box.x_min + box.x_max) / 2, (box.y_min + box.y_max) / 2) for box in boxes
        ]
    return tuple(dict.fromkeys(found))


def _share(place: float, side: int) -> float:
    return min(1.0, max(0.0, place / side))
