"""The files that an attempt reads and writes."""

from __future__ import annotations

from contextlib import suppress

from raylens.jobs.blobs import BlobMissing, compute_digest
from raylens.jobs.files import StoredFile
from raylens.jobs.job import Job
from raylens.jobs.picture_storage import PictureStorage
from raylens.jobs.store import JobStore

MERGE_BYTES = 128 * 2**10
"""Size below which the last part of a file grows instead of another one being added."""


class JobFiles:
    """Files in the store, and their parts in the picture storage."""

    def __init__(self, store: JobStore, storage: PictureStorage) -> None:
        self._store = store
        self._storage = storage

    async def read(self, file_id: str, skip_missing: bool = False) -> bytes:
        """Return a file's contents; those of an unknown file are empty.

        Raises ``BlobMissing`` if a part is missing, unless ``skip_missing`` is true, and
        ``StoreUnavailable`` if the storage fails.
        """
        parts = []
        for digest in await self._store.file_parts(file_id):
            try:
                parts.append(await self._storage.blobs.get_async(digest))
            except BlobMissing:
                if not skip_missing:
                    raise
        return b"".join(parts)

    async def append(self, file: StoredFile, data: bytes, job: Job) -> None:
        """Append data to a file, which is created if it doesn't exist. One call at a time.

        Raises ``Conflict`` if the attempt no longer holds the job, and ``StoreUnavailable`` or
        ``InsufficientStorage`` if the data can't be stored.
        """
        digests = await self._store.file_parts(file.id)
        last = digests[-1] if digests else None
        part = b""
        if last is not None:
            with suppress(BlobMissing):
                part = await self._storage.blobs.get_async(last)
        if not 0 < len(part) < MERGE_BYTES:
            last, part = None, b""
        part += data
        digest = compute_digest(part)
        await self._storage.store({digest: part})
        await self._store.append_to_file(file, digest, len(data), job.id, job.fence, last)
