"""Cameras of this machine, through Video4Linux."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any

import av

from raylens.core.errors import InvalidRequest
from raylens.realtime.sources.base import (
    ClosableSource,
    SourceAddress,
    SourceFrame,
    SourceOptions,
)
from raylens.realtime.sources.container import (
    FAILURES,
    limit_decoder,
    open_video,
    reason_of,
    to_pixels,
)

NON_BLOCKING = "4"
"""``AVFMT_FLAG_NONBLOCK``, which has no name among the options: without it, FFmpeg
waits for a camera that shows nothing, and nothing can end that."""
POLL_S = 0.005


class CameraSource(ClosableSource):
    """The frames of a camera, as they come."""

    def __init__(
        self,
        address: SourceAddress,
        options: SourceOptions,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(address)
        self._options = options
        self._clock = clock
        self._container: Any = None
        self._stream: Any = None
        self._opened_at = 0.0

    def _read(self) -> SourceFrame | None:
        if self._stream is None:
            self._open()
        deadline = self._clock() + self._options.read_timeout_s
        while not self._closed.wait(POLL_S):
            frame = self._grab()
            now = self._clock()
            if frame is not None:
                return SourceFrame(to_pixels(frame, self._stream), now - self._opened_at)
            if now > deadline:
                raise self._unavailable(f"no frame for {self._options.read_timeout_s:g} s")
        raise self._unavailable("it is closed")

    def _grab(self) -> Any:
        """Return the next frame if there is one."""
        try:
            frames = next(self._container.demux(self._stream)).decode()
            return frames[-1] if frames else None
        except (av.error.BlockingIOError, av.error.InvalidDataError):
            return None
        except (av.FFmpegError, StopIteration) as error:
            raise self._unavailable(f"the camera stopped: {reason_of(error)}") from error

    def _open(self) -> None:
        device = self.address.location
        if not sys.platform.startswith("linux"):
            raise InvalidRequest("source: cameras work on Linux only", "source")
        if not os.path.exists(device):
            raise self._unavailable("no such camera")
        limit = self._options.open_timeout_s
        try:
            self._container, self._stream = open_video(
                device,
                self.address.shown,
                {"fflags": f"+{NON_BLOCKING}"},
                self._options.max_pixels,
                format="v4l2",
                timeout=(limit, limit),
            )
        except FAILURES as error:
            raise self._unavailable(reason_of(error)) from error
        limit_decoder(self._stream, self._options.max_pixels, threads=1)
        self._opened_at = self._clock()

    def _free(self) -> None:
        if self._container is not None:
            self._container.close()
            self._container = self._stream = None
