"""The files that an attempt reads and writes."""

from __future__ import annotations

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

    async def read(self, file_id: str) -> bytes:
        """Return a file's contents; those of an unknown file are empty.

        Raises ``StoreUnavailable`` if they can't be read.
        """
        digests = await self._store.file_parts(file_id)
        return b"".join([await self._read_part(digest) for digest in digests])

    async def _read_part(self, digest: str) -> bytes:
        try:
            return await self._storage.blobs.get_async(digest)
        except BlobMissing:
            return b""

    async def append(self, file: StoredFile, data: bytes, job: Job) -> None:
        """Append data to a file, which is created if it doesn't exist.

        Raises ``Conflict`` if the attempt no longer holds the job, and ``StoreUnavailable`` or
        ``InsufficientStorage`` if the data can't be stored.
        """
        digests = await self._store.file_parts(file.id)
        last = digests[-1] if digests else None
        part = b"" if last is None else await self._read_part(last)
        if not 0 < len(part) < MERGE_BYTES:
            last, part = None, b""
        part += data
        digest = compute_digest(part)
        await self._storage.store({digest: part})
        await self._store.append_to_file(file, digest, len(data), job.id, job.fence, last)
