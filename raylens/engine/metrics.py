"""The engine's measurements, independent of any metrics system."""

from __future__ import annotations

from dataclasses import dataclass

from raylens.core.types import Usage


@dataclass(frozen=True)
class Gauges:
    """Current numbers of sequences, and bytes in use of each cache."""

    waiting: int = 0
    running: int = 0
    kv_bytes: int = 0
    feature_bytes: int = 0
    prefix_bytes: int = 0


class EngineMetrics:
    """Receives the engine's measurements, on the engine's thread. This base class ignores them."""

    def record_first_token(self, seconds: float) -> None:
        """Record the time from a request's arrival to its first token."""

    def record_step(self, batch: int, seconds: float | None) -> None:
        """Record a decode step of ``batch`` rows.

        ``seconds``: time since the previous step; None if no answer continued from that step.
        """

    def record_cache_lookup(self, cache: str, hits: int, misses: int) -> None:
        """Record a cache lookup: pictures in ``features``, or tokens in ``prefix``."""

    def record_end(self, reason: str, usage: Usage, index: int) -> None:
        """Record the end of a request's answer number ``index``.

        ``reason``: ``stop``, ``length``, ``abort``, ``deadline`` or ``error``.
        """
