"""The metrics of the queue. A deployment exports them to Prometheus."""

from __future__ import annotations

from collections.abc import Mapping

from raylens.jobs.job import JobState


class JobMetrics:
    """Discards every metric. A subclass records them."""

    def record_counts(self, counts: Mapping[JobState, int]) -> None:
        """Record the number of jobs in each state. Called about once a second."""

    def record_end(self, job_type: str, state: JobState, duration_s: float | None) -> None:
        """Record the end of a job.

        ``duration_s`` counts from its first attempt, and is None if there was none.
        """

    def record_attempt(self, job_type: str, code: str) -> None:
        """Record the end of an attempt. ``code`` is ``ok``, ``canceled`` or an error's code."""

    def record_delivery(self, outcome: str, duration_s: float) -> None:
        """Record an attempt to deliver a webhook.

        ``outcome`` is ``delivered``, ``again``, ``gone`` or ``refused``.
        """
