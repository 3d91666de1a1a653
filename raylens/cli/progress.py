"""How far a run of ``raylens caption`` is, and how that is shown."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from raylens.cli.results import Result

PLAIN_PERIOD_S = 5.0


class Tally:
    """How far a run is."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.before = 0
        """Captioned by an earlier run."""
        self.captioned = 0
        self.worked = 0
        """Captioned or failed, by this run."""
        self.failures: list[tuple[str, str]] = []
        self._started = time.monotonic()

    @property
    def done(self) -> int:
        return self.before + self.captioned + len(self.failures)

    @property
    def rate(self) -> float:
        return self.worked / max(time.monotonic() - self._started, 1e-3)

    def add(self, result: Result) -> None:
        self.worked += 1
        if result.error is None:
            self.captioned += 1
        else:
            self.failures.append((result.file, result.problem))

    def status(self) -> str:
        left = f", {_clock((self.total - self.done) / self.rate)} left" if self.worked else ""
        return (
            f"{self.done}/{self.total} done, {len(self.failures)} failed, {self.rate:.1f}/s{left}"
        )

    def summary(self) -> str:
        before = f" ({self.before} of them before)" if self.before else ""
        seconds = time.monotonic() - self._started
        pace = f"; {self.rate:.1f}/s, {_clock(seconds)}" if self.worked else ""
        captioned = self.before + self.captioned
        return f"{self.total} pictures: {captioned} captioned{before}, {len(self.failures)} failed{pace}"


def _clock(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


class ProgressDisplay(AbstractContextManager["ProgressDisplay"]):
    """The tally where a person sees it: a bar on a terminal, elsewhere a line now and then."""

    def __init__(self, tally: Tally, console: Console, period_s: float = PLAIN_PERIOD_S) -> None:
        self._tally = tally
        self._period_s = period_s
        self._console = console
        self._said_at = time.monotonic()
        bar = Progress(BarColumn(), TextColumn("{task.description}", markup=False), console=console)
        self._bar = bar if console.is_terminal else None
        self._task = bar.add_task(tally.status(), total=tally.total, completed=tally.done)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *raised: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self) -> None:
        """To be called whenever the tally has changed."""
        if self._bar is not None:
            self._bar.update(
                self._task, description=self._tally.status(), completed=self._tally.done
            )
        elif time.monotonic() - self._said_at >= self._period_s:
            self._said_at = time.monotonic()
            self._console.print(self._tally.status())
