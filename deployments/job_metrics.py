"""The job queue's metrics on Ray's Prometheus endpoint, as ``ray_raylens_jobs_…``."""

from __future__ import annotations

from collections.abc import Mapping

from ray.util.metrics import Counter, Gauge, Histogram

from deployments.spans import begin_attempt, end_attempt
from raylens.jobs.job import JobState
from raylens.jobs.metrics import JobMetrics

_BUCKETS_S = [0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300, 1800]


class PrometheusJobMetrics(JobMetrics):
    """Records the metrics in Ray's Prometheus registry."""

    def __init__(self) -> None:
        self._counts = Gauge("raylens_jobs", "Number of jobs, by state.", ("state",))
        self._wait = Gauge(
            "raylens_jobs_wait_seconds", "Seconds that the oldest due job has waited for a worker."
        )
        self._store = Gauge(
            "raylens_jobs_store_available", "1 if the store of the job queue answers, else 0."
        )
        self._free = Gauge(
            "raylens_jobs_free_bytes", "Free bytes of the disk with the job queue's files."
        )
        self._min_free = Gauge(
            "raylens_jobs_min_free_bytes", "Free bytes under which jobs are refused."
        )
        self._ended = Counter(
            "raylens_jobs_ended", "Number of jobs that ended, by type and state.", ("type", "state")
        )
        self._durations = Histogram(
            "raylens_jobs_seconds",
            "Seconds from a job's first attempt to its end, by type.",
            _BUCKETS_S,
            ("type",),
        )
        self._attempts = Counter(
            "raylens_jobs_attempts",
            "Number of attempts at jobs, by type and outcome.",
            ("type", "outcome"),
        )
        self._deliveries = Counter(
            "raylens_jobs_webhooks",
            "Number of attempts to deliver a webhook, by outcome.",
            ("outcome",),
        )
        self._delivery_durations = Histogram(
            "raylens_jobs_webhook_seconds",
            "Duration of an attempt to deliver a webhook, in seconds.",
            _BUCKETS_S,
        )

    def record_counts(self, counts: Mapping[JobState, int]) -> None:
        for state, count in counts.items():
            self._counts.set(count, {"state": state.value})

    def record_wait(self, seconds: float) -> None:
        self._wait.set(seconds)

    def record_store(self, is_available: bool) -> None:
        self._store.set(is_available)

    def record_free_bytes(self, free: float, limit: float) -> None:
        self._free.set(free)
        self._min_free.set(limit)

    def record_end(self, job_type: str, state: JobState, duration_s: float | None) -> None:
        self._ended.inc(tags={"type": job_type, "state": state.value})
        if duration_s is not None:
            self._durations.observe(duration_s, {"type": job_type})

    def record_start(self, job_type: str, job_id: str, number: int) -> None:
        begin_attempt(job_type, job_id, number)

    def record_attempt(self, job_type: str, code: str) -> None:
        end_attempt(code)
        self._attempts.inc(tags={"type": job_type, "outcome": code})

    def record_delivery(self, outcome: str, duration_s: float) -> None:
        self._deliveries.inc(tags={"outcome": outcome})
        self._delivery_durations.observe(duration_s)
