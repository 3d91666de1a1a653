"""The metrics of the queue. A subclass exports them to Prometheus."""

from __future__ import annotations

from collections.abc import Mapping

from raylens.jobs.job import JobState


class JobMetrics:
    """The default: records nothing. Subclasses override the methods."""

    def record_counts(self, counts: Mapping[JobState, int]) -> None:
        """Record the number of jobs in each state. Called about once a second."""

    def record_end(self, job_type: str, state: JobState, duration_s: float | None) -> None:
        """Record the end of a job.

        ``duration_s`` is in seconds from its first attempt, and is None if there was none.
        """

    def record_attempt(self, job_type: str, code: str) -> None:
        """Record the end of an attempt. ``code`` is ``ok``, ``canceled`` or an error's code."""

    def record_delivery(self, outcome: str, duration_s: float) -> None:
        """Record a webhook delivery attempt, and its duration in seconds.

        ``outcome`` is ``delivered``, ``again``, ``gone`` or ``refused``.
        """
