"""What the engine tells of its work. Who measures it is the caller's affair: the engine knows no
metrics system."""

from __future__ import annotations

from dataclasses import dataclass

from raylens.core.types import Usage


@dataclass(frozen=True)
class Gauges:
    """How the engine stands: sequences, and bytes of each cache."""

    waiting: int = 0
    running: int = 0
    kv_bytes: int = 0
    feature_bytes: int = 0
    prefix_bytes: int = 0


class EngineMetrics:
    """Takes the engine's measurements, from the engine's thread; this one drops them."""

    def first_token(self, seconds: float) -> None:
        """From a request's arrival to its first token."""

    def step(self, batch: int, seconds: float | None) -> None:
        """A decode step of so many rows; seconds since the one before, where answers went on from
        it."""

    def reuse(self, what: str, found: int, missed: int) -> None:
        """A look-up: pictures of ``features``, or tokens of a ``prefix``."""

    def ended(self, reason: str, usage: Usage, index: int) -> None:
        """The end of answer number ``index`` of a request: ``stop``, ``length``, ``abort``,
        ``deadline``, ``error``."""
