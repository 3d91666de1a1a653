"""The engine's measurements as Serve metrics.

Ray exports them on its Prometheus endpoint, as ``ray_raylens_…``.
"""

from __future__ import annotations

from functools import partial
from typing import Any, TypeVar

from ray.serve import metrics

from raylens.core.types import MemoryUsage, Usage
from raylens.engine.metrics import EngineMetrics, Gauges

M = TypeVar("M", metrics.Gauge, metrics.Counter, metrics.Histogram)
_SECONDS = [0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60]
_ROWS = [1.0, 2, 4, 8, 16, 32, 64, 128, 256]


class PrometheusEngineMetrics(EngineMetrics):
    """Metrics of one model. Serve tags them with the deployment, replica and application."""

    def __init__(self, model: str) -> None:
        gauge = partial(_make_metric, metrics.Gauge, model)
        counter = partial(_make_metric, metrics.Counter, model)
        histogram = partial(_make_metric, metrics.Histogram, model)
        self._waiting = gauge("waiting", "Answers that are waiting for a slot in the batch")
        self._running = gauge("running", "Admitted answers, including those in prefill")
        self._kv_bytes = gauge("kv_cache_bytes", "Bytes of the KV cache in use by answers")
        self._feature_bytes = gauge("feature_cache_bytes", "Bytes of the cache of picture features")
        self._prefix_bytes = gauge("prefix_cache_bytes", "Bytes of the prefix cache")
        self._max_waiting = gauge(
            "max_waiting", "Answers of one client that may wait; more are refused"
        )
        self._max_kv_bytes = gauge("kv_cache_limit_bytes", "Bytes that the KV cache may take")
        self._load = gauge("load", "What all answers ask for, over what fits at a time")
        self._memory = gauge(
            "memory_bytes",
            "Memory of a replica by kind: allocated, reserved by its allocator, its share (what it"
            " may reserve), and the total of the GPU or node",
            "kind",
            "device",
            "unit",
        )
        self._first_token_seconds = histogram(
            "time_to_first_token_seconds",
            "Time from an answer's arrival in the engine to its first token",
            boundaries=_SECONDS,
        )
        self._stage_seconds = histogram(
            "stage_seconds",
            "Time of an answer in each stage of the engine: queue, prefill, decode",
            "stage",
            boundaries=_SECONDS,
        )
        self._step_seconds = histogram(
            "inter_token_seconds",
            "Time between two consecutive decode steps of running answers",
            boundaries=_SECONDS,
        )
        self._batch_size = histogram("batch_size", "Rows of a decode step", boundaries=_ROWS)
        self._hits = counter(
            "cache_hits",
            "Cache hits: pictures (or tiles) of the feature cache, tokens of the prefix cache",
            "cache",
        )
        self._misses = counter(
            "cache_misses",
            "Cache misses: pictures (or tiles) of the feature cache, tokens of the prefix cache",
            "cache",
        )
        self._answers = counter("answers", "Answers that ended, by reason", "reason")
        self._prompt_tokens = counter(
            "prompt_tokens",
            "Prompt tokens, pictures included, of requests that ended, prefilled or not",
        )
        self._generated_tokens = counter("generated_tokens", "Tokens of answers that ended")

    def set_gauges(self, gauges: Gauges) -> None:
        self._waiting.set(gauges.waiting)
        self._running.set(gauges.running)
        self._kv_bytes.set(gauges.kv_bytes)
        self._feature_bytes.set(gauges.feature_bytes)
        self._prefix_bytes.set(gauges.prefix_bytes)
        self._load.set(gauges.load)
        self._max_waiting.set(gauges.max_waiting)
        if gauges.max_kv_bytes:
            self._max_kv_bytes.set(gauges.max_kv_bytes)

    def set_memory(self, usage: MemoryUsage) -> None:
        kinds = {"allocated": usage.allocated, "reserved": usage.reserved, "total": usage.total}
        if usage.share:
            kinds["share"] = usage.share
        for kind, size in kinds.items():
            self._memory.set(size, tags={"kind": kind, "device": usage.device, "unit": usage.unit})

    def record_first_token(self, seconds: float) -> None:
        self._first_token_seconds.observe(seconds)

    def record_stage(self, stage: str, seconds: float) -> None:
        self._stage_seconds.observe(seconds, tags={"stage": stage})

    def record_step(self, batch_size: int, seconds: float | None) -> None:
        self._batch_size.observe(batch_size)
        if seconds is not None:
            self._step_seconds.observe(seconds)

    def record_cache_lookup(self, cache: str, hits: int, misses: int) -> None:
        for counter, count in ((self._hits, hits), (self._misses, misses)):
            if count:
                counter.inc(count, tags={"cache": cache})

    def record_end(self, reason: str, usage: Usage, index: int) -> None:
        self._answers.inc(tags={"reason": reason})
        if index == 0:  # the answers of a request share one prompt
            self._prompt_tokens.inc(usage.prompt_tokens)
        if usage.completion_tokens:
            self._generated_tokens.inc(usage.completion_tokens)


def _make_metric(
    metric_type: type[M], model: str, name: str, description: str, *tag_keys: str, **options: Any
) -> M:
    metric = metric_type(
        f"raylens_engine_{name}",
        description=description,
        tag_keys=("model", *tag_keys),
        **options,
    )
    metric.set_default_tags({"model": model})
    return metric
