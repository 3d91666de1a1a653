"""The queue as the HTTP layer sees it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

from raylens.jobs.job import Delivery, Job, JobState, Stats


class JobService(Protocol):
    """All methods raise ``UnknownJob`` for a job that isn't there, and ``Overloaded`` while the
    queue can't be reached.

    They may be called again after a failure: none does its work twice.
    """

    async def submit(self, job: Job, pictures: Mapping[str, bytes]) -> Job:
        """Stores a job and its pictures, by digest. The job, or the one that came under its
        idempotency key before.

        Once it returns, the job is on disk. Raises ``Conflict`` and ``QueueFull``.
        """
        ...

    async def get(self, job_id: str) -> Job: ...

    async def page(self, states: Collection[JobState], limit: int, before: str | None) -> list[Job]:
        """The newest first; those older than the id ``before``."""
        ...

    async def cancel(self, job_id: str) -> Job:
        """A running job's attempt stops too. Raises ``Conflict`` for one that has ended otherwise."""
        ...

    async def retry(self, job_id: str) -> Job:
        """Queues a failed or canceled job again. Raises ``Conflict`` for any other, and
        ``QueueFull``."""
        ...

    async def stats(self) -> Stats: ...

    async def watch(self, job_id: str, seen: Job | None, patience_s: float) -> Job:
        """The job, once it differs from what was seen; after ``patience_s`` in any case."""
        ...

    async def deliveries(self, job_id: str) -> list[Delivery]: ...

    async def redeliver(self, job_id: str, number: int) -> Delivery:
        """Sends one again, from its first attempt. Raises ``UnknownJob`` where the job has no such
        delivery."""
        ...
