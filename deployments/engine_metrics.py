"""The engine's measurements as Serve's metrics, which Ray shows on its Prometheus endpoint as
``ray_raylens_…``."""

from __future__ import annotations

from functools import partial
from typing import Any, TypeVar

from ray.serve import metrics

from raylens.core.types import Usage
from raylens.engine.metrics import EngineMetrics, Gauges

M = TypeVar("M", metrics.Gauge, metrics.Counter, metrics.Histogram)
_SECONDS = [0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60]
_ROWS = [1.0, 2, 4, 8, 16, 32, 64, 128, 256]


class PrometheusEngineMetrics(EngineMetrics):
    """Serve adds the deployment, the replica and the application to each as tags."""

    def __init__(self, model: str) -> None:
        def made(kind: type[M], name: str, description: str, *keys: str, **options: Any) -> M:
            metric = kind(
                f"raylens_engine_{name}",
                description=description,
                tag_keys=("model", *keys),
                **options,
            )
            metric.set_default_tags({"model": model})
            return metric

        gauge, counter, histogram = (
            partial(made, kind) for kind in (metrics.Gauge, metrics.Counter, metrics.Histogram)
        )
        self._waiting = gauge("waiting", "Sequences that wait for a place")
        self._running = gauge("running", "Sequences that are read or answered")
        self._kv_bytes = gauge("kv_cache_bytes", "Bytes of the key-value cache that sequences hold")
        self._feature_bytes = gauge(
            "feature_cache_bytes", "Bytes of pictures' features that are kept"
        )
        self._prefix_bytes = gauge(
            "prefix_cache_bytes", "Bytes of prompts' keys and values that are kept"
        )
        self._first = histogram(
            "time_to_first_token_seconds",
            "From arrival in the engine to the first token",
            boundaries=_SECONDS,
        )
        self._inter = histogram(
            "inter_token_seconds",
            "Between two decode steps of running answers",
            boundaries=_SECONDS,
        )
        self._batch = histogram("batch_size", "Rows of a decode step", boundaries=_ROWS)
        self._found = counter(
            "cache_hits",
            "Pictures (or tiles) of features, and tokens of prefixes, that were known",
            "cache",
        )
        self._missed = counter(
            "cache_misses", "Pictures (or tiles) and tokens that were not", "cache"
        )
        self._ended = counter("answers", "Answers that ended, by reason", "reason")
        self._prompt = counter(
            "prompt_tokens",
            "Tokens of prompts, pictures included, of requests that ended, read or not",
        )
        self._generated = counter("generated_tokens", "Tokens of answers that ended")

    def gauges(self, now: Gauges) -> None:
        """Shows how the engine stands."""
        self._waiting.set(now.waiting)
        self._running.set(now.running)
        self._kv_bytes.set(now.kv_bytes)
        self._feature_bytes.set(now.feature_bytes)
        self._prefix_bytes.set(now.prefix_bytes)

    def first_token(self, seconds: float) -> None:
        self._first.observe(seconds)

    def step(self, batch: int, seconds: float | None) -> None:
        self._batch.observe(batch)
        if seconds is not None:
            self._inter.observe(seconds)

    def reuse(self, what: str, found: int, missed: int) -> None:
        for counter, count in ((self._found, found), (self._missed, missed)):
            if count:
                counter.inc(count, tags={"cache": what})

    def ended(self, reason: str, usage: Usage, index: int) -> None:
        self._ended.inc(tags={"reason": reason})
        if index == 0:
            self._prompt.inc(usage.prompt_tokens)
        if usage.completion_tokens:
            self._generated.inc(usage.completion_tokens)
