"""Decoded frames to pixels and back, and their times."""

from __future__ import annotations

import math
from collections import deque
from fractions import Fraction
from typing import cast

import av
import numpy as np

from raylens.realtime.overlay import Pixels

CLOCK_RATE = 90_000
"""Ticks per second of video in RTP."""
TIME_BASE = Fraction(1, CLOCK_RATE)
MAX_DECODED_PIXELS = 9_000_000
"""Of a received frame: 4K video has 8.3 million."""
MAX_LEAP_S = 10.0
"""How far a frame's time may be ahead of the clock. One that is further ahead has another origin,
as after a change of the camera."""


def to_pixels(picture: av.VideoFrame, max_pixels: int) -> Pixels:
    """Return (H, W, 3) RGB, scaled down if it has more pixels than allowed."""
    width, height = fit(picture.width, picture.height, max_pixels)
    pixels = picture.to_ndarray(width=width, height=height, format="rgb24")
    return cast(Pixels, pixels)


def to_picture(pixels: Pixels, pts: int) -> av.VideoFrame:
    """Return a frame that encoders take. ``pts`` is in ticks of ``TIME_BASE``."""
    picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
    picture = picture.reformat(format="yuv420p")
    picture.pts = pts
    picture.time_base = TIME_BASE
    return picture


def fit(width: int, height: int, max_pixels: int) -> tuple[int, int]:
    """Return the size with the same shape, and at most so many pixels; even, if it is smaller."""
    if width * height <= max_pixels:
        return width, height
    scale = math.sqrt(max_pixels / (width * height))
    return max(2, int(width * scale) & ~1), max(2, int(height * scale) & ~1)


class Timeline:
    """The times of a video's frames, which always rise, also if the sender begins anew."""

    def __init__(self) -> None:
        self._offset = 0
        self._last: int | None = None
        self._last_received_at = 0.0

    def map(self, pts: int, received_at: float) -> int:
        """Return the time of a frame, in ticks. ``received_at`` is by a monotonic clock."""
        if self._last is None:
            self._offset = -pts
        else:
            passed = received_at - self._last_received_at
            step = pts + self._offset - self._last
            if not 0 < step <= (passed + MAX_LEAP_S) * CLOCK_RATE:
                self._offset += max(1, round(passed * CLOCK_RATE)) - step
        self._last = pts + self._offset
        self._last_received_at = received_at
        return self._last


class FrameRateLimit:
    """Decides which frames are taken, so that they are not more than so many per second."""

    def __init__(self, max_fps: float) -> None:
        self._period = CLOCK_RATE / max_fps
        self._due = -math.inf

    def takes(self, pts: int) -> bool:
        """Count a frame, at a time in ticks, and return whether it is taken."""
        jitter = self._period / 5
        if pts < self._due - jitter:
            return False
        self._due = max(self._due, pts - jitter) + self._period
        return True


class FrameRateMeter:
    """The frame rate over the last frames."""

    def __init__(self, frames: int = 30) -> None:
        self._times: deque[float] = deque(maxlen=frames)

    def add(self, received_at: float) -> None:
        self._times.append(received_at)

    @property
    def fps(self) -> float | None:
        """Frames per second; None before the second frame."""
        times = self._times
        if len(times) < 2 or times[-1] <= times[0]:
            return None
        return (len(times) - 1) / (times[-1] - times[0])
