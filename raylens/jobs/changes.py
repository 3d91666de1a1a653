"""The recent changes of jobs, which one call can wait for, however many jobs are watched."""

from __future__ import annotations

import asyncio
import uuid
from collections import deque
from contextlib import suppress
from dataclasses import dataclass

MAX_CHANGES = 8192
"""Changes that are remembered."""


@dataclass(frozen=True)
class Changes:
    """The jobs that changed since a cursor, and the next cursor.

    ``job_ids`` is None if the cursor is too old, or of another process: any job may have changed.
    """

    cursor: str
    job_ids: frozenset[str] | None


class ChangeLog:
    """The ids of jobs in the order in which they changed."""

    def __init__(self, limit: int = MAX_CHANGES) -> None:
        self._name = uuid.uuid4().hex
        self._ids: deque[str] = deque(maxlen=limit)
        self._count = 0
        """Changes so far, forgotten ones included."""
        self._has_changed = asyncio.Event()

    def append(self, job_id: str) -> None:
        self._ids.append(job_id)
        self._count += 1
        self._has_changed.set()

    async def wait(self, cursor: str | None, timeout_s: float) -> Changes:
        """Return the changes since ``cursor``; wait for the first one if there are none.

        The wait ends after ``timeout_s`` seconds. Without a cursor, there is no wait.
        """
        name, _, position = (cursor or "").partition(":")
        if name != self._name:
            return self._since(None)
        seen = int(position)
        if seen == self._count:
            self._has_changed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._has_changed.wait()
        return self._since(seen)

    def _since(self, seen: int | None) -> Changes:
        cursor = f"{self._name}:{self._count}"
        if seen is None or self._count - seen > len(self._ids):
            return Changes(cursor, None)
        first = len(self._ids) - (self._count - seen)
        return Changes(cursor, frozenset(list(self._ids)[first:]))
