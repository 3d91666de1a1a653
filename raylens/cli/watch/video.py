"""Annotated videos: H.264 in MP4, as browsers play it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from raylens.cli.errors import UsageError
from raylens.realtime.overlay import Pixels

MAX_SIDE = 16_384
"""Of libx264, in pixels."""
TICKS = 90_000
"""Units of time in a second."""
DEFAULT_FRAME_S = 0.04
"""The length of a video's only frame."""
_ENCODER = {"preset": "veryfast", "crf": "20", "bf": "0"}
"""Without B-frames: with them, the length of a video with a variable rate would be wrong."""


class Mp4File:
    """Writes frames with their times. The file has its name only when it is complete.

    Sides are even in H.264: a picture of an odd width or height gets one more column or row.
    Frames of another size than the first one's are scaled.
    """

    def __init__(self, path: Path) -> None:
        """Raises ``UsageError`` if the file can't be written."""
        self._path = path
        self._part = path.with_name(f".{path.name}.part")
        try:
            self._part.touch()
        except OSError as error:
            raise UsageError(f"--out: {path}: {error.strerror or error}") from None
        self._container: Any = None
        self._stream: Any = None
        self._last_ticks = -1
        self._last_interval = round(DEFAULT_FRAME_S * TICKS)
        self._has_failed = False
        self.frames = 0

    def write(self, pixels: Pixels, time_s: float) -> None:
        """Add a frame. Raises ``OSError``, and ``UsageError`` if the first frame is too large."""
        with self._os_errors():
            if self._container is None:
                self._open(pixels)
            self._encode(pixels, time_s)

    def _encode(self, pixels: Pixels, time_s: float) -> None:
        ticks = max(round(time_s * TICKS), self._last_ticks + 1)
        if self.frames:
            self._last_interval = ticks - self._last_ticks
        frame = av.VideoFrame.from_ndarray(self._fit(pixels), format="rgb24")
        frame.pts, frame.time_base = ticks, Fraction(1, TICKS)
        self._mux(self._stream.encode(frame))
        self._last_ticks = ticks
        self.frames += 1

    def finish(self) -> None:
        """Complete the file. Without a frame, or after an error, no file is left.

        Raises ``OSError``.
        """
        if self._container is None or self._has_failed:
            self.discard()
            return
        with self._os_errors():
            self._mux(self._stream.encode())
            self._container.close()
            self._container = None
            self._part.replace(self._path)

    def discard(self) -> None:
        """Remove what was written, if it isn't complete."""
        container, self._container = self._container, None
        try:
            if container is not None:
                with contextlib.suppress(av.FFmpegError):
                    container.close()
        finally:
            self._part.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _os_errors(self) -> Iterator[None]:
        """Turn FFmpeg's errors, such as that of a full disk, into ``OSError``."""
        try:
            yield
        except OSError:
            self._has_failed = True
            raise
        except av.FFmpegError as error:
            self._has_failed = True
            raise OSError(error.errno, error.strerror, str(self._path)) from error

    def _open(self, pixels: Pixels) -> None:
        height, width = pixels.shape[:2]
        if max(width, height) > MAX_SIDE:
            raise UsageError(
                f"--out: {width}×{height} pixels; H.264 takes at most {MAX_SIDE} on a side"
            )
        self._container = av.open(
            str(self._part), "w", format="mp4", options={"movflags": "+faststart"}
        )
        stream = self._container.add_stream("libx264", rate=25, options=_ENCODER)
        stream.width, stream.height = width + width % 2, height + height % 2
        stream.pix_fmt = "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, TICKS)
        self._container.start_encoding()
        self._stream = stream

    def _fit(self, pixels: Pixels) -> Pixels:
        width, height = self._stream.width, self._stream.height
        if abs(pixels.shape[1] - width) > 1 or abs(pixels.shape[0] - height) > 1:
            return np.asarray(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA))
        missing = ((0, height - pixels.shape[0]), (0, width - pixels.shape[1]), (0, 0))
        return np.pad(pixels, missing, "edge") if missing != ((0, 0),) * 3 else pixels

    def _mux(self, packets: Any) -> None:
        for packet in packets:
            if packet.pts == self._last_ticks:  # the last frame of all
                packet.duration = self._last_interval
            self._container.mux(packet)
