"""The engine's measurements, independent of any metrics system."""

from __future__ import annotations

from dataclasses import dataclass

from raylens.core.types import Usage


@dataclass(frozen=True)
class Gauges:
    """Current numbers of sequences, and bytes in use of each cache."""

    waiting: int = 0
    running: int = 0
    """Admitted sequences, including those in prefill."""
    kv_bytes: int = 0
    feature_bytes: int = 0
    prefix_bytes: int = 0
    load: float = 0.0
    """What all sequences ask for, over what fits at a time: slots of the batch, or bytes of the KV
    cache, whichever is scarcer. Over 1 while some must wait."""
    max_waiting: int = 0
    """Limit of ``waiting``; more are refused. 0 if it isn't known."""
    max_kv_bytes: int = 0
    """Limit of ``kv_bytes``; 0 if there is no KV cache in this process."""


class EngineMetrics:
    """Receives the engine's measurements, on the engine's thread. This base class ignores them."""

    def record_first_token(self, seconds: float) -> None:
        """Record an answer's time to first token (TTFT)."""

    def record_stage(self, stage: str, seconds: float) -> None:
        """Record how long a stage of an answer took, once it is over.

        ``stage`` is ``queue``, ``prefill`` or ``decode``, as in
        :class:`raylens.core.types.Timings`.
        """

    def record_step(self, batch_size: int, seconds: float | None) -> None:
        """Record a decode step of ``batch_size`` rows.

        ``seconds``: time since the previous step. None for the first step, and if at some moment
        since then no sequence was running. For a running answer this is the inter-token latency.
        """

    def record_cache_lookup(self, cache: str, hits: int, misses: int) -> None:
        """Record a cache lookup.

        ``cache`` is ``features`` (hits and misses count pictures) or ``prefix`` (they count prompt
        tokens).
        """

    def record_end(self, reason: str, usage: Usage, index: int) -> None:
        """Record the end of an answer. ``index``: its zero-based index among the request's ``n``.

        ``reason``: ``stop``, ``length``, ``abort``, ``deadline`` or ``error``.
        """
