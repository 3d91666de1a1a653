"""When something starts and ends, from frames that each show it, don't show it, or are unclear.

The same decision serves a finished sequence and a live video: see
:func:`raylens.jobs.intervals.find_intervals` and :class:`raylens.realtime.events.EventDetector`.

Pure: no I/O, no clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from raylens.core.verdict import Verdict

T = TypeVar("T")


@dataclass(frozen=True)
class Transition(Generic[T]):
    """The boundary at which something starts or ends.

    ``frame`` is what was given with the first frame behind the boundary; at the end of the
    sequence, with the last frame.
    """

    is_start: bool
    time: float
    frame: T


class Hysteresis(Generic[T]):
    """Decides one frame at a time. Shorter runs are ignored as noise.

    It starts at the first of ``enter`` consecutive frames that show it, and ends before the first
    of ``leave`` consecutive frames that don't. Unclear frames are skipped when counting; each
    belongs with the frame before it.

    A boundary is the midpoint between the frames on its two sides. At either end of the sequence,
    it is the time of the first or last frame.

    A sequence of fewer than ``enter`` frames is known as such only at its end: then all of them
    must show it.
    """

    def __init__(self, enter: int = 2, leave: int = 2) -> None:
        """Raises ``ValueError`` if a number is less than 1."""
        if enter < 1 or leave < 1:
            raise ValueError("enter and leave must be 1 or more")
        self._enter = enter
        self._leave = leave
        self._is_on = False
        self._frame_count = 0
        self._run_length = 0
        self._run: tuple[float, T] | None = None
        """The boundary before the current run, and its first frame."""
        self._last: tuple[float, T] | None = None

    @property
    def is_on(self) -> bool:
        """Whether it has started and not ended."""
        return self._is_on

    def add(self, time: float, verdict: Verdict, frame: T) -> list[Transition[T]]:
        """Take the next frame, and return the transition that it decides, if any.

        ``time`` must not be less than the last one.
        """
        before = time if self._last is None else self._last[0]
        self._last = time, frame
        self._frame_count += 1
        if verdict is None:
            return []
        if verdict is self._is_on:
            self._run_length = 0
            return []
        if self._run_length == 0:
            self._run = (before + time) / 2 if self._frame_count > 1 else time, frame
        self._run_length += 1
        if self._run is None or self._run_length < (self._leave if self._is_on else self._enter):
            return []
        self._run_length = 0
        self._is_on = verdict
        return [Transition(verdict, *self._run)]

    def finish(self, time: float | None = None) -> list[Transition[T]]:
        """End the sequence at ``time``, by default that of its last frame.

        Returns what is left: the end of what has started, and in a short sequence its start too.
        Afterwards the object is as new.
        """
        last, transitions = self._last, list[Transition[T]]()
        if last is not None and self._run is not None and self._is_short_and_shown():
            self._is_on = True
            transitions.append(Transition(True, *self._run))
        if last is not None and self._is_on:
            transitions.append(Transition(False, last[0] if time is None else time, last[1]))
        self._is_on = False
        self._last = self._run = None
        self._frame_count = self._run_length = 0
        return transitions

    def _is_short_and_shown(self) -> bool:
        return not self._is_on and 0 < self._run_length == self._frame_count < self._enter
