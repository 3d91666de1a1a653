"""The metrics that the status is made of, and what is kept of their labels."""

from __future__ import annotations

from dataclasses import dataclass

HTTP = "ray_raylens_http"
ENGINE = "ray_raylens_engine"
JOBS = "ray_raylens_jobs"

REQUESTS = f"{HTTP}_requests_total"
SECONDS = f"{HTTP}_seconds_bucket"
FIRST_TOKEN_SECONDS = f"{HTTP}_first_token_seconds_bucket"
HTTP_TOKENS = f"{HTTP}_tokens_total"
WAITING = f"{ENGINE}_waiting"
RUNNING = f"{ENGINE}_running"
LOAD = f"{ENGINE}_load"
KV_BYTES = f"{ENGINE}_kv_cache_bytes"
KV_LIMIT_BYTES = f"{ENGINE}_kv_cache_limit_bytes"
MEMORY_BYTES = f"{ENGINE}_memory_bytes"
CACHE_HITS = f"{ENGINE}_cache_hits_total"
CACHE_MISSES = f"{ENGINE}_cache_misses_total"
BATCH_SIZE = f"{ENGINE}_batch_size_bucket"
GENERATED_TOKENS = f"{ENGINE}_generated_tokens_total"
PICTURES_WAITING = "ray_raylens_preprocessor_queue_depth"
SESSIONS = "ray_raylens_realtime_sessions"
CALLS = "ray_serve_replica_processing_queries"
JOBS_WAIT_SECONDS = f"{JOBS}_wait_seconds"
JOBS_ENDED = f"{JOBS}_ended_total"

NO_WORK = ("GET", "HEAD", "OPTIONS", "none")
"""Methods of requests that aren't counted: probes, pages, the status itself, unknown paths."""
NO_MODEL = "none"
"""The model of requests that named none."""


@dataclass(frozen=True)
class Metric:
    """A metric. Series that differ in other labels than ``by`` are added up."""

    by: tuple[str, ...] = ()
    is_counter: bool = False
    is_greatest: bool = False
    """Of a gauge's series the greatest one counts, not their sum."""
    needs_model: bool = False
    """Requests that named no model don't count."""


def _counter(*by: str, needs_model: bool = False) -> Metric:
    return Metric(by, is_counter=True, needs_model=needs_model)


def _gauge(*by: str, is_greatest: bool = False) -> Metric:
    return Metric(by, is_greatest=is_greatest)


METRICS = {
    REQUESTS: _counter("model", "status"),
    SECONDS: _counter("model", "le", needs_model=True),
    FIRST_TOKEN_SECONDS: _counter("model", "le"),
    HTTP_TOKENS: _counter("model", "kind"),
    WAITING: _gauge("model"),
    RUNNING: _gauge("model"),
    LOAD: _gauge("model", is_greatest=True),
    KV_BYTES: _gauge("model"),
    KV_LIMIT_BYTES: _gauge("model"),
    MEMORY_BYTES: _gauge("model", "kind"),
    CACHE_HITS: _counter("model", "cache"),
    CACHE_MISSES: _counter("model", "cache"),
    BATCH_SIZE: _counter("model", "le"),
    GENERATED_TOKENS: _counter("model"),
    PICTURES_WAITING: _gauge(),
    SESSIONS: _gauge(),
    CALLS: _gauge("deployment"),
    JOBS: _gauge("state", is_greatest=True),
    JOBS_WAIT_SECONDS: _gauge(is_greatest=True),
    JOBS_ENDED: _counter("state"),
}
