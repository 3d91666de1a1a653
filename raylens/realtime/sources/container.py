"""Frames of whatever FFmpeg reads: files, cameras and RTSP."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from typing import Any

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from raylens.core.errors import InvalidRequest
from raylens.realtime.overlay import Pixels

MAX_ASPECT = 8.0
"""Pixels with a larger ratio of width to height, or of height to width, are taken for squares."""


class NoVideo(InvalidRequest):
    """A file or stream that has no video, only sound or text."""


FAILURES = (av.FFmpegError, OSError, ValueError)
"""What FFmpeg and its bindings may raise."""


def open_video(
    file: Any, shown: str, options: dict[str, str], max_pixels: int, **arguments: Any
) -> tuple[Any, VideoStream]:
    """Return an open container and its video stream.

    Raises ``NoVideo``, and one of ``FAILURES``.
    """
    # FFmpeg decodes some frames to learn what the stream is.
    options = {**options, "max_pixels": str(max_pixels)}
    container = av.open(
        file, options=options, container_options={}, metadata_errors="replace", **arguments
    )
    try:
        return container, _find_stream(container, shown)
    except BaseException:
        container.close()
        raise


def _find_stream(container: Any, shown: str) -> VideoStream:
    """Return the first stream that is a video, and not the cover of a piece of music."""
    stream: VideoStream
    for stream in container.streams.video:
        if not stream.disposition & av.stream.Disposition.attached_pic:
            if stream.codec_context is None:
                raise NoVideo(f"source: {shown}: its codec is not supported", "source")
            return stream
    has_more = len(container.streams) > 0
    reason = "no video, only sound or text" if has_more else "no video"
    raise NoVideo(f"source: {shown}: {reason}", "source")


def limit_decoder(stream: VideoStream, max_pixels: int, threads: int) -> None:
    """Have the decoder refuse frames that are too large, and bound its threads.

    With one thread, each frame comes at once; with several, frames come later.
    """
    context = stream.codec_context
    context.thread_count = threads
    context.options = {"max_pixels": str(max_pixels)}


def decode_tolerantly(
    container: Any,
    stream: VideoStream,
    check: Callable[[], None] = lambda: None,
    skip: Callable[[], None] = lambda: None,
) -> Iterator[VideoFrame]:
    """Yield the frames of a stream. Damaged packets are skipped.

    ``check`` is called with each packet, and ``skip`` with each that is damaged. Raises FFmpeg's
    errors of reading.
    """
    for packet in container.demux(stream):
        check()
        try:
            frames = packet.decode()
        except (av.error.InvalidDataError, av.error.UnknownError):
            skip()
            continue
        yield from frames


def to_pixels(frame: VideoFrame, stream: VideoStream) -> Pixels:
    """Return a frame upright, with square pixels."""
    width, height = frame.width, frame.height
    aspect = float(stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or 1)
    if 1 / MAX_ASPECT <= aspect <= MAX_ASPECT:
        width = max(1, round(width * aspect))
    pixels = frame.to_ndarray(format="rgb24", width=width, height=height)
    return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))


def reason_of(error: Exception) -> str:
    """Return why FFmpeg failed, without the name of the file."""
    is_invalid = getattr(error, "errno", None) == errno.EINVAL
    if is_invalid or isinstance(error, av.error.InvalidDataError | av.error.EOFError):
        return "not a video that can be read, or a damaged one"
    reason = getattr(error, "strerror", None)
    return str(reason or error or type(error).__name__)
