"""Video files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Any

import av
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from raylens.core.errors import InvalidRequest
from raylens.realtime.sources.base import (
    ClosableSource,
    ReportProblem,
    SourceAddress,
    SourceFrame,
    SourceOptions,
)
from raylens.realtime.sources.container import (
    FAILURES,
    decode_tolerantly,
    limit_decoder,
    open_video,
    reason_of,
    to_pixels,
)
from raylens.realtime.sources.times import Timeline

FORMATS = (
    "mov,matroska,avi,mpegts,mpeg,mpegvideo,flv,ogg,asf,mjpeg,h264,hevc,m4v,ivf,gif,apng,mxf,nut,dv"
    ",obu,av1,yuv4mpegpipe,wmv,image2,jpeg_pipe,png_pipe,webp_pipe,bmp_pipe,tiff_pipe,wav,mp3,flac"
    ",aac"
)
"""What FFmpeg may take a file for; not playlists, which name other files, nor text."""
DEFAULT_INTERVAL_S = 0.04
TOLERANCE_S = 1.0
"""What a header may promise beyond the last frame."""


class FileSource(ClosableSource):
    """The frames of a video file, one after another, with the times of the video."""

    is_live = False

    def __init__(
        self,
        address: SourceAddress,
        options: SourceOptions,
        report: ReportProblem = lambda problem: None,
    ) -> None:
        super().__init__(address)
        self._options = options
        self._report = report
        self._file: IO[bytes] | None = None
        self._container: Any = None
        self._stream: VideoStream | None = None
        self._frames: Iterator[VideoFrame] = iter(())
        self._timeline = Timeline(DEFAULT_INTERVAL_S)
        self._last: SourceFrame | None = None
        self._damaged = 0
        """Number of packets that could not be decoded."""

    def _read(self) -> SourceFrame | None:
        if self._stream is None:
            self._stream = self._open()
        try:
            frame = next(self._frames, None)
            if frame is None:
                self._check_end(self._stream)
                return None
            pixels = to_pixels(frame, self._stream)
        except FAILURES as error:
            raise self._unavailable(reason_of(error)) from error
        time_s = None if frame.pts is None or frame.time_base is None else frame.time
        self._last = SourceFrame(pixels, self._timeline.place(time_s))
        return self._last

    def _open(self) -> VideoStream:
        shown = self.address.shown
        try:
            self._file = open(self.address.location, "rb")  # noqa: SIM115
            options = {"protocol_whitelist": "none", "format_whitelist": FORMATS}
            self._container, stream = open_video(
                self._file, shown, options, self._options.max_pixels
            )
        except FAILURES as error:
            self._free()
            raise InvalidRequest(f"source: {shown}: {reason_of(error)}", "source") from error
        limit_decoder(stream, self._options.max_pixels, threads=0)
        self._frames = decode_tolerantly(self._container, stream, skip=self._count_damaged)
        rate = stream.average_rate or stream.guessed_rate
        self._timeline = Timeline(1 / float(rate) if rate else DEFAULT_INTERVAL_S)
        return stream

    def _count_damaged(self) -> None:
        self._damaged += 1

    def _check_end(self, stream: VideoStream) -> None:
        """Report damage. Raise ``SourceUnavailable`` if the file ends before its header says."""
        if self._last is None:
            raise self._unavailable("it has no frame that can be read")
        if self._damaged:
            # One damaged packet may cost several frames.
            noun = "frame" if self._damaged == 1 else "frames"
            self._report(
                f"{self.address.shown}: damaged: at least {self._damaged} {noun}"
                " could not be decoded"
            )
        promised_s = 0.0
        if stream.duration and stream.time_base:
            promised_s = float(stream.duration * stream.time_base)
        elif len(self._container.streams) == 1:  # no sound, which may be longer
            promised_s = (self._container.duration or 0) / av.time_base
        last_s = self._last.time_s
        if promised_s > last_s + TOLERANCE_S + 0.1 * promised_s:
            raise self._unavailable(f"the file is cut off: {last_s:.1f} of {promised_s:.1f} s")

    def _free(self) -> None:
        self._frames = iter(())
        if self._container is not None:
            self._container.close()
            self._container = None
        if self._file is not None:
            self._file.close()
            self._file = None
