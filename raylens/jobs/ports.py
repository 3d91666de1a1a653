"""The interface of the queue for the HTTP layer."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

from raylens.jobs.changes import Changes
from raylens.jobs.files import StoredFile
from raylens.jobs.job import BULKY_FIELDS, Delivery, Job, Stats
from raylens.jobs.store import MAX_DELIVERIES, JobQuery


class JobService(Protocol):
    """The job queue. The times of what it returns are on the wall clock.

    A method that takes a ``job_id`` raises ``UnknownJob`` if there is no such job. Every method
    raises ``Overloaded`` if the queue or its store can't be reached within ``jobs.queue_timeout_s``
    seconds. A call that failed may have taken effect. It may be retried, with these differences: if
    the first ``requeue`` took effect, a second one raises ``Conflict`` while the job is queued or
    running; a second ``redeliver`` may send the delivery twice; a second ``remove`` raises
    ``UnknownJob``.
    """

    async def submit(self, job: Job, pictures: Mapping[str, bytes]) -> Job:
        """Store a job and its pictures, and return the stored job.

        ``pictures`` maps digests to bytes. If a job was submitted before with the same idempotency
        key, return that job. The job and its pictures are durable when this returns. Raises
        ``QueueFull``, ``InsufficientStorage``, or ``Conflict`` if the key was used for a different
        request.
        """
        ...

    async def find_submitted(self, idempotency_key: str, digest: str) -> Job | None:
        """Return the job that was submitted with an idempotency key; None if there is none.

        Raises ``Conflict`` if its digest is another one.
        """
        ...

    async def get(self, job_id: str) -> Job: ...

    async def get_many(
        self, job_ids: Collection[str], bulky_fields: Collection[str] = BULKY_FIELDS
    ) -> dict[str, Job]:
        """Return the jobs that exist, by id, with these of ``BULKY_FIELDS``."""
        ...

    async def list_jobs(self, query: JobQuery) -> list[Job]: ...

    async def read_picture(self, job_id: str, digest: str) -> bytes:
        """Return the bytes of a picture or video of a job.

        Raises ``UnknownFile`` if the job has none with this digest, or has it no longer.
        """
        ...

    async def cancel(self, job_id: str) -> Job:
        """Cancel a job, and stop its attempt if it is running.

        Raises ``Conflict`` if the job has succeeded or failed.
        """
        ...

    async def remove(self, job_id: str) -> Job:
        """Delete a job that has ended, with its deliveries and its pictures, and return it.

        Raises ``Conflict`` if it has not ended.
        """
        ...

    async def requeue(self, job_id: str) -> Job:
        """Queue a failed or canceled job again.

        Raises ``QueueFull``, or ``Conflict`` if the job is in another state or its pictures have
        been removed.
        """
        ...

    async def stats(self) -> Stats: ...

    async def wait_for_changes(self, cursor: str | None, timeout_s: float) -> Changes:
        """Return the jobs that have changed since ``cursor``; if there are none, wait for one.

        The wait ends after ``timeout_s`` seconds. Changes by other processes that share the store
        are not among them. Without a cursor, return one at once.
        """
        ...

    async def deliveries(
        self, job_id: str, limit: int = MAX_DELIVERIES, before: int | None = None
    ) -> list[Delivery]:
        """Return the last deliveries of a job, of those with numbers below ``before``, ordered by
        number."""
        ...

    async def redeliver(self, job_id: str, number: int) -> Delivery:
        """Send a delivery again, with its attempts reset to 0.

        Raises ``UnknownJob`` if the job has no delivery of this number, and ``TooManyRequests`` if
        the job's deliveries were sent again too often.
        """
        ...

    async def add_file(self, file: StoredFile, data: bytes) -> StoredFile:
        """Store a file, and return it as it was stored. It is durable when this returns.

        Raises ``InsufficientStorage``.
        """
        ...

    async def get_file(self, file_id: str) -> StoredFile:
        """Raises ``UnknownFile``."""
        ...

    async def keep_file(self, file_id: str, seconds: float) -> StoredFile:
        """Keep a file for at least ``seconds`` from now, and return it. Raises ``UnknownFile``."""
        ...

    async def read_file_part(self, file_id: str, number: int) -> bytes | None:
        """Return a part of a file, counted from 0; None if there is no such part.

        While a batch writes to the file, its last part grows. Raises ``UnknownFile`` if the part's
        contents are missing.
        """
        ...

    async def list_files(
        self,
        purpose: str | None,
        limit: int,
        after_id: str | None,
        newest_first: bool,
        owner: str | None = None,
    ) -> list[StoredFile]:
        """Return at most ``limit`` files in order of creation. ``purpose`` and ``owner`` may be
        None for any."""
        ...

    async def remove_file(self, file_id: str) -> None:
        """Delete a file. Raises ``UnknownFile``."""
        ...
