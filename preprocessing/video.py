"""Frames of a video file, sampled evenly over its length.

A file's packets are listed before any frame is decoded: what its header says of its length is not
trusted, and only what a sampled frame depends on is decoded.
"""

from __future__ import annotations

import io
import struct
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import islice
from typing import Any

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from preprocessing.formats import sniff_video
from preprocessing.memory import Reserve
from raylens.core.errors import InvalidRequest, PayloadTooLarge, RaylensError, UnsupportedMedia

Pixels = NDArray[np.uint8]
"""A frame as (height, width, 3) RGB."""

MAX_PACKETS = 500_000
MAX_ELEMENTS = 500_000
"""Boxes of an MP4 and elements of a WebM that are looked at."""
MAX_LEVELS = 8
MAX_ASPECT = 8.0
FRAME_BYTES_PER_PIXEL = 6
"""A sampled frame, and its copy among all of them."""
DECODER_BYTES_PER_PIXEL = 32
"""Sixteen frames of a decoder, and one on its way to RGB."""
ONE_FRAME_S = 1.0
"""The length of a video of one frame, if the file doesn't say."""
MAX_SHIFT_FRAMES = 4
"""How far from its time a frame may be, in frames."""
_FIELD = "video"
_OPTIONS = {"protocol_whitelist": "none"}
"""A file must not refer to others."""
_STRICT = "explode+crccheck+bitstream+buffer"
_TOLERANCE_S = 2.0
"""What a header may promise beyond the last packet, in seconds."""


@dataclass(frozen=True)
class VideoLimits:
    """Limits on a video file, and on what is made of it."""

    max_bytes: int
    max_seconds: float
    max_pixels: int
    """Of one frame."""
    max_frames: int
    """That are sampled."""
    max_sampled_pixels: int
    """Of all sampled frames together. Larger frames are shrunk."""
    max_filter_s: float = 5.0
    """What a filter may take for all frames together, by estimate. A dearer one is skipped."""


@dataclass(frozen=True)
class Sampling:
    """Which frames a request asks for."""

    frames_per_second: float = 2.0
    max_frames: int | None = None
    """None means the limit's."""
    max_side: int | None = None
    """Upper bound of a frame's longer side, in pixels."""


@dataclass(frozen=True)
class SampledVideo:
    """Frames of a video, upright and of the same size."""

    frames: tuple[Pixels, ...]
    timestamps: tuple[float, ...]
    """Seconds from the start."""
    seconds: float
    """The length of the video."""
    description: str
    warnings: tuple[str, ...] = ()


@dataclass
class _Packets:
    """The times of a stream's packets, in its time base."""

    times: list[int] = field(default_factory=list)
    key_times: list[int] = field(default_factory=list)

    def sort(self) -> None:
        self.times = sorted(set(self.times))
        self.key_times = sorted(set(self.key_times)) or self.times[:1]


def sample_video(
    data: bytes,
    limits: VideoLimits,
    sampling: Sampling,
    check: Callable[[], None] = lambda: None,
    reserve: Reserve = lambda count: None,
) -> SampledVideo:
    """Decode an even number of frames, spread evenly from the first one to the last.

    ``check`` is called before each frame is decoded. It may raise a ``RaylensError`` to stop the
    work; that error propagates. ``reserve`` waits for the memory that the frames take. Raises
    ``PayloadTooLarge`` if a limit is exceeded,
    ``UnsupportedMedia`` if the file is no video in a supported format, and ``InvalidRequest`` if it
    is damaged or cut off.
    """
    if len(data) > limits.max_bytes:
        raise _over(f"{len(data)} bytes", "bytes", limits.max_bytes, len(data))
    container_format = sniff_video(data)
    try:
        _check_complete(data, container_format)
        if container_format == "MP4":
            for width, height in _sizes(data):
                _check_size(width, height, limits)
        with closing(_open(data, container_format)) as container:
            stream = _find_stream(container)
            _check_header(stream, limits)
            packets = _list_packets(container, stream, check)
            may_leave_out = container_format == "MP4" and _has_edits(data)
            if len(packets.times) < stream.frames and not may_leave_out:
                raise ValueError(f"it has {len(packets.times)} of its {stream.frames} frames")
            seconds = _length(container, stream, packets)
            _check_promise(data, container, container_format, seconds)
            if seconds > limits.max_seconds:
                raise _over(f"{seconds:.0f} seconds", "seconds", limits.max_seconds, seconds)
            times = choose_times(packets.times, seconds, sampling, limits)
            reserve(_estimate_memory(stream, len(times), limits))
        with closing(_open(data, container_format)) as container:
            stream = _find_stream(container)
            _be_strict(stream, limits)
            aspect = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio
            scale = _Scale(limits, sampling, len(times), aspect)
            decoded = {
                target: scale.to_pixels(frame)
                for target, frame in _decode(container, stream, packets, times, check)
            }
    except RaylensError:
        raise
    except Exception as error:  # a damaged file can make FFmpeg and its bindings raise anything
        raise _damaged(data, container_format, _reason(error)) from error
    frames = tuple(decoded[time] for time in times)
    if len({frame.shape for frame in frames}) > 1:
        raise _damaged(data, container_format, "its frames have several sizes")
    start = packets.times[0]
    return SampledVideo(
        frames,
        tuple(float((time - start) * _time_base(stream)) for time in times),
        seconds,
        f"{container_format}, {stream.codec_context.name}, {seconds:.2f} s, {len(frames)} frames",
    )


