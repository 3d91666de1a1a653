"""What is known so far: printed line by line, and written anew after each, so that a run cut off
still tells."""

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

SHOWN, WIDTH = 6, 300
"""ResultFile of a traceback, and their characters."""


@dataclass(frozen=True)
class Line:
    """A result in words, and its figures."""

    text: str
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """What can succeed or fail by itself."""

    name: str
    work: Callable[[], Iterator[Line]]


@dataclass
class Told:
    """What became of a part: ``done``, ``failed``, ``skipped``, or ``running`` if the run was cut
    off."""

    stage: str
    name: str
    state: str = "running"
    seconds: float = 0.0
    lines: list[Line] = field(default_factory=list)
    error: str = ""


class Results:
    """``about`` says what ran, and where."""

    def __init__(self, folder: Path, minutes: float, about: Mapping[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "results.json"
        self._started = time.monotonic()
        self._budget_s = 60 * minutes
        self._about = dict(about)
        self.parts: list[Told] = []

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    @property
    def failed(self) -> bool:
        return any(told.state == "failed" for told in self.parts)

    def run(self, stage: str, part: Part) -> None:
        """Does a part, unless the budget is spent; whatever it raises is told, and kept."""
        told = Told(stage, part.name)
        self.parts.append(told)
        if self.seconds > self._budget_s:
            told.state = "skipped"
            self._tell(told, "skipped: the budget is spent")
            return
        started = time.monotonic()
        try:
            for line in part.work():
                told.lines.append(line)
                self._tell(told, line.text)
            told.state = "done"
        except Exception as error:  # one failing check must not hide the others
            told.state, told.error = "failed", traceback.format_exc()
            behind = _behind(error)
            words = " ".join(str(behind).split())[:200]
            self._tell(told, f"FAILED: {type(behind).__name__}: {words}")
            lines = "".join(traceback.format_exception(behind)).splitlines()
            print("\n".join(line[:WIDTH] for line in lines[-SHOWN:]), flush=True)
        if told.state == "failed":
            free()  # what the traceback has held
        told.seconds = time.monotonic() - started
        self._write()

    def summary(self) -> None:
        """A line for each stage, and the names of what didn't end well."""
        print(f"\n| stage | parts | failed | skipped | seconds |\n{'| --- ' * 5}|")
        for stage in dict.fromkeys(told.stage for told in self.parts):
            parts = [told for told in self.parts if told.stage == stage]
            states = Counter(told.state for told in parts)
            seconds = sum(told.seconds for told in parts)
            print(
                f"| {stage} | {len(parts)} | {states['failed']} | {states['skipped']} | {seconds:.0f} |"
            )
        for told in self.parts:
            for line in told.lines:
                if "goal" in line.figures:
                    print(f"{told.stage} {told.name}: {line.text}")
        for told in self.parts:
            if told.state != "done":
                print(f"{told.state}: {told.stage} {told.name}")
        print(f"{self.seconds:.0f} s in all", flush=True)

    def _tell(self, told: Told, text: str) -> None:
        print(f"{self.seconds:6.1f} s  {told.stage} {told.name}: {text}", flush=True)
        self._write()

    def _write(self) -> None:
        whole = {**self._about, "seconds": self.seconds, "parts": list(map(asdict, self.parts))}
        written = self._path.with_suffix(".new")
        written.write_text(json.dumps(whole, indent=1, ensure_ascii=False, default=str) + "\n")
        os.replace(written, self._path)


def goal(text: str, value: float, least: float) -> Line:
    """Whether a goal is met; one that is missed fails nothing."""
    met = value >= least
    figures = {"goal": text, "value": value, "least": least, "met": met}
    return Line(
        f"goal {'met' if met else 'MISSED'}: {text}: {value:.3g} (at least {least:g})", figures
    )


def free() -> None:
    """Gives back what nobody holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _behind(error: Exception) -> Exception:
    """A group's first."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error
