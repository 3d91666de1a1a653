"""Stores the pictures of submissions, within limits on what they take."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping

from raylens.core.config import JobsConfig
from raylens.core.errors import InsufficientStorage
from raylens.jobs.blobs import RETRY_AFTER_S, BlobStorage
from raylens.jobs.clock import StoreClock
from raylens.jobs.store import STORAGE_RETRY_AFTER_S, JobStore, StoreUnavailable

FREE_SPACE_PERIOD_S = 1.0
"""Seconds between two looks at the free space of the disk."""
MAX_WRITE_S = 60.0
"""Longest time from the record of a blob to the end of its write, in seconds."""
BLOB_WAIT_S = 0.1
"""Pause before the next look at a blob that is being removed, in seconds."""


class PictureStorage:
    """The blob storage, and the records of its blobs in the store.

    ``free_bytes`` returns the free bytes of the disk that holds the queue's files.
    """

    def __init__(
        self,
        store: JobStore,
        blobs: BlobStorage,
        config: JobsConfig,
        clock: StoreClock,
        free_bytes: Callable[[], float],
    ) -> None:
        self.blobs = blobs
        self._store = store
        self._config = config
        self._clock = clock
        self._free_bytes = free_bytes
        self._free_space = math.inf
        self._free_space_at = -math.inf

    def check_free_space(self) -> None:
        """Raise ``InsufficientStorage`` if the disk has too little free space."""
        now = self._clock.machine.monotonic()
        if now - self._free_space_at > FREE_SPACE_PERIOD_S:
            self._free_space = self._free_bytes()
            self._free_space_at = now
        floor = self._config.min_free_bytes
        if self._free_space < floor:
            message = (
                f"the disk of the job queue has {self._free_space:.0f} free bytes;"
                f" the limit is {int(floor)} (jobs.min_free_bytes)"
            )
            raise InsufficientStorage(
                message, "jobs.min_free_bytes", floor, self._free_space, STORAGE_RETRY_AFTER_S
            )

    async def store(self, pictures: Mapping[str, bytes]) -> None:
        """Store pictures by digest. They are durable when this returns.

        Raises ``InsufficientStorage`` and ``StoreUnavailable``.
        """
        sizes = {digest: len(data) for digest, data in pictures.items()}
        quota = self._config.max_picture_bytes
        touched_at = self._clock.now()
        while sizes:
            being_removed = await self._store.touch_blobs(sizes, self._clock.now(), quota)
            sizes = {digest: sizes[digest] for digest in being_removed}
            if sizes:
                await asyncio.sleep(BLOB_WAIT_S)
        writes = (self.blobs.put_async(digest, data) for digest, data in pictures.items())
        await asyncio.gather(*writes)
        if self._clock.now() - touched_at > MAX_WRITE_S:
            # The cleaner might soon remove them, before a job or a file refers to them.
            message = f"storing the pictures took longer than {MAX_WRITE_S:g} s"
            raise StoreUnavailable(message, None, MAX_WRITE_S, None, RETRY_AFTER_S)
