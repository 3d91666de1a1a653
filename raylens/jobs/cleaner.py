"""Deletes what is past its time to live, and reads the store's clock."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import contextmanager, suppress

from raylens.core.config import JobsConfig
from raylens.core.errors import RaylensError
from raylens.jobs.blobs import BlobStorage
from raylens.jobs.clock import StoreClock
from raylens.jobs.store import JobStore

logger = logging.getLogger(__name__)

CLEANUP_PERIOD_S = 60.0
PURGE_BATCH = 200
"""Maximum number of jobs deleted per transaction."""
BLOB_REMOVAL_BATCH = 10
"""Maximum number of blobs marked for removal at a time."""
BLOB_REMOVAL_S = 60.0
"""How long a blob stays marked for removal, unless the mark is renewed."""
REMOVAL_RETRY_S = 3600.0
"""Time after which a blob that could not be removed is tried again, in seconds."""
MIN_BLOB_GRACE_S = 120.0
"""How long an unreferenced blob is kept at least after its last touch, in seconds.

This covers the time between writing a blob and adding its job, ``jobs.queue_timeout_s``.
"""


class Cleaner:
    """Cleans up one store and its blobs. Several processes may do so at a time."""

    def __init__(
        self, store: JobStore, blobs: BlobStorage, config: JobsConfig, clock: StoreClock
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._config = config
        self._clock = clock
        self._blob_grace_s = max(MIN_BLOB_GRACE_S, 2 * config.queue_timeout_s)
        self._has_expired = asyncio.Event()
        self._has_unused = asyncio.Event()
        self._marked_until = 0.0
        """Until when the blobs that are being removed are marked."""

    def wake(self) -> None:
        """Clean up soon: something has been removed."""
        self._has_expired.set()

    async def serve(self) -> None:
        """Clean up, and look after the store's clock and counts, until canceled.

        Each does so in a loop of its own: the storage of blobs may be slow.
        """
        async with asyncio.TaskGroup() as group:
            group.create_task(_repeat(self._check_store, "checking the store", asyncio.Event()))
            group.create_task(_repeat(self._delete_expired, "deleting jobs", self._has_expired))
            group.create_task(_repeat(self._remove_unused, "removing pictures", self._has_unused))

    async def _check_store(self) -> None:
        self._clock.set(await self._store.read_clock())
        await self._store.check_counts()

    async def _delete_expired(self) -> None:
        """Delete what is past its time to live: jobs, deliveries, pictures, files."""
        config = self._config
        for delete, ttl_s in (
            (self._store.purge, config.result_ttl_s),
            (self._store.purge_deliveries, config.result_ttl_s),  # of jobs that have no end
            (self._store.drop_pictures, config.failed_pictures_ttl_s),
            (self._store.purge_files, 0.0),
        ):
            while await delete(self._clock.now() - ttl_s, PURGE_BATCH) == PURGE_BATCH:
                await asyncio.sleep(0)
        self._has_unused.set()

    async def _remove_unused(self) -> None:
        while await self._remove_batch():
            await asyncio.sleep(0)

    async def _remove_batch(self) -> bool:
        """Remove some unused blobs, outside of any transaction. Return whether to go on."""
        now = self._clock.now()
        self._marked_until = now + BLOB_REMOVAL_S
        digests = await self._store.mark_unused_blobs(
            now - self._blob_grace_s, now, self._marked_until, BLOB_REMOVAL_BATCH
        )
        removed: list[str] = []
        failed: list[str] = []
        for digest in digests:
            is_removed = await self._remove(digest, digests)
            (removed if is_removed else failed).append(digest)
        if removed:
            await self._store.forget_blobs(removed)
        if failed:  # the next cleanup tries others
            await self._store.unmark_blobs(failed, self._clock.now() + REMOVAL_RETRY_S)
        return len(digests) == BLOB_REMOVAL_BATCH and bool(removed)

    async def _remove(self, digest: str, marked: Collection[str]) -> bool:
        """Remove a blob, and renew the marks of all meanwhile. Return whether that succeeded.

        However long the storage takes, no submission may take over what it is about to remove.
        """
        removal = asyncio.ensure_future(self._blobs.remove_async(digest))
        while not removal.done():
            await asyncio.wait({removal}, timeout=BLOB_REMOVAL_S / 4)
            now = self._clock.now()
            if now > self._marked_until - BLOB_REMOVAL_S / 2:
                self._marked_until = now + BLOB_REMOVAL_S
                await self._store.renew_marks(marked, self._marked_until)
        try:
            removal.result()
        except RaylensError:  # the storage has logged it
            return False
        return True


async def _repeat(work: Callable[[], Awaitable[None]], name: str, is_due: asyncio.Event) -> None:
    """Do some work every ``CLEANUP_PERIOD_S`` seconds, and when it is due before."""
    while True:
        with log_errors(f"{name} failed"):
            await work()
        with suppress(TimeoutError):
            async with asyncio.timeout(CLEANUP_PERIOD_S):
                await is_due.wait()
        is_due.clear()


@contextmanager
def log_errors(message: str) -> Iterator[None]:
    """Log an exception under ``message`` and suppress it."""
    try:
        yield
    except RaylensError as error:
        logger.warning("%s: %s", message, error)
    except Exception:
        logger.exception(message)
