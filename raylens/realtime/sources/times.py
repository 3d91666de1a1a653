"""Times of frames, made to increase."""

from __future__ import annotations

TICK_S = 0.001
"""The least time between two frames."""
MAX_STEP_BACK_S = 1.0
"""If a frame is earlier than the last one by more than this, times have started again."""


class Timeline:
    """Turns the times of a file's frames into times that increase from 0.

    A file's times may be missing or repeated, or start again in the middle. If only one frame is
    too early, as in a damaged file, the later ones keep their times. ``interval_s`` is the usual
    time between two frames.
    """

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._shift_s: float | None = None
        self._earlier_shift_s: float | None = None
        """If times have started again with the last frame: the shift before that."""
        self._last_s = 0.0

    def place(self, time_s: float | None) -> float:
        """Return the time of the next frame, whose own time is ``time_s``."""
        self._last_s = self._next(time_s)
        return self._last_s

    def _next(self, time_s: float | None) -> float:
        if self._shift_s is None:
            self._shift_s = -(time_s or 0.0)
            return 0.0
        if time_s is None:
            return self._last_s + self._interval_s
        earlier, self._earlier_shift_s = self._earlier_shift_s, None
        if earlier is not None and abs(time_s + earlier - self._last_s) < MAX_STEP_BACK_S:
            self._shift_s = earlier
        placed = time_s + self._shift_s
        if placed < self._last_s - MAX_STEP_BACK_S:
            placed = self._last_s + self._interval_s
            self._earlier_shift_s = self._shift_s
            self._shift_s = placed - time_s
        return max(placed, self._last_s + TICK_S)
