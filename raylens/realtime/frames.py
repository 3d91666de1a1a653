"""Frames of a live video, and what processes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from raylens.realtime.overlay import Pixels


@dataclass(frozen=True)
class Frame:
    """One frame of a session's video."""

    pixels: Pixels
    """(H, W, 3) RGB, uint8."""
    id: int
    """From 0. Frames that were dropped count too."""
    time_s: float
    """In the video."""
    received_at: float
    """By ``time.monotonic``."""


class FrameProcessor(Protocol):
    """Annotates the frames of one session, one at a time."""

    async def process(self, frame: Frame) -> Pixels:
        """Return the annotated frame, of the same size. It may take longer than a frame lasts:
        meanwhile only the newest frame waits.

        An error is reported to the client, and the frame is shown as it was.
        """
        ...

    def change(self, parameters: Mapping[str, Any]) -> None:
        """Change settings. Raises ``InvalidRequest``, and then changes nothing."""
        ...

    async def close(self) -> None:
        """End. It is called once."""
        ...


Report = Callable[[dict[str, Any]], None]
"""Sends a JSON object to the client. It is called on the event loop, and never blocks."""

OpenProcessor = Callable[[Mapping[str, Any], Report], FrameProcessor]
"""Opens the processor of a session with its first parameters. Raises ``InvalidRequest``."""
