"""Progress of a run over many pictures, and its display."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from raylens.cli.results import Result

LINE_PERIOD_S = 5.0
"""Time between two lines of progress if the output is not a terminal."""


class Tally:
    """Counts of the pictures that are answered, failed and still to do.

    ``verb`` says of a picture that it is answered, such as "captioned".
    """

    def __init__(self, total: int, verb: str) -> None:
        self.total = total
        self.verb = verb
        self.answered_earlier = 0
        """Pictures answered by an earlier run."""
        self.answered = 0
        """Pictures answered by this run."""
        self.processed = 0
        """Pictures answered or failed by this run."""
        self.failures: list[tuple[str, str]] = []
        """File and problem of each failed picture, of earlier runs too."""
        self._started_at = time.monotonic()

    @property
    def done(self) -> int:
        return self.answered_earlier + self.answered + len(self.failures)

    @property
    def rate(self) -> float:
        """Pictures per second in this run."""
        return self.processed / max(time.monotonic() - self._started_at, 1e-3)

    def add(self, result: Result) -> None:
        """Count a result of this run."""
        self.processed += 1
        if result.error is None:
            self.answered += 1
        else:
            self.failures.append((result.file, result.problem))

    def add_earlier(self, file: str, problem: str) -> None:
        """Count a result of an earlier run; ``problem`` is empty if it is an answer."""
        if problem:
            self.failures.append((file, problem))
        else:
            self.answered_earlier += 1

    def status(self) -> str:
        """Return the progress so far in one line."""
        counts = f"{self.done}/{self.total} done, {len(self.failures)} failed, {self.rate:.1f}/s"
        if not self.processed:
            return counts
        remaining_s = (self.total - self.done) / self.rate
        return f"{counts}, {_format_duration(remaining_s)} left"

    def summary(self) -> str:
        """Return the totals of a finished run in one line."""
        answered = f"{self.answered_earlier + self.answered} {self.verb}"
        if self.answered_earlier:
            answered += f" ({self.answered_earlier} by an earlier run)"
        noun = "picture" if self.total == 1 else "pictures"
        summary = f"{self.total} {noun}: {answered}, {len(self.failures)} failed"
        if not self.processed:
            return summary
        elapsed_s = time.monotonic() - self._started_at
        return f"{summary}; {self.rate:.1f}/s, {_format_duration(elapsed_s)}"


def _format_duration(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02}:{second:02}"


class ProgressDisplay(AbstractContextManager["ProgressDisplay"]):
    """A display of a tally: a bar on a terminal, otherwise a line every ``period_s`` seconds."""

    def __init__(self, tally: Tally, console: Console, period_s: float = LINE_PERIOD_S) -> None:
        self._tally = tally
        self._console = console
        self._period_s = period_s
        self._printed_at = time.monotonic()
        bar = Progress(BarColumn(), TextColumn("{task.description}", markup=False), console=console)
        self._bar = bar if console.is_terminal else None
        self._task = bar.add_task(tally.status(), total=tally.total, completed=tally.done)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self) -> None:
        """Show the tally's new counts. Call it after every change of the tally."""
        if self._bar is not None:
            description = self._tally.status()
            self._bar.update(self._task, description=description, completed=self._tally.done)
        elif time.monotonic() - self._printed_at >= self._period_s:
            self._printed_at = time.monotonic()
            self._console.print(self._tally.status())
