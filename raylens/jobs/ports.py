"""The interface of the queue for the HTTP layer."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

from raylens.jobs.job import Delivery, Job, JobState, Stats


class JobService(Protocol):
    """The job queue.

    A method that takes a ``job_id`` raises ``UnknownJob`` if there is no such job. Every method
    raises ``Overloaded`` while the queue can't be reached. A call that failed
    may have taken effect. It may be retried, with two differences: if the first ``requeue`` took
    effect, a second one raises ``Conflict`` while the job is queued or running; a second
    ``redeliver`` may send the delivery twice.
    """

    async def submit(self, job: Job, pictures: Mapping[str, bytes]) -> Job:
        """Store a job and its pictures, and return the stored job.

        ``pictures`` maps digests to bytes. If a job was submitted before with the same idempotency
        key, return that job. The job and its pictures are durable when this returns. Raises
        ``QueueFull``, or ``Conflict`` if the key was used for a different request.
        """
        ...

    async def get(self, job_id: str) -> Job: ...

    async def list_jobs(
        self, states: Collection[JobState], limit: int, before_id: str | None
    ) -> list[Job]:
        """Return the newest ``limit`` jobs, newest first.

        An empty ``states`` means any state. With a ``before_id``, only jobs older than that one
        are returned.
        """
        ...

    async def cancel(self, job_id: str) -> Job:
        """Cancel a job, and stop its attempt if it is running.

        Raises ``Conflict`` if the job has succeeded or failed.
        """
        ...

    async def requeue(self, job_id: str) -> Job:
        """Queue a failed or canceled job again.

        Raises ``QueueFull``, or ``Conflict`` if the job is in another state.
        """
        ...

    async def stats(self) -> Stats: ...

    async def watch(self, job_id: str, last_seen: Job | None, timeout_s: float) -> Job:
        """Wait until the job changes, for at most ``timeout_s`` seconds, and return it.

        The job has changed if its state, attempts, progress or problem differs from ``last_seen``.
        If ``last_seen`` is None, return at once.
        """
        ...

    async def deliveries(self, job_id: str) -> list[Delivery]:
        """Return all deliveries of a job, ordered by number."""
        ...

    async def redeliver(self, job_id: str, number: int) -> Delivery:
        """Send a delivery again, with its attempts reset to 0.

        Raises ``UnknownJob`` if the job has no delivery of this number.
        """
        ...