def _estimate_memory(stream: VideoStream, count: int, limits: VideoLimits) -> int:
    """Return the bytes that the sampled frames take, and those to which the decoder refers."""
    pixels = stream.codec_context.width * stream.codec_context.height
    sampled = min(count * pixels, limits.max_sampled_pixels)
    return sampled * FRAME_BYTES_PER_PIXEL + pixels * DECODER_BYTES_PER_PIXEL


def choose_times(
    times: list[int], seconds: float, sampling: Sampling, limits: VideoLimits
) -> list[int]:
    """Return the times of the frames that are shown at evenly spaced moments.

    The first and the last frame are among them. Their number is even, because models read pairs.
    """
    most = min(sampling.max_frames or limits.max_frames, limits.max_frames, len(times) + 1)
    count = min(2 * round(seconds * sampling.frames_per_second / 2), most // 2 * 2)
    moments = np.linspace(times[0], times[-1], max(2, count))
    # A moment that is a frame's own must not be rounded down to the frame before it.
    half_tick = 0.5
    return [times[bisect_right(times, moment + half_tick) - 1] for moment in moments]


def _open(data: bytes, container_format: str) -> Any:
    demuxer = _DEMUXERS[container_format]
    return av.open(io.BytesIO(data), format=demuxer, options=_OPTIONS, metadata_errors="replace")


def _find_stream(container: Any) -> VideoStream:
    """Return the first stream that is a video, and not the cover of a piece of music."""
    stream: VideoStream
    for stream in container.streams.video:
        if not stream.disposition & av.stream.Disposition.attached_pic:
            if stream.codec_context is None:
                raise UnsupportedMedia(f"{_FIELD}: its codec is not supported", _FIELD)
            return stream
    raise UnsupportedMedia(f"{_FIELD}: the file has no video, only sound or text", _FIELD)


def _time_base(stream: VideoStream) -> Fraction:
    if not stream.time_base:
        raise ValueError("the unit of its times is missing")
    return stream.time_base


def _check_header(stream: VideoStream, limits: VideoLimits) -> None:
    width, height = stream.codec_context.width, stream.codec_context.height
    if width <= 0 or height <= 0:
        raise ValueError("the size of its frames is missing")
    _check_size(width, height, limits)


def _check_size(width: int, height: int, limits: VideoLimits) -> None:
    if width * height > limits.max_pixels:
        raise _over(
            f"frames of {width}×{height} pixels", "pixels", limits.max_pixels, width * height
        )


def _be_strict(stream: VideoStream, limits: VideoLimits) -> None:
    """Have the decoder fail on damage, and refuse frames that its header didn't announce."""
    context = stream.codec_context
    context.thread_count = 1
    context.options = {"err_detect": _STRICT, "max_pixels": str(limits.max_pixels)}


def _list_packets(container: Any, stream: VideoStream, check: Callable[[], None]) -> _Packets:
    """Return the times of all packets. Raises ``ValueError`` if there are none, or if one is
    missing."""
    packets = _Packets()
    for number, packet in enumerate(container.demux(stream)):
        if number % 1000 == 0:
            check()
        if number > MAX_PACKETS:
            raise _over(f"over {MAX_PACKETS} frames", "frames", MAX_PACKETS, number)
        time = packet.dts if packet.pts is None else packet.pts
        if time is None or packet.size == 0:  # the end of the file
            continue
        if packet.is_corrupt:
            raise ValueError("a packet is cut off")
        if packet.is_discard:  # before the part that an edit list shows
            continue
        packets.times.append(time)
        if packet.is_keyframe:
            packets.key_times.append(time)
    if not packets.times:
        raise ValueError("it has no frames")
    packets.sort()
    return packets


def _length(container: Any, stream: VideoStream, packets: _Packets) -> float:
    """Return the length of a video in seconds: to the end of the last frame."""
    first, last = packets.times[0], packets.times[-1]
    intervals = len(packets.times) - 1
    if not intervals:
        return float(1 / stream.average_rate) if stream.average_rate else ONE_FRAME_S
    frame = (last - first) / intervals
    seconds = float((last - first + frame) * _time_base(stream))
    promised = float((stream.duration or 0) * _time_base(stream))
    if promised > seconds + _TOLERANCE_S:
        raise ValueError(f"it ends after {seconds:.1f} of its {promised:.1f} seconds")
    return seconds


def _check_promise(data: bytes, container: Any, container_format: str, seconds: float) -> None:
    """Raise ``ValueError`` if a header promises a length out of all proportion.

    Sound may be longer than the pictures, but not much.
    """
    promised = (container.duration or 0) / av.time_base
    if container_format == "MP4":  # whose headers FFmpeg corrects
        promised = max([promised, *_durations(data)])
    if promised > 10 * seconds + 600:
        raise ValueError(f"it ends after {seconds:.1f} of its {promised:.1f} seconds")


def _has_edits(data: bytes) -> bool:
    """Whether an MP4 has an edit list, which may leave out frames (ISO/IEC 14496-12, 8.6.6)."""
    return any(kind == b"elst" for kind, _, _ in _all_boxes(data))


def _durations(data: bytes) -> Iterator[float]:
    """Yield the seconds that the headers of a movie and of its tracks promise.

    Format: ISO/IEC 14496-12, 8.2.2 and 8.4.2.
    """
    for kind, content, end in _all_boxes(data):
        if kind in (b"mvhd", b"mdhd") and end - content >= 24:
            layout, offset = (">IQ", 20) if data[content] == 1 else (">II", 12)
            scale, duration = struct.unpack_from(layout, data, content + offset)
            yield duration / scale if scale else 0.0


def _sizes(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield the width and height that the headers of an MP4's tracks and frames announce.

    FFmpeg prefers what the frames say. Format: ISO/IEC 14496-12, 8.3.2 and 12.1.3.
    """
    for kind, content, end in _all_boxes(data):
        if kind == b"tkhd" and end - content >= 84:
            width, height = struct.unpack_from(">II", data, end - 8)
            yield width >> 16, height >> 16
        elif kind in _FRAME_ENTRIES and end - content >= 28:
            yield struct.unpack_from(">HH", data, content + 24)


def _decode(
    container: Any,
    stream: VideoStream,
    packets: _Packets,
    times: list[int],
    check: Callable[[], None],
) -> Iterator[tuple[int, VideoFrame]]:
    """Yield the given times, and the frame at each.

    Frames before the last key frame in front of a wanted one are skipped. Times may be a little off
    if a format orders frames otherwise than it shows them.
    """
    span = packets.times[-1] - packets.times[0]
    tolerance = MAX_SHIFT_FRAMES * span / max(1, len(packets.times) - 1)
    frame: VideoFrame | None = None
    frames: Iterator[VideoFrame] = iter(())
    position: int | None = None
    for target in sorted(set(times)):
        key = packets.key_times[max(0, bisect_right(packets.key_times, target) - 1)]
        if position is None or key > position:
            container.seek(key, stream=stream)
            frames = container.decode(stream)
        for frame in frames:
            check()
            position = frame.pts
            if frame.is_corrupt:
                raise ValueError("a frame is damaged")
            if position is not None and position >= target:
                break
        if frame is None or position is None or abs(position - target) > tolerance:
            raise ValueError("a frame is missing")
        yield target, frame


class _Scale:
    """Turns frames into pixels within the limits on sizes."""

    def __init__(
        self, limits: VideoLimits, sampling: Sampling, count: int, aspect: Fraction | None
    ) -> None:
        self._limits = limits
        self._aspect = aspect
        """Width of a pixel by its height."""
        self._max_side = sampling.max_side
        self._max_area = limits.max_sampled_pixels / count

    def to_pixels(self, frame: VideoFrame) -> Pixels:
        """Return a frame upright, with square pixels, and shrunk if it is too large."""
        width, height = frame.width, frame.height
        _check_size(width, height, self._limits)
        aspect = float(self._aspect or 1)
        if 1 / MAX_ASPECT <= aspect <= MAX_ASPECT:
            width = round(width * aspect)
        factor = min(1.0, (self._max_area / (width * height)) ** 0.5)
        if self._max_side is not None:
            factor = min(factor, self._max_side / max(width, height))
        size = max(1, round(factor * width)), max(1, round(factor * height))
        pixels = frame.to_ndarray(
            format="rgb24", width=size[0], height=size[1], interpolation="AREA"
        )
        return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))


def _check_complete(data: bytes, container_format: str) -> None:
    """Raise ``InvalidRequest`` if a part of the file ends behind its end.

    Formats: ISO/IEC 14496-12, 4.2 (boxes); RFC 8794, 4 and 6 (EBML); Microsoft's AVI RIFF
    reference.
    """
    end = _ENDS[container_format](data)
    if end > len(data):
        reason = f"it ends after {len(data)} of its {end} bytes"
        raise _damaged(data, container_format, reason)


def _end_of_boxes(data: bytes) -> int:
    boxes = islice(_boxes(data, 0, len(data)), MAX_ELEMENTS)
    return max((end for _, _, end in boxes), default=0)


def _boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield the type, the start of the content and the end of each box between two offsets."""
    while start + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, start)
        content = start + 8
        if size == 1 and start + 16 <= end:
            (size,) = struct.unpack_from(">Q", data, content)
            content += 8
        if size == 0:  # to the end
            size = end - start
        if size < 8:  # not a box: something behind the video
            return
        yield kind, content, start + size
        start += size


def _all_boxes(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield boxes as :func:`_boxes` does, and those within.

    Raises ``ValueError`` if there are over ``MAX_ELEMENTS``.
    """
    levels = [_boxes(data, 0, len(data))]
    ends = [len(data)]
    for _ in range(MAX_ELEMENTS):
        box = next(levels[-1], None)
        if box is None:
            levels.pop()
            ends.pop()
            if not levels:
                return
            continue
        kind, content, end = box
        end = min(end, ends[-1])  # It can't reach beyond the box around it.
        yield kind, content, end
        if kind in _CONTAINERS and len(levels) < MAX_LEVELS:
            levels.append(_boxes(data, content + _CONTAINERS[kind], end))
            ends.append(end)
    raise ValueError(f"it has over {MAX_ELEMENTS} boxes")


def _end_of_segment(data: bytes) -> int:
    offset = 0
    for _ in range(MAX_ELEMENTS):
        if offset >= len(data):
            break
        _, id_length = _read_number(data, offset)
        size, length = _read_number(data, offset + id_length)
        offset += id_length + length
        if size is None:
            return len(data)
        offset += size
    return offset


def _read_number(data: bytes, offset: int) -> tuple[int | None, int]:
    """Return an EBML number, None if it means "unknown", and the bytes that it takes."""
    first = data[offset] if offset < len(data) else 0
    length = 9 - first.bit_length()
    bits = 7 * length
    value = int.from_bytes(data[offset : offset + length], "big") & ((1 << bits) - 1)
    return (None if value == (1 << bits) - 1 else value), length


def _end_of_riff(data: bytes) -> int:
    return 8 + int.from_bytes(data[4:8], "little")


_CONTAINERS = {
    **dict.fromkeys((b"moov", b"trak", b"edts", b"mdia", b"minf", b"stbl"), 0),
    b"stsd": 8,
}
"""Boxes that contain boxes, and the bytes before the first of these."""
_FRAME_ENTRIES = frozenset({b"avc1", b"avc3", b"hvc1", b"hev1", b"vp08", b"vp09", b"av01", b"mp4v"})
_DEMUXERS = {"MP4": "mp4", "WebM": "matroska", "AVI": "avi"}
_ENDS = {"MP4": _end_of_boxes, "WebM": _end_of_segment, "AVI": _end_of_riff}


def _reason(error: Exception) -> str:
    """Return why decoding failed, without FFmpeg's number of the error and its function."""
    return str(error.strerror if isinstance(error, av.FFmpegError) else error)


def _over(what: str, unit: str, limit: float, actual: float) -> PayloadTooLarge:
    message = f"{_FIELD}: {what}; the limit is {limit:.15g} {unit}"
    return PayloadTooLarge(message, _FIELD, limit, actual)


def _damaged(data: bytes, container_format: str, reason: str) -> InvalidRequest:
    what = f"the {container_format} video of {len(data)} bytes"
    message = f"{_FIELD}: {what} is truncated or damaged ({reason})"
    return InvalidRequest(message[:300], _FIELD)
