"""Progress of a watch: on a terminal one line that changes, elsewhere a line now and then."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Self

from rich.console import Console
from rich.status import Status
from rich.text import Text

LINE_PERIOD_S = 10.0
"""Time between two lines if the output is not a terminal."""
RATE_SPAN_S = 5.0
MAX_TEXT = 60
"""Characters of an answer."""


class Rate:
    """How often something happens, over the last seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._times: deque[float] = deque()

    def count(self) -> None:
        self._times.append(self._clock())

    @property
    def per_second(self) -> float:
        now = self._clock()
        while self._times and self._times[0] < now - RATE_SPAN_S:
            self._times.popleft()
        if len(self._times) < 2:
            return 0.0
        return (len(self._times) - 1) / max(now - self._times[0], 1e-3)


class Progress(AbstractContextManager["Progress"]):
    """The numbers of a watch, and their display."""

    def __init__(
        self,
        name: str,
        console: Console,
        is_live: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._console = console
        self._is_live = is_live
        self._clock = clock
        self._started_at = self._printed_at = clock()
        self._frame_rate, self._result_rate = Rate(clock), Rate(clock)
        self._time_s = 0.0
        self._last: Mapping[str, Any] = {}
        self._status = Status(Text(""), console=console) if console.is_terminal else None
        self.frames = self.results = self.events = self.failures = 0
        self.undelivered = 0
        """Number of events that the webhook's endpoint didn't take."""

    def __enter__(self) -> Self:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._status is not None:
            self._status.stop()

    def add_frame(self, time_s: float) -> None:
        self.frames += 1
        self._time_s = time_s
        self._frame_rate.count()
        self._update()

    def add_result(self, record: Mapping[str, Any]) -> None:
        self.results += 1
        self._last = record
        self._result_rate.count()

    def line(self) -> str:
        """Return the progress so far in one line."""
        parts = [
            f"{self._name}: {_clock_text(self._time_s)}",
            f"{self._frame_rate.per_second:.1f} frames/s",
            f"{self._result_rate.per_second:.1f} answers/s",
        ]
        if self._is_live and "age_ms" in self._last:
            parts.append(f"{self._last['age_ms']:.0f} ms old")
        if self.events:
            parts.append(_count(self.events, "event"))
        if self.failures:
            parts.append(f"{self.failures} failed")
        if self._last:
            parts.append(describe(self._last))
        return ", ".join(parts)

    def summary(self) -> str:
        """Return the totals in one line."""
        seconds = max(self._clock() - self._started_at, 1e-3)
        counts = ", ".join(
            (
                _count(self.frames, "frame"),
                _count(self.results, "answer"),
                f"{self.failures} failed",
                _count(self.events, "event"),
            )
        )
        rates = f"{self.frames / seconds:.1f} frames/s, {self.results / seconds:.1f} answers/s"
        return f"{self._name}: {counts}; {rates}"

    def _update(self) -> None:
        if self._status is not None:
            self._status.update(Text(self.line()))
        elif self._clock() - self._printed_at >= LINE_PERIOD_S:
            self._printed_at = self._clock()
            self._console.print(self.line())


def describe(record: Mapping[str, Any]) -> str:
    """Return a result in a few words."""
    for key, noun in (("objects", "object"), ("points", "point")):
        if key in record:
            return _count(len(record[key]), noun)
    text = " ".join(str(record.get("text", "")).split())
    return f"“{text[:MAX_TEXT]}{'…' if len(text) > MAX_TEXT else ''}”"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _clock_text(seconds: float) -> str:
    minutes, second = divmod(int(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02}:{second:02}"
