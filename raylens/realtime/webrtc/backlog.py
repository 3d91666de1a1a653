"""The queue of encoded frames before aiortc's decoder, bounded.

aiortc's own grows for ever if frames come faster than the machine decodes them. A frame builds on
those before it, so none can be left out before the next whole picture: this queue then drops
everything up to that picture, and asks the client for one.
"""

from __future__ import annotations

import queue
from typing import Any

from aiortc import RTCRtpReceiver

MAX_FRAMES = 15
"""Encoded frames that wait: half a second."""
REPEAT_FRAMES = 15
"""Dropped frames after which the client is asked for a whole picture again."""
_H264_WHOLE = frozenset({5, 7})
"""NAL unit types of a whole picture, and of the parameters before it."""


class DecoderQueue(queue.Queue[Any]):
    """Holds ``(codec, frame)``; None ends the decoder. ``put`` is called on the event loop."""

    def __init__(self, receiver: RTCRtpReceiver) -> None:
        super().__init__()
        self._receiver = receiver
        self._waits_for_whole_picture = False
        self._dropped_since_request = 0
        self._dropped = 0

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        if item is None:
            self._clear()  # aiortc waits for the decoder to end, on the event loop
        elif self._must_drop(*item):
            self._drop(1)
            return
        super().put(item, block, timeout)

    def take_dropped(self) -> int:
        """Return how many frames were dropped since the last call."""
        dropped, self._dropped = self._dropped, 0
        return dropped

    def _must_drop(self, codec: Any, frame: Any) -> bool:
        is_whole = is_whole_picture(codec.mimeType, frame.data)
        if self.qsize() >= MAX_FRAMES:
            self._drop(self._clear())
            self._waits_for_whole_picture = True
            self._dropped_since_request = REPEAT_FRAMES
        if is_whole:
            self._waits_for_whole_picture = False
        return self._waits_for_whole_picture

    def _drop(self, count: int) -> None:
        self._dropped += count
        self._dropped_since_request += count
        if self._dropped_since_request >= REPEAT_FRAMES and self._waits_for_whole_picture:
            self._dropped_since_request = 0
            # aiortc sends a picture loss indication with the next packet.
            getattr(self._receiver, "_RTCRtpReceiver__decoder_error").set()  # noqa: B009

    def _clear(self) -> int:
        with self.mutex:
            count = len(self.queue)
            self.queue.clear()
        return count


def bound_backlog(receiver: RTCRtpReceiver) -> DecoderQueue:
    """Give a receiver a bounded queue, before it receives."""
    bounded = DecoderQueue(receiver)
    setattr(receiver, "_RTCRtpReceiver__decoder_queue", bounded)  # noqa: B010
    return bounded


def is_whole_picture(mime_type: str, data: bytes) -> bool:
    """Whether an encoded frame needs none before it."""
    if mime_type.lower() == "video/vp8":
        return bool(data) and not data[0] & 1  # RFC 6386, section 9.1
    start = data.find(b"\0\0\1")
    while start >= 0 and start + 3 < len(data):
        if data[start + 3] & 31 in _H264_WHOLE:
            return True
        start = data.find(b"\0\0\1", start + 3)
    return False
