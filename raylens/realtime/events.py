"""Events of a live video: something has started, or has ended.

What a result says about its frame is a :class:`raylens.core.verdict.Verdict`: the object is seen,
or the question is answered with yes. :class:`raylens.core.hysteresis.Hysteresis` decides when that
is more than noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from raylens.core.errors import InvalidRequest
from raylens.core.hysteresis import Hysteresis, Transition
from raylens.core.types import Detect, Point, Query, Task
from raylens.core.verdict import Verdict, parse_yes_or_no
from raylens.realtime.pipeline import FrameResult

_DIGITS = 6
"""Times are rounded to the microsecond in JSON."""


class EventType(StrEnum):
    STARTED = "started"
    ENDED = "ended"


@dataclass(frozen=True)
class FrameDetails:
    """What an event says about a frame: its id, and the number of objects found in it."""

    frame_id: int
    count: int | None = None


@dataclass(frozen=True)
class Event:
    """``time_s`` is the time of the start, also if the event is an end.

    ``frame_id`` names the first frame that shows the subject, or for an end, the first that doesn't
    any more; if the video ended before, its last frame. ``count`` is the number of objects in that
    first frame, or for an end, the largest number in one frame from start to end. It is None for a
    question.
    """

    type: EventType
    subject: str
    time_s: float
    frame_id: int
    count: int | None = None
    ended_at: float | None = None

    @property
    def duration_s(self) -> float | None:
        """The time from start to end; None if the event is a start."""
        return None if self.ended_at is None else self.ended_at - self.time_s

    def as_json(self) -> dict[str, Any]:
        """Return the event without the fields that it doesn't have."""
        fields = {
            "type": self.type.value,
            "subject": self.subject,
            "time_s": _round(self.time_s),
            "ended_at": _round(self.ended_at),
            "duration_s": _round(self.duration_s),
            "frame_id": self.frame_id,
            "count": self.count,
        }
        return {name: value for name, value in fields.items() if value is not None}


class EventDetector:
    """Finds the events of one subject, one frame at a time.

    Frames are those that have a result, in their order. Not thread-safe.
    """

    def __init__(self, subject: str, enter: int = 2, leave: int = 2) -> None:
        """Raises ``InvalidRequest`` if ``enter`` or ``leave`` is less than 1."""
        _require_positive("enter", enter)
        _require_positive("leave", leave)
        self._subject = subject
        self._hysteresis = Hysteresis[FrameDetails](enter, leave)
        self._time = float("-inf")
        self._started: Event | None = None
        self._largest: int | None = None
        """The largest number of objects since the current start, or since what may become one."""

    def add(self, time_s: float, verdict: Verdict, details: FrameDetails) -> list[Event]:
        """Take the next frame, and return the event that it decides, if any.

        A time before the last one counts as the last one, because a camera's clock may be set back.
        """
        self._time = max(self._time, time_s)
        self._count(verdict, details.count)
        return self._as_events(self._hysteresis.add(self._time, verdict, details))

    def finish(self, time_s: float | None = None) -> list[Event]:
        """End the video at ``time_s``, by default the time of its last frame.

        Returns the end of what has started. If there were fewer than ``enter`` frames, and all of
        them show the subject, its start comes before that.
        """
        time = None if time_s is None else max(self._time, time_s)
        events = self._as_events(self._hysteresis.finish(time))
        self._time = float("-inf")
        self._largest = None
        return events

    def _count(self, verdict: Verdict, count: int | None) -> None:
        if verdict is False and self._started is None:
            self._largest = None
        elif count is not None:
            self._largest = max(count, self._largest or 0)

    def _as_events(self, transitions: Sequence[Transition[FrameDetails]]) -> list[Event]:
        return [
            self._start(transition) if transition.is_start else self._end(transition)
            for transition in transitions
        ]

    def _start(self, transition: Transition[FrameDetails]) -> Event:
        frame = transition.frame
        self._started = Event(
            EventType.STARTED, self._subject, transition.time, frame.frame_id, frame.count
        )
        return self._started

    def _end(self, transition: Transition[FrameDetails]) -> Event:
        assert self._started is not None, "an end follows its start"
        ended = replace(
            self._started,
            type=EventType.ENDED,
            frame_id=transition.frame.frame_id,
            count=self._largest,
            ended_at=transition.time,
        )
        self._started = self._largest = None
        return ended


def judge(task: Task, result: FrameResult | None, min_count: int = 1) -> Verdict:
    """Return whether a result shows what its task looks for.

    Detect and point show it if they found at least ``min_count`` objects, and a query if its answer
    begins with yes. Any other task is unclear, and so is a frame whose result failed, None.

    Raises ``InvalidRequest`` if ``min_count`` is less than 1.
    """
    _require_positive("min_count", min_count)
    if result is None:
        return None
    count = count_objects(task, result)
    if count is not None:
        return count >= min_count
    return parse_yes_or_no(result.text) if isinstance(task, Query) else None


def count_objects(task: Task, result: FrameResult) -> int | None:
    """Return the number of objects that a result found; None if its task looks for none."""
    match task:
        case Detect():
            return len(result.regions)
        case Point():
            return len(result.locations)
    return None


def subject_of(task: Task) -> str:
    """Return what the events of a task are about: an object, or a question.

    Raises ``InvalidRequest`` for a task that has no events.
    """
    match task:
        case Detect() | Point():
            return task.subject
        case Query():
            return task.question
    raise InvalidRequest(f"events: a {task.name} has none; use detect, point or query", "events")


def _require_positive(field: str, value: int) -> None:
    if value < 1:
        raise InvalidRequest(f"{field}: {value}; expected 1 or more", field, 1, value)


def _round(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, _DIGITS)
