"""Cameras over RTSP."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import av
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from raylens.realtime.sources.base import (
    ClosableSource,
    SourceAddress,
    SourceFrame,
    SourceOptions,
)
from raylens.realtime.sources.container import (
    FAILURES,
    NoVideo,
    decode_tolerantly,
    limit_decoder,
    open_video,
    reason_of,
    to_pixels,
)
from raylens.realtime.sources.rtsp_proxy import RtspProxy

_OPTIONS = {
    "rtsp_transport": "tcp",
    "allowed_media_types": "video",
    "protocol_whitelist": "tcp",
    # What cameras send. FFmpeg has hundreds of other decoders, for a hostile one to try.
    "codec_whitelist": "h264,hevc,mjpeg,mpeg4,h263,vp8,vp9,av1,libdav1d",
    "fflags": "nobuffer",
    "analyzeduration": "3000000",
    "fpsprobesize": "1",
    "max_delay": "0",
}
KEY_FRAME_FACTOR = 3
"""A stream may send packets without a frame for this many times ``read_timeout_s``."""


class RtspSource(ClosableSource):
    """The frames of an RTSP stream, as they come, over TCP."""

    def __init__(
        self,
        address: SourceAddress,
        options: SourceOptions,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(address)
        self._options = options
        self._clock = clock
        self._proxy: RtspProxy | None = None
        self._container: Any = None
        self._stream: VideoStream | None = None
        self._frames: Iterator[VideoFrame] = iter(())
        self._opened_at = 0.0
        self._last_at = 0.0
        """When the last undamaged frame came."""

    def _read(self) -> SourceFrame | None:
        try:
            if self._stream is None:
                self._stream = self._open()
            frame = next(self._frames, None)
            if frame is not None:
                return self._take(frame, self._stream)
        except FAILURES as error:
            raise self._unavailable(self._reason(error)) from error
        except NoVideo:
            raise self._unavailable("no video") from None
        raise self._unavailable(self._reason(None))

    def _take(self, frame: VideoFrame, stream: VideoStream) -> SourceFrame:
        pixels, now = to_pixels(frame, stream), self._clock()
        if not frame.is_corrupt:  # FFmpeg makes pictures even of random bytes
            self._last_at = now
        return SourceFrame(pixels, now - self._opened_at)

    def _open(self) -> VideoStream:
        limits = self._options.open_timeout_s, self._options.read_timeout_s
        proxy = self._proxy = RtspProxy(self.address, self._options)
        url = proxy.start()
        if self._closed.is_set():  # since the last look at it
            proxy.stop()
        self._container, stream = open_video(
            url,
            self.address.shown,
            _OPTIONS,
            self._options.max_pixels,
            format="rtsp",
            timeout=limits,
        )
        limit_decoder(stream, self._options.max_pixels, threads=1)
        self._frames = decode_tolerantly(self._container, stream, self._check_progress)
        self._opened_at = self._last_at = self._clock()
        return stream

    def _check_progress(self) -> None:
        """Raise ``SourceUnavailable`` if packets have long come without pictures.

        That may take many seconds, since pictures begin with a key frame, and some cameras send
        one rarely.
        """
        limit = KEY_FRAME_FACTOR * self._options.read_timeout_s
        if self._clock() > self._last_at + limit:
            raise self._unavailable(f"no picture that can be read for {limit:g} s")

    def _reason(self, error: Exception | None) -> str:
        """Return why the stream failed, as far as the proxy knows."""
        if self._closed.is_set():
            return "it is closed"
        proxy = self._proxy
        if proxy is not None:
            proxy.stop()
            proxy.join()
        if proxy is not None and proxy.failure is not None:
            return proxy.failure
        if isinstance(error, av.error.ExitError):
            return f"no picture for {self._options.read_timeout_s:g} s"
        return "the stream ended" if error is None else reason_of(error)

    def _interrupt(self) -> None:
        if self._proxy is not None:
            self._proxy.stop()

    def _free(self) -> None:
        self._frames = iter(())
        proxy, self._proxy = self._proxy, None
        if proxy is not None:
            proxy.stop()
        if self._container is not None:
            self._container.close()
            self._container = None
        if proxy is not None:
            proxy.join()
