"""The files that an attempt reads and writes."""

from __future__ import annotations

from raylens.jobs.blobs import BlobMissing, compute_digest
from raylens.jobs.files import StoredFile
from raylens.jobs.job import Job
from raylens.jobs.picture_storage import PictureStorage
from raylens.jobs.store import JobStore


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
        """Append a part to a file, which is created with its first part.

        Raises ``Conflict`` if the attempt no longer holds the job, and ``StoreUnavailable`` or
        ``InsufficientStorage`` if the part can't be stored.
        """
        digest = compute_digest(data)
        await self._storage.store({digest: data})
        await self._store.append_to_file(file, digest, len(data), job.id, job.fence)
