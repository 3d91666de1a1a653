"""The queue's measurements on Ray's Prometheus endpoint, as ``ray_raylens_jobs_…``."""

from __future__ import annotations

from collections.abc import Mapping

from ray.util.metrics import Counter, Gauge, Histogram

from raylens.jobs.job import JobState
from raylens.jobs.metrics import JobMetrics

_SECONDS = [0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300, 1800]


class PrometheusJobMetrics(JobMetrics):
    def __init__(self) -> None:
        self._counts = Gauge("raylens_jobs", "Jobs by state.", ("state",))
        self._ended = Counter(
            "raylens_jobs_ended", "Jobs that ended, by type and state.", ("type", "state")
        )
        self._seconds = Histogram(
            "raylens_jobs_seconds", "From a job's first attempt to its end.", _SECONDS, ("type",)
        )
        self._attempts = Counter(
            "raylens_jobs_attempts", "Attempts by type and outcome.", ("type", "outcome")
        )
        self._deliveries = Counter(
            "raylens_jobs_webhooks", "Attempts to deliver a webhook, by outcome.", ("outcome",)
        )
        self._delivery_seconds = Histogram(
            "raylens_jobs_webhook_seconds", "Seconds of an attempt to deliver a webhook.", _SECONDS
        )

    def queue(self, counts: Mapping[JobState, int]) -> None:
        for state, count in counts.items():
            self._counts.set(count, {"state": state.value})

    def ended(self, kind: str, state: JobState, seconds: float | None) -> None:
        self._ended.inc(tags={"type": kind, "state": state.value})
        if seconds is not None:
            self._seconds.observe(seconds, {"type": kind})

    def attempt(self, kind: str, code: str) -> None:
        self._attempts.inc(tags={"type": kind, "outcome": code})

    def delivery(self, outcome: str, seconds: float) -> None:
        self._deliveries.inc(tags={"outcome": outcome})
        self._delivery_seconds.observe(seconds)
