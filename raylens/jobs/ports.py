"""The interface of the queue for the HTTP layer."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

from raylens.jobs.job import Delivery, Job, JobState, Stats


class JobService(Protocol):
    """The job queue.

    A method that takes a ``job_id`` raises ``UnknownJob`` if there is no such job. Every method
    raises ``Overloaded`` while the queue can't be reached. A call may be repeated after a failure:
    no method does its work twice.
    """

    async def submit(self, job: Job, pictures: Mapping[str, bytes]) -> Job:
        """Store a job and its pictures, by digest, and return the stored job.

        If a job was submitted before with the same idempotency key, return that one. The job and
        its pictures are on disk when this returns. Raises ``Conflict`` if the key was used for a
        different request, and ``QueueFull``.
        """
        ...

    async def get(self, job_id: str) -> Job: ...

    async def list_jobs(
        self, states: Collection[JobState], limit: int, before: str | None
    ) -> list[Job]:
        """Return the newest ``limit`` jobs, newest first.

        An empty ``states`` means any state. ``before`` is a job id: only older jobs are returned.
        """
        ...

    async def cancel(self, job_id: str) -> Job:
        """Cancel a job, and stop its attempt if it is running.

        Raises ``Conflict`` if the job has succeeded or failed.
        """
        ...

    async def requeue(self, job_id: str) -> Job:
        """Queue a failed or canceled job again.

        Raises ``Conflict`` if the job is in another state, and ``QueueFull``.
        """
        ...

    async def stats(self) -> Stats: ...

    async def watch(self, job_id: str, last_seen: Job | None, timeout_s: float) -> Job:
        """Return the job when it differs from ``last_seen``, and after ``timeout_s`` at the latest.

        It returns at once if ``last_seen`` is None.
        """
        ...

    async def deliveries(self, job_id: str) -> list[Delivery]:
        """Return all deliveries of a job, ordered by number."""
        ...

    async def redeliver(self, job_id: str, number: int) -> Delivery:
        """Send a delivery again, starting from its first attempt.

        Raises ``UnknownJob`` if the job has no delivery of this number.
        """
        ...
