"""The recent changes of jobs, which one call can wait for, however many jobs are watched."""

from __future__ import annotations

import asyncio
import math
import uuid
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

MAX_CHANGES = 8192
"""Changes that are remembered."""
MAX_DIGITS = 18
"""Of a position in a cursor, which may come from a client."""


@dataclass(frozen=True)
class Changes:
    """The jobs that changed since a cursor, and the next cursor.

    ``owners`` has the owner of each by its id. It is None if the cursor is too old, or of another
    process: any job may have changed.
    """

    cursor: str
    owners: Mapping[str, str] | None


class ChangeLog:
    """The ids and owners of jobs in the order in which they changed."""

    def __init__(self, limit: int = MAX_CHANGES) -> None:
        self._name = uuid.uuid4().hex
        self._jobs: deque[tuple[str, str]] = deque(maxlen=limit)
        self._count = 0
        """Changes so far, forgotten ones included."""
        self._has_changed = asyncio.Event()

    def append(self, job_id: str, owner: str = "") -> None:
        self._jobs.append((job_id, owner))
        self._count += 1
        self._has_changed.set()

    async def wait(self, cursor: str | None, timeout_s: float) -> Changes:
        """Return the changes since ``cursor``; wait for the first one if there are none.

        The wait ends after ``timeout_s`` seconds. Without a cursor, there is no wait.
        """
        name, _, position = (cursor or "").partition(":")
        seen = int(position) if position.isdecimal() and len(position) <= MAX_DIGITS else math.inf
        if name != self._name or seen > self._count:
            return self._since(None)
        if seen == self._count:
            self._has_changed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._has_changed.wait()
        return self._since(seen)

    def _since(self, seen: float | None) -> Changes:
        cursor = f"{self._name}:{self._count}"
        if seen is None or self._count - seen > len(self._jobs):
            return Changes(cursor, None)
        first = len(self._jobs) - (self._count - int(seen))
        return Changes(cursor, dict(islice(self._jobs, first, None)))
