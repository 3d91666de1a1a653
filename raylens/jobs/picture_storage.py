"""Stores the pictures of submissions, within limits on what they take."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Mapping

from raylens.core.config import JobsConfig
from raylens.core.errors import InsufficientStorage
from raylens.jobs.blobs import RETRY_AFTER_S, BlobStorage
from raylens.jobs.clock import StoreClock
from raylens.jobs.store import STORAGE_RETRY_AFTER_S, JobStore, StoreUnavailable

logger = logging.getLogger(__name__)

FREE_SPACE_PERIOD_S = 1.0
"""Seconds between two looks at the free space of the disk."""
MAX_WRITE_S = 60.0
"""Longest time from the record of a blob to the end of its write, in seconds."""
BLOB_WAIT_S = 0.1
"""Pause before the next look at a blob that is being removed, in seconds."""


class PictureStorage:
    """The blob storage, and the records of its blobs in the store.

    ``free_bytes`` returns the free bytes of the disk that holds the queue's files. It may block, or
    raise ``OSError``.
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
        self._free_space: asyncio.Future[float] | None = None
        """The last look at the free space."""
        self._free_space_at = -math.inf

    async def check_free_space(self) -> None:
        """Raise ``InsufficientStorage`` if the disk has too little free space, and
        ``StoreUnavailable`` if that can't be found out."""
        try:
            free_space = await self.free_bytes()
        except OSError as error:
            logger.warning("looking at the free space of the disk failed: %s", error)
            message = "the disk of the job queue can't be read; see the server's log"
            raise StoreUnavailable(message, None, None, None, RETRY_AFTER_S) from None
        floor = self._config.min_free_bytes
        if free_space < floor:
            message = (
                f"the disk of the job queue has {free_space:.0f} free bytes;"
                f" the limit is {int(floor)} (jobs.min_free_bytes)"
            )
            raise InsufficientStorage(
                message, "jobs.min_free_bytes", floor, free_space, STORAGE_RETRY_AFTER_S
            )

    async def free_bytes(self) -> float:
        """Return the free bytes of the disk, as they were a moment ago; infinity if no disk holds
        the queue's files. Raises ``OSError``."""
        now = self._clock.machine.monotonic()
        look = self._free_space
        if look is None or (look.done() and now - self._free_space_at > FREE_SPACE_PERIOD_S):
            look = asyncio.ensure_future(asyncio.to_thread(self._free_bytes))
            self._free_space, self._free_space_at = look, now
        return look.result() if look.done() else await asyncio.shield(look)

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
