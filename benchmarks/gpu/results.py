"""The results so far, printed line by line and rewritten to a file after each line, so that a run
that is cut off keeps them."""

from __future__ import annotations

import gc
import json
import os
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

TRACEBACK_LINES = 6
"""Last lines of a traceback to print."""
TRACEBACK_WIDTH = 300
"""Characters of each line."""


@dataclass(frozen=True)
class Line:
    """A result as text and as figures."""

    text: str
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StagePart:
    """A check or measurement that succeeds or fails independently of the others."""

    name: str
    work: Callable[[], Iterator[Line]]


@dataclass
class PartResult:
    """Outcome of a part."""

    stage: str
    name: str
    state: str = "running"
    """``done``, ``failed``, ``skipped``, or ``running`` if the run was cut off."""
    seconds: float = 0.0
    lines: list[Line] = field(default_factory=list)
    error: str = ""
    """Traceback of a failed part."""


class Results:
    """Runs parts within a time budget, and writes their results to ``results.json``."""

    def __init__(self, folder: Path, minutes: float, environment: Mapping[str, Any]) -> None:
        """``environment`` (device, versions, options) is stored beside the results."""
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "results.json"
        self._started = time.monotonic()
        self._budget_s = 60 * minutes
        self._environment = dict(environment)
        self.parts: list[PartResult] = []

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    @property
    def failed(self) -> bool:
        return any(result.state == "failed" for result in self.parts)

    def run(self, stage: str, part: StagePart) -> None:
        """Run a part, or skip it if the budget is spent. An exception is reported and stored."""
        result = PartResult(stage, part.name)
        self.parts.append(result)
        if self.seconds > self._budget_s:
            result.state = "skipped"
            self._report(result, "skipped: the time budget is spent")
            return
        started = time.monotonic()
        try:
            for line in part.work():
                result.lines.append(line)
                self._report(result, line.text)
            result.state = "done"
        except Exception as error:  # one failing check must not hide the others
            result.state = "failed"
            result.error = traceback.format_exc()
            self._report_error(result, error)
        if result.state == "failed":
            free()  # what the traceback's frames held
        result.seconds = time.monotonic() - started
        self._write()

    def print_summary(self) -> None:
        """Print a row for each stage, the goals, and the parts that did not succeed."""
        print(f"\n| stage | parts | failed | skipped | seconds |\n{'| --- ' * 5}|")
        for stage in dict.fromkeys(result.stage for result in self.parts):
            parts = [result for result in self.parts if result.stage == stage]
            states = Counter(result.state for result in parts)
            seconds = sum(result.seconds for result in parts)
            counts = f"{len(parts)} | {states['failed']} | {states['skipped']}"
            print(f"| {stage} | {counts} | {seconds:.0f} |")
        for result in self.parts:
            for line in result.lines:
                if "goal" in line.figures:
                    print(f"{result.stage} {result.name}: {line.text}")
        for result in self.parts:
            if result.state != "done":
                print(f"{result.state}: {result.stage} {result.name}")
        print(f"{self.seconds:.0f} s in all", flush=True)

    def _report(self, result: PartResult, text: str) -> None:
        print(f"{self.seconds:6.1f} s  {result.stage} {result.name}: {text}", flush=True)
        self._write()

    def _report_error(self, result: PartResult, error: Exception) -> None:
        cause = _first_cause(error)
        message = " ".join(str(cause).split())[:200]
        self._report(result, f"FAILED: {type(cause).__name__}: {message}")
        lines = "".join(traceback.format_exception(cause)).splitlines()
        last_lines = [line[:TRACEBACK_WIDTH] for line in lines[-TRACEBACK_LINES:]]
        print("\n".join(last_lines), flush=True)

    def _write(self) -> None:
        document = {
            **self._environment,
            "seconds": self.seconds,
            "parts": list(map(asdict, self.parts)),
        }
        new_path = self._path.with_suffix(".new")
        text = json.dumps(document, indent=1, ensure_ascii=False, default=str)
        new_path.write_text(text + "\n")
        os.replace(new_path, self._path)


def make_goal_line(text: str, value: float, least: float) -> Line:
    """Report whether a goal is met. A missed goal does not fail its part."""
    met = value >= least
    figures = {"goal": text, "value": value, "least": least, "met": met}
    verdict = "met" if met else "MISSED"
    return Line(f"goal {verdict}: {text}: {value:.3g} (at least {least:g})", figures)


def free() -> None:
    """Collect garbage, and return unused GPU memory to the driver."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _first_cause(error: Exception) -> Exception:
    """Return the first exception of a group, at any depth."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error
