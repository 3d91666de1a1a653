"""What the engine tells of its work. Who measures it is the caller's affair: the engine knows no metrics system."""

from __future__ import annotations

from dataclasses import dataclass

from raylens.types import Usage


@dataclass(frozen=True)
class Gauges:
    """How the engine stands: sequences, and bytes of each cache."""

    waiting: int = 0
    running: int = 0
    kv_bytes: int = 0
    feature_bytes: int = 0
    prefix_bytes: int = 0


class Metrics:
    """Takes the engine's measurements, from the engine's thread; this one drops them."""

    def first_token(self, seconds: float) -> None:
        """From a request's arrival to its first token."""

    def step(self, batch: int, seconds: float | None) -> None:
        """A decode step of so many rows; seconds since the one before, where answers went on from it."""

    def reuse(self, what: str, hit: bool) -> None:
        """A look-up of ``features`` or of a ``prefix``."""

    def ended(self, reason: str, usage: Usage) -> None:
        """An answer's end: ``stop``, ``length``, ``abort``, ``deadline`` or ``error``."""
