"""Features of a frame, and where they are in another one: sparse optical flow.

Coordinates are pixels, in float32 arrays (n, 2) of x and y, and (4,) of x_min, y_min, x_max, y_max.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from raylens.realtime.tracking.motion import Floats, Mask

Pixels = NDArray[np.uint8]

_GROUND_FEATURES = 24
_GROUND_APART = 24
"""Least distance between features of the ground, in pixels."""
_GROUND_MARGIN = 6
"""Features of the ground are at least this far from boxes, in pixels."""
_MARGIN, _MARGIN_SHARE = 2.0, 0.08
"""What is up to so many pixels, and this share of its sides, outside a box belongs to it: a plain
object has features at its outline only, and a model's boxes are not exact."""
_QUALITY = 0.04
"""The weakest feature of a part of the picture, as a share of its strongest one."""
_BLOCK = 5
_WINDOW = 15
_COARSEST = 64
"""Longest side of the coarsest picture in which flow is sought, at least, in pixels."""
_CRITERIA = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 12, 0.03)
_MIN_EIGENVALUE = 1e-3
"""Below this, what surrounds a feature is flat but for noise."""
_CONSISTENT = 1.0
"""Largest distance between a feature and where the flow forward and backward leads, in pixels."""


def no_points() -> Floats:
    return np.empty((0, 2), np.float32)


def find_features(gray: Pixels, box: Floats, count: int) -> Floats:
    """Return at most ``count`` features in and around a box."""
    height, width = gray.shape
    margin = _MARGIN + _MARGIN_SHARE * (box[2:] - box[:2])
    left, top = (max(0, int(value)) for value in box[:2] - margin)
    right, bottom = (int(np.ceil(value)) for value in box[2:] + margin)
    right, bottom = min(width, right), min(height, bottom)
    if right - left < _BLOCK or bottom - top < _BLOCK:
        return no_points()
    part = gray[top:bottom, left:right]
    apart = max(2.0, (right - left + bottom - top) / (2.5 * count))
    features = _find(part, count, apart)
    return features + np.array((left, top), np.float32)


def find_ground(gray: Pixels, boxes: Sequence[Floats]) -> Floats:
    """Return features outside all boxes."""
    mask = np.full(gray.shape, 255, np.uint8)
    height, width = gray.shape
    for box in boxes:
        outside = box + np.array((-1, -1, 1, 1), np.float32) * _GROUND_MARGIN
        left, top, right, bottom = np.clip(outside, 0, max(width, height)).astype(int)
        mask[top : bottom + 1, left : right + 1] = 0
    return _find(gray, _GROUND_FEATURES, _GROUND_APART, mask)


def _find(gray: Pixels, count: int, apart: float, mask: Pixels | None = None) -> Floats:
    found = cv2.goodFeaturesToTrack(gray, count, _QUALITY, apart, mask=mask, blockSize=_BLOCK)
    if found is None:
        return no_points()
    features: Floats = found.reshape(-1, 2)
    return features


def find_again(
    before: Pixels, after: Pixels, points: Floats, shifts: Floats
) -> tuple[Floats, Mask]:
    """Return where points of one frame are in another, and whether that is consistent.

    ``shifts`` are first guesses. From a consistent point, the flow leads back to where it was.
    """
    if not len(points):
        return points, np.zeros(0, bool)
    found, is_found = _flow(before, after, points, points + shifts)
    returned, is_back = _flow(after, before, found, found - shifts)
    errors = np.hypot(*(returned - points).T)
    height, width = after.shape
    is_inside = ((found >= 0) & (found <= (width - 1, height - 1))).all(axis=1)
    is_good: Mask = is_found & is_back & (errors < _CONSISTENT) & is_inside
    return found, is_good


def _flow(before: Pixels, after: Pixels, points: Floats, guesses: Floats) -> tuple[Floats, Mask]:
    found, status, _ = cv2.calcOpticalFlowPyrLK(
        before,
        after,
        points.reshape(-1, 1, 2),
        guesses.reshape(-1, 1, 2).astype(np.float32),
        winSize=(_WINDOW, _WINDOW),
        maxLevel=max(0, int(np.log2(max(before.shape) / _COARSEST))),
        criteria=_CRITERIA,
        flags=cv2.OPTFLOW_USE_INITIAL_FLOW,
        minEigThreshold=_MIN_EIGENVALUE,
    )
    return found.reshape(-1, 2), status.reshape(-1) == 1
