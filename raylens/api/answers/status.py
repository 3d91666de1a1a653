"""The answer of ``GET /api/v1/status``.

Lists are over time, parallel to ``times``. Rates (per second), means and quantiles at a time are
those of the minute before it. What isn't known of a time is null.
"""

from __future__ import annotations

from typing import Literal

from raylens.api.answers.base import Answer

OverTime = list[float | None]


class ModelStatus(Answer):
    state: Literal["loaded", "loading", "on demand", "not loaded"]
    """On demand: the next request loads it."""
    checkpoint: str
    family: str | None
    device: str | None
    dtype: str | None
    parameters: int | None
    tasks: list[str]
    max_batch_size: int
    """Answers that each replica computes together."""
    max_waiting: int
    """Answers of one client that may wait in each replica."""


class DeploymentStatus(Answer):
    status: str
    """As Ray Serve calls it, such as HEALTHY or UPDATING."""
    message: str
    """What is wrong; empty if nothing is, or if the key lacks the scope admin."""
    target: int
    """Replicas that there should be."""
    running: int
    starting: int
    starting_s: float | None
    """Seconds since the first of these began."""
    stopping: int
    resources: dict[str, float]
    """What each replica reserves, such as 1 CPU and 0.25 GPU."""


class Traffic(Answer):
    """Requests that ask for work, which GET does not. Times are of those that reached a model."""

    requests_per_s: OverTime
    errors_per_s: OverTime
    """Answered with a status from 500 on."""
    refusals_per_s: OverTime
    """Answered with a status from 400 to 499."""
    latency_p50_s: OverTime
    latency_p95_s: OverTime
    first_token_p50_s: OverTime
    first_token_p95_s: OverTime
    tokens_per_s: OverTime
    """Of answers, counted when they end."""


class ServerTraffic(Traffic):
    in_flight: OverTime
    """Requests, of all methods, in all replicas of the ingress."""
    pictures_waiting: OverTime
    """For a thread of the preprocessor."""
    sessions: OverTime
    """Of live video."""


class ModelTraffic(Traffic):
    waiting: OverTime
    running: OverTime
    load: OverTime
    """Of the fullest replica: what its answers ask for, over what fits at a time."""
    batch_size: OverTime
    """Answers of a decode step."""
    kv_cache: OverTime
    """The fraction in use."""
    picture_hits: OverTime
    """The fraction of pictures that weren't encoded again."""
    prefix_hits: OverTime
    """The fraction of prompt tokens that weren't read again."""
    memory_bytes: OverTime
    memory_share_bytes: OverTime
    """What the replicas may take of their GPUs."""


class JobTraffic(Answer):
    queued: OverTime
    running: OverTime
    failed: OverTime
    oldest_wait_s: OverTime
    """Since the oldest waiting job could have started."""
    ended_per_s: OverTime


class TrafficTotals(Answer):
    requests: int
    errors: int
    refusals: int
    latency_p50_s: float | None
    latency_p95_s: float | None
    prompt_tokens: int
    answer_tokens: int


class Totals(TrafficTotals):
    jobs_succeeded: int
    jobs_failed: int


class History(Answer):
    times: list[float]
    """Seconds since the epoch, the newest last. Empty for some seconds after the start."""
    nodes: int
    answering: int
    """Nodes whose metrics could be read the last time."""
    server: ServerTraffic
    models: dict[str, ModelTraffic]
    jobs: JobTraffic
    totals: Totals
    """Over all of these times."""
    model_totals: dict[str, TrafficTotals]


class Links(Answer):
    ray_dashboard: str | None
    grafana: str | None
    prometheus: str | None


class Status(Answer):
    version: str
    timestamp: str
    models: dict[str, ModelStatus]
    deployments: dict[str, DeploymentStatus] | None
    max_in_flight: int
    """POST requests of one client in each replica of the ingress."""
    history: History | None
    links: Links
