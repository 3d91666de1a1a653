"""MJPEG on the standard input."""

from __future__ import annotations

import os
import select
import time
from collections import deque
from collections.abc import Callable

from raylens.core.errors import InvalidRequest
from raylens.realtime.sources.base import (
    ClosableSource,
    ReportProblem,
    SourceAddress,
    SourceFrame,
    SourceOptions,
)
from raylens.realtime.sources.mjpeg import Splitter, StreamError, guess_splitter
from raylens.realtime.sources.pictures import BrokenPicture, decode_picture

CHUNK_BYTES = 64 * 1024
POLL_S = 0.1
MIN_BEGINNING = 3
"""Bytes that show what kind of stream it is."""


class StdinSource(ClosableSource):
    """The JPEG pictures that another process writes. Its end is the end for good."""

    def __init__(
        self,
        address: SourceAddress,
        options: SourceOptions,
        report: ReportProblem,
        descriptor: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(address)
        self._options = options
        self._report = report
        self._descriptor = descriptor
        self._clock = clock
        self._opened_at: float | None = None
        self._beginning = b""
        self._splitter: Splitter | None = None
        self._pictures: deque[bytes] = deque()
        self._has_frames = False

    def _read(self) -> SourceFrame | None:
        if self._opened_at is None:
            self._opened_at = self._clock()
        while True:
            while self._pictures:
                try:
                    pixels = decode_picture(self._pictures.popleft(), self._options)
                except BrokenPicture as error:
                    self._report(f"{self.address.shown}: {error}")
                    continue
                self._has_frames = True
                return SourceFrame(pixels, self._clock() - self._opened_at)
            data = self._receive()
            if not data:
                if not self._has_frames:
                    raise self._invalid("it ended before the first picture")
                return None
            self._split(data)

    def _split(self, data: bytes) -> None:
        try:
            if self._splitter is None:
                self._beginning += data
                if len(self._beginning) < MIN_BEGINNING:
                    return
                data = self._beginning
                self._splitter = guess_splitter(data[:CHUNK_BYTES], self._options.max_picture_bytes)
            self._pictures.extend(self._splitter.feed(data))
        except StreamError as error:
            raise self._invalid(str(error)) from None

    def _invalid(self, reason: str) -> InvalidRequest:
        """Return the error for what can't be read a second time."""
        return InvalidRequest(f"source: {self.address.shown}: {reason}", "source")

    def _receive(self) -> bytes:
        """Wait for bytes, and return them; nothing at the end."""
        while not self._closed.is_set():
            readable, _, _ = select.select([self._descriptor], [], [], POLL_S)
            if readable:
                return os.read(self._descriptor, CHUNK_BYTES)
        raise self._unavailable("it is closed")
