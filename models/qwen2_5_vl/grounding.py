"""Boxes and points in the text that the model writes, parsed tolerantly.

The checkpoints were trained to write JSON in pixels of the resized picture (Qwen2.5-VL technical
report, 2.1).
"""

from __future__ import annotations

import re

from raylens.core.types import Location, Region

_NUMBER = r"\s*(-?\d{1,5}(?:\.\d{1,9})?)\s*"
_BOX = re.compile(rf"[\[(]{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}[\])]")
_POINT = re.compile(rf"[\[(]{_NUMBER},{_NUMBER}[\])]|x\d*=\"{_NUMBER}\"\s+y\d*=\"{_NUMBER}\"")


def parse_boxes(text: str, width: int, height: int) -> tuple[Region, ...]:
    """Return the boxes ``[x1, y1, x2, y2]`` in a text, normalized by the picture's size in pixels.

    JSON that is fenced, truncated or malformed is read as well. Boxes without area and repeated
    boxes are left out.
    """
    boxes: list[Region] = []
    for match in _BOX.finditer(text):
        x1, y1, x2, y2 = (float(number) for number in match.groups())
        left, right = sorted((_normalize(x1, width), _normalize(x2, width)))
        top, bottom = sorted((_normalize(y1, height), _normalize(y2, height)))
        if left < right and top < bottom:
            boxes.append(Region(left, top, right, bottom))
    return tuple(dict.fromkeys(boxes))


def parse_points(text: str, width: int, height: int) -> tuple[Location, ...]:
    """Return the points in a text, normalized by the picture's size in pixels.

    Points are ``[x, y]``, or ``x="…" y="…"`` of XML. If there are only boxes, the points are their
    centers. Repeated points are left out.
    """
    points: list[Location] = []
    for match in _POINT.finditer(text):
        x, y = (float(number) for number in match.groups() if number is not None)
        points.append(Location(_normalize(x, width), _normalize(y, height)))
    if not points:
        points = [_center(box) for box in parse_boxes(text, width, height)]
    return tuple(dict.fromkeys(points))


def _center(box: Region) -> Location:
    return Location((box.x_min + box.x_max) / 2, (box.y_min + box.y_max) / 2)


def _normalize(coordinate: float, side: int) -> float:
    return min(1.0, max(0.0, coordinate / side))
