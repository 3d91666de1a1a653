"""What every source of frames offers, and how it is named."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol
from urllib.parse import urlsplit

from raylens.core.errors import FailureClass, RaylensError
from raylens.realtime.overlay import Pixels

MAX_PIXELS = 33_000_000
"""Of a frame: a little less than 8K."""
MAX_PICTURE_BYTES = 32 * 2**20


class SourceUnavailable(RaylensError):
    """A source can't be opened, or has ended early. It may be tried again."""

    http_status = 502
    code = "source_unavailable"
    failure_class = FailureClass.TRANSIENT


class SourceKind(StrEnum):
    FILE = "file"
    RTSP = "rtsp"
    HTTP = "http"
    """An MJPEG stream, or one picture that is asked for again and again."""
    FOLDER = "folder"
    CAMERA = "camera"
    STDIN = "stdin"
    """An MJPEG stream."""


@dataclass(frozen=True)
class SourceAddress:
    """Where frames come from."""

    kind: SourceKind
    location: str = field(repr=False)
    """A path, a URL, or the device of a camera; empty for standard input."""
    host_address: str | None = None
    """The IP address to connect to instead of looking up the URL's host. Then no redirect is
    followed."""

    @property
    def shown(self) -> str:
        """The location without what may be secret: user name, password and the URL's query."""
        match self.kind:
            case SourceKind.STDIN:
                return "standard input"
            case SourceKind.RTSP | SourceKind.HTTP:
                url = urlsplit(self.location)
                host = url.netloc.rpartition("@")[2]
                return f"{url.scheme}://{host}{url.path}{'?…' if url.query else ''}"
        return self.location


@dataclass(frozen=True)
class SourceOptions:
    """Limits on sources, and the pace of sources that have none of their own."""

    open_timeout_s: float = 10.0
    """Until the first frame."""
    read_timeout_s: float = 10.0
    """Between two frames of a live source."""
    max_pixels: int = MAX_PIXELS
    max_picture_bytes: int = MAX_PICTURE_BYTES
    """Of a picture in a stream or a folder."""
    snapshot_interval_s: float = 1.0
    """Between two requests for a picture."""
    picture_interval_s: float = 1.0
    """Between two pictures of a folder that is a video."""
    is_followed: bool = False
    """Whether a folder is live: only the pictures that come from now on are its frames."""
    follows_links: bool = True
    """Whether a picture in a folder may be a symbolic link, which may lead out of it."""


@dataclass(frozen=True)
class SourceFrame:
    pixels: Pixels
    """(H, W, 3) RGB, uint8."""
    time_s: float
    """In the video; of a live source, seconds since it was opened."""


class Source(Protocol):
    """A source of frames. It is used by one thread, except for :meth:`close`."""

    @property
    def is_live(self) -> bool:
        """Whether frames come at their own pace, and are lost if nobody takes them."""
        ...

    def read(self) -> SourceFrame | None:
        """Wait for the next frame, and return it; None after the last one.

        The first call opens the source. Raises ``SourceUnavailable`` if the source fails or a
        camera's stream ends, and ``InvalidRequest`` if it makes no sense to try again.
        """
        ...

    def close(self) -> None:
        """Free the source. It never blocks.

        If another thread is in :meth:`read`, that ends at once, and that thread frees the source,
        either as it leaves ``read`` or with a ``close`` of its own.
        """
        ...


ReportProblem = Callable[[str], None]
"""Takes a sentence about something that was skipped. It is called by the reading thread."""


class ClosableSource(ABC):
    """A source whose resources belong to the thread that reads, as FFmpeg demands."""

    is_live = True

    def __init__(self, address: SourceAddress) -> None:
        self.address = address
        self._closed = threading.Event()
        self._reader: threading.Thread | None = None

    def read(self) -> SourceFrame | None:
        self._reader = threading.current_thread()
        try:
            if self._closed.is_set():
                raise self._unavailable("it is closed")
            return self._read()
        finally:
            if self._closed.is_set():
                self._free()

    def close(self) -> None:
        self._closed.set()
        self._interrupt()
        reader = self._reader
        if reader is None or reader is threading.current_thread() or not reader.is_alive():
            self._free()

    @abstractmethod
    def _read(self) -> SourceFrame | None:
        """Open the source if it isn't open, and return the next frame."""

    def _interrupt(self) -> None:
        """End a :meth:`_read` in another thread at once. That may raise anything then."""
        return

    def _free(self) -> None:
        """Free everything. It may be called twice, but never during :meth:`_read`."""
        return

    def _unavailable(self, reason: str) -> SourceUnavailable:
        return SourceUnavailable(f"{self.address.shown}: {reason}", "source")
