"""Small copies of the last frames."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
LONGEST_SIDE = 320
"""Longest side of a copy, in pixels. Motion is measured in these."""
_SHORTEST_SIDE = 64
"""Shortest side of a copy, so that a very wide picture keeps some height."""
_COLOR_SHARE = 4
"""The copy with colors is smaller than the gray one by this factor."""

_BRIGHTNESS, _SATURATION = 0.6, 0.65
"""Weights of the two in the gray copy."""


@dataclass(frozen=True)
class SmallFrame:
    """A frame of a video, made small. ``colors`` is smaller than ``gray``."""

    id: int
    gray: Pixels
    colors: Pixels

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of ``gray``."""
        return self.gray.shape[1], self.gray.shape[0]


def shrink(frame_id: int, pixels: Pixels) -> SmallFrame:
    """Return the small copy of a frame, RGB (H, W, 3).

    A smaller frame is enlarged, so that what surrounds a feature is as much of the picture.
    """
    height, width = pixels.shape[:2]
    factor = max(LONGEST_SIDE / max(height, width), _SHORTEST_SIDE / min(height, width))
    small = _resize(pixels, _scaled(width, height, factor))
    if factor > 1.3:
        small = cv2.GaussianBlur(small, (0, 0), 0.6 * factor)
    colors = _resize(small, _scaled(small.shape[1], small.shape[0], 1 / _COLOR_SHARE))
    return SmallFrame(frame_id, _to_gray(small), colors)


def _to_gray(pixels: Pixels) -> Pixels:
    """Return brightness and saturation in one channel.

    Brightness alone doesn't tell a red shape from a gray ground.
    """
    brightness = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    red, green, blue = cv2.split(pixels)
    largest = cv2.max(cv2.max(red, green), blue)
    smallest = cv2.min(cv2.min(red, green), blue)
    saturation = cv2.subtract(largest, smallest)
    mixed = cv2.addWeighted(brightness, _BRIGHTNESS, saturation, _SATURATION, 0)
    smooth: Pixels = cv2.GaussianBlur(mixed, (3, 3), 0)  # noise has corners, too
    return smooth


def _scaled(width: int, height: int, factor: float) -> tuple[int, int]:
    return max(1, round(width * factor)), max(1, round(height * factor))


def _resize(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """Return the picture at another size.

    Averages pixels only for the last factor of 2 to 3: a whole 4K frame would take longer than
    all the rest.
    """
    stride = max(1, pixels.shape[1] // (2 * size[0]))
    sampled = pixels[::stride, ::stride] if stride > 1 else pixels
    is_smaller = size[0] < pixels.shape[1]
    resized: Pixels = cv2.resize(
        sampled, size, interpolation=cv2.INTER_AREA if is_smaller else cv2.INTER_LINEAR
    )
    return resized


class FrameRing:
    """The small copies of the last ``capacity`` frames."""

    def __init__(self, capacity: int) -> None:
        self._frames: deque[SmallFrame] = deque(maxlen=capacity)

    @property
    def newest(self) -> SmallFrame | None:
        return self._frames[-1] if self._frames else None

    def append(self, frame: SmallFrame) -> None:
        self._frames.append(frame)

    def since(self, frame_id: int) -> Sequence[SmallFrame]:
        """Return the frames from the given one to the newest.

        If the given one was never added, they begin with the one before it. Empty if it has been
        dropped already.
        """
        ids = [frame.id for frame in self._frames]
        index = bisect_right(ids, frame_id) - 1
        return list(self._frames)[index:] if index >= 0 else []
