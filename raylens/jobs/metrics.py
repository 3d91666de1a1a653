"""The metrics of the queue. A subclass exports them to Prometheus."""

from __future__ import annotations

from collections.abc import Mapping

from raylens.jobs.job import JobState


class JobMetrics:
    """The default: records nothing. Subclasses override the methods."""

    def record_counts(self, counts: Mapping[JobState, int]) -> None:
        """Record the number of jobs in each state. Called every few seconds."""

    def record_wait(self, seconds: float) -> None:
        """Record for how long the oldest due job has waited; 0 if none does. Called every few
        seconds."""

    def record_store(self, is_available: bool) -> None:
        """Record whether the store answers. Called every few seconds."""

    def record_free_bytes(self, free: float, limit: float) -> None:
        """Record the free bytes of the disk with the queue's files, and the number under which jobs
        are refused. Called every few seconds, if the queue has such files."""

    def record_end(self, job_type: str, state: JobState, duration_s: float | None) -> None:
        """Record that a job ended. ``duration_s`` is :attr:`Job.duration_s`."""

    def record_start(self, job_type: str, job_id: str, number: int) -> None:
        """Record the beginning of an attempt, in the task that makes it."""

    def record_attempt(self, job_type: str, code: str) -> None:
        """Record the end of an attempt, in the same task.

        ``code`` is ``ok``, an error's code, or ``canceled`` if the attempt was stopped: the job was
        canceled, its lease was lost, or the process shut down.
        """

    def record_delivery(self, outcome: str, duration_s: float) -> None:
        """Record a webhook delivery attempt, and its duration in seconds.

        ``outcome`` is ``delivered``, ``again`` (failed, and retried if attempts are left), ``gone``
        (status 410) or ``refused`` (the URL is not allowed, and nothing was sent).
        """
