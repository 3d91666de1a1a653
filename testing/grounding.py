"""Comparison of boxes and points with the expected boxes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Box = tuple[float, float, float, float]
"""(x_min, y_min, x_max, y_max), normalized to [0, 1]."""
Point = tuple[float, float]
"""(x, y), normalized to [0, 1]."""


def center(box: Box) -> Point:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def count_matching_boxes(expected: Sequence[Box], answers: Sequence[Any], min_iou: float) -> int:
    """Return the number of pairs with an IoU of at least ``min_iou``.

    Pairs are formed by descending IoU. Each box is in one pair at most.
    """
    pairs = [
        (iou(expected_box, answer), row, column)
        for row, expected_box in enumerate(expected)
        for column, answer in enumerate(answers)
    ]
    matched_rows: set[int] = set()
    matched_columns: set[int] = set()
    for overlap, row, column in sorted(pairs, reverse=True):
        if overlap >= min_iou and row not in matched_rows and column not in matched_columns:
            matched_rows.add(row)
            matched_columns.add(column)
    return len(matched_rows)


def count_matching_points(expected: Sequence[Box], answers: Sequence[Any]) -> int:
    """Return the number of boxes with a point inside.

    A scene's boxes don't overlap. A second point in a box matches nothing.
    """
    return sum(
        any(x1 <= x <= x2 and y1 <= y <= y2 for x, y in answers) for x1, y1, x2, y2 in expected
    )


def iou(a: Box, b: Box) -> float:
    """Return the intersection over union of two boxes."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    intersection = width * height
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return intersection / (areas - intersection)
