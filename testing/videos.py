"""Video files for tests and benchmarks."""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


def encode_video(
    frames: Sequence[Pixels],
    frames_per_second: float,
    codec: str = "libx264",
    container: str = "mp4",
    options: dict[str, str] | None = None,
    times: Sequence[int] | None = None,
) -> bytes:
    """Return a video file of RGB frames (height, width, 3) with even sides.

    ``times`` are those of the frames, in milliseconds; by default they are evenly spaced.
    """
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        rate = Fraction(frames_per_second).limit_denominator(1000)
        stream: Any = output.add_stream(codec, rate=rate)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.options = options or {}
        if times is not None:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = number if times is None else times[number]
            frame.time_base = 1 / rate if times is None else Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return buffer.getvalue()
