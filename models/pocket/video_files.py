"""Video files of drawn frames, for training, tests and benchmarks."""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
FAST_VP9 = {"deadline": "realtime", "cpu-used": "8"}
"""Options of libvpx-vp9 for short videos."""


def encode_video(
    frames: Sequence[Pixels],
    frames_per_second: float,
    codec: str = "libx264",
    container: str = "mp4",
    options: dict[str, str] | None = None,
    times: Sequence[int] | None = None,
    trimmed_s: float = 0.0,
    aspect: Fraction | None = None,
) -> bytes:
    """Return a video file of RGB frames (height, width, 3) with even sides.

    ``times`` are those of the frames, in milliseconds; by default they are evenly spaced. An edit
    list hides the first ``trimmed_s`` seconds, as players' trimming does (MP4 only). ``aspect`` is
    the width of a pixel by its height.
    """
    buffer = io.BytesIO()
    muxer_options = {"avoid_negative_ts": "disabled"} if trimmed_s else {}
    with av.open(buffer, "w", format=container, options=muxer_options) as output:
        rate = Fraction(frames_per_second).limit_denominator(1000)
        stream: Any = output.add_stream(codec, rate=rate)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.options = options or {}
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect

        def mux(packets: Sequence[Any]) -> None:
            for packet in packets:
                shift = round(trimmed_s / packet.time_base)
                packet.pts -= shift
                packet.dts -= shift
                output.mux(packet)

        if times is not None:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = number if times is None else times[number]
            frame.time_base = 1 / rate if times is None else Fraction(1, 1000)
            mux(stream.encode(frame))
        mux(stream.encode())
    return buffer.getvalue()
