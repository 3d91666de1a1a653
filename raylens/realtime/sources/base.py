"""What every source of frames offers, and how it is named."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from raylens.core.errors import FailureClass, RaylensError
from raylens.realtime.overlay import Pixels


class SourceUnavailable(RaylensError):
    """A source can't be opened, or has ended early: it may be tried again."""

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
    location: str
    """A path, a URL, or the device of a camera; empty for standard input."""
    host_address: str | None = None
    """The IP address to connect to instead of looking up the URL's host. Then no redirect is
    followed."""

    @property
    def shown(self) -> str:
        """The location without user name and password."""
        raise NotImplementedError


@dataclass(frozen=True)
class SourceFrame:
    pixels: Pixels
    """(H, W, 3) RGB, uint8."""
    time_s: float
    """In the video; of a live source, seconds since it was opened."""


class Source(Protocol):
    """An open source. It is used by one thread, except for :meth:`close`."""

    @property
    def is_live(self) -> bool:
        """Whether frames come by themselves, so that those nobody takes are lost."""
        ...

    def read(self) -> SourceFrame | None:
        """Wait for the next frame, and return it; None at the end.

        Raises ``SourceUnavailable``.
        """
        ...

    def close(self) -> None:
        """Free the source. A :meth:`read` that waits in another thread ends soon."""
        ...
