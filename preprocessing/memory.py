"""A budget of memory that the threads of a preprocessor share.

A file of 34 bytes can announce a picture that takes a gigabyte to decode. Two of them at once would
take two.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from raylens.core.errors import PayloadTooLarge

Reserve = Callable[[int], None]
"""Waits until a number of bytes is free, and keeps them until the work ends."""
POLL_S = 0.1
"""Seconds between two looks at the deadline of work that waits."""
BYTES_PER_PIXEL = {"WEBP": 17, "JPEG": 13, "MPO": 13, "AVIF": 12, "HEIF": 12}
"""The most that Pillow takes to decode a picture, by its name of the format."""
OTHER_BYTES_PER_PIXEL = 10


def estimate_picture(file_format: str | None, width: int, height: int) -> int:
    """Return the bytes that it takes to decode a picture, at most."""
    return width * height * BYTES_PER_PIXEL.get(file_format or "", OTHER_BYTES_PER_PIXEL)


class MemoryBudget:
    """Bytes for all work at a time. Whoever came first is served first, so that large pictures
    don't wait forever."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._used = 0
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()

    @contextmanager
    def open(self, check: Callable[[], None]) -> Iterator[Reserve]:
        """Yield a function that reserves memory until the context ends.

        It calls ``check`` while it waits, which may raise. It raises ``PayloadTooLarge`` for more
        than the whole budget.
        """
        reserved = 0

        def reserve(count: int) -> None:
            nonlocal reserved
            self._take(count, check)
            reserved += count

        try:
            yield reserve
        finally:
            with self._changed:
                self._used -= reserved
                self._changed.notify_all()

    def _take(self, count: int, check: Callable[[], None]) -> None:
        if count > self._max_bytes:
            raise PayloadTooLarge(
                f"image: decoding it takes about {count} bytes of memory;"
                f" the limit is {self._max_bytes} (preprocessor_memory)",
                "image",
                self._max_bytes,
                count,
            )
        ticket = object()
        with self._changed:
            self._waiting.append(ticket)
            try:
                while self._waiting[0] is not ticket or self._used + count > self._max_bytes:
                    self._changed.wait(POLL_S)
                    check()
                self._used += count
            finally:
                self._waiting.remove(ticket)
                self._changed.notify_all()
