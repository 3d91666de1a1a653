"""Pictures whose gray level tells which one they are."""

from __future__ import annotations

from typing import Any

import numpy as np

from raylens.realtime.overlay import Pixels
from raylens.realtime.sources.base import Source
from testing.pictures import encode_picture

STEP = 8
"""Levels between two pictures: more than compression changes."""


def gray(number: int, width: int = 64, height: int = 48) -> Pixels:
    return np.full((height, width, 3), number * STEP, np.uint8)


def number_of(pixels: Pixels) -> int:
    return round(float(pixels.mean()) / STEP)


def jpeg(number: int, **options: Any) -> bytes:
    return encode_picture(gray(number), "JPEG", **options)


def read_numbers(source: Source, count: int = 5) -> list[int]:
    """Return which pictures come next. Their times must not go back."""
    frames = [source.read() for _ in range(count)]
    times = [frame.time_s for frame in frames if frame]
    assert times == sorted(times)
    return [number_of(frame.pixels) for frame in frames if frame]
