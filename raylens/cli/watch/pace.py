"""How often frames are looked at."""

from __future__ import annotations


class Pace:
    """Lets a number of frames a second pass."""

    def __init__(self, fps: float) -> None:
        self._period_s = 1 / fps
        self._due_at = float("-inf")

    def is_due(self, now: float) -> bool:
        """Whether a frame of this time passes, in seconds. If so, the next one has to wait."""
        if now < self._due_at:
            return False
        is_late = now - self._due_at >= self._period_s
        self._due_at = (now if is_late else self._due_at) + self._period_s
        return True
