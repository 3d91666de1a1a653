"""What a profiler's trace says of a card: times are seconds."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ATTENTION = {
    "flash": ("flash",),
    "memory-efficient": ("fmha", "efficient_attention"),
    "cuDNN": ("cudnn_generated_fort_native_sdpa", "cudnn_sdpa", "sdpa_sm"),
    "math (softmax)": ("softmax",),
}
"""Backends by what their kernels' names hold; the first that fits counts."""
ON_CARD = ("kernel", "gpu_memcpy", "gpu_memset")
WAITS = ("Synchronize", "cudaMemcpy")
"""Calls in which the host waits for the card: a copy from pageable memory does as well."""
LAUNCHES = ("LaunchKernel", "GraphLaunch")
NAME = 72


@dataclass(frozen=True)
class Event:
    name: str
    kind: str
    """``kernel``, ``gpu_memcpy``, ``cuda_runtime``, …"""
    start: float
    seconds: float
    thread: int
    bytes: int


@dataclass(frozen=True)
class Trace:
    events: Sequence[Event]

    @classmethod
    def read(cls, path: Path) -> Trace:
        """Of a file in Chrome's format."""
        told = json.loads(path.read_text(errors="replace"))["traceEvents"]
        return cls([_event(each) for each in told if each.get("ph") == "X" and "cat" in each])

    def first(self, seconds: float) -> Trace:
        """What began so soon: the profiler goes on for a while until it has stopped."""
        until = (
            min((event.start for event in self.events if event.kind in ON_CARD), default=0.0)
            + seconds
        )
        return Trace([event for event in self.events if event.start < until])

    def of(self, *kinds: str) -> list[Event]:
        return [event for event in self.events if event.kind in kinds]

    @property
    def kernels(self) -> list[Event]:
        return self.of("kernel")

    def busy(self) -> tuple[float, NDArray[np.float64]]:
        """How long the card worked, kernels and copies that overlap counted once, and the gaps
        between."""
        work = sorted(self.of(*ON_CARD), key=lambda event: event.start)
        if not work:
            return 0.0, np.zeros(0)
        starts = np.array([event.start for event in work])
        ends = np.maximum.accumulate([event.start + event.seconds for event in work])
        gaps = starts[1:] - ends[:-1]
        gaps = gaps[gaps > 0]
        return float(ends[-1] - starts[0] - gaps.sum()), gaps

    def largest(self, count: int) -> list[tuple[str, float, int]]:
        """Kernels by name, with their seconds and how many there were."""
        seconds, numbers = Counter[str](), Counter[str]()
        for event in self.kernels:
            seconds[short(event.name)] += event.seconds  # type: ignore[assignment]
            numbers[short(event.name)] += 1
        return [(name, total, numbers[name]) for name, total in seconds.most_common(count)]

    def attention(self) -> dict[str, float]:
        """Seconds in the kernels of each of attention's backends."""
        seconds = dict.fromkeys(ATTENTION, 0.0)
        for event in self.kernels:
            name = event.name.lower()
            backend = next(
                (each for each, marks in ATTENTION.items() if any(mark in name for mark in marks)),
                None,
            )
            if backend is not None:
                seconds[backend] += event.seconds
        return {backend: each for backend, each in seconds.items() if each}

    def copies(self) -> dict[str, tuple[int, int]]:
        """How many copies of each direction, and their bytes."""
        found: dict[str, tuple[int, int]] = {}
        for event in self.of("gpu_memcpy"):
            direction = next(
                (each for each in ("HtoD", "DtoH", "DtoD") if each in event.name), "other"
            )
            number, size = found.get(direction, (0, 0))
            found[direction] = number + 1, size + event.bytes
        return found

    def calls(self, marks: Sequence[str], thread: int) -> list[Event]:
        """A thread's calls of CUDA whose names hold one of these; all threads' if the trace has
        other numbers."""
        calls = self.of("cuda_runtime", "cuda_driver")
        mine = [event for event in calls if event.thread == thread] or calls
        return [event for event in mine if any(mark in event.name for mark in marks)]


def short(name: str) -> str:
    """A kernel's name without its parameters and what all of torch's begin with."""
    for noise in ("(anonymous namespace)::", "at::native::", "void ", "c10::"):
        name = name.replace(noise, "")
    return name.split("(")[0][:NAME]


def _event(told: dict[str, Any]) -> Event:
    thread, size = told.get("tid"), told.get("args", {}).get("bytes", 0)
    return Event(
        name=str(told["name"]),
        kind=str(told["cat"]),
        start=float(told["ts"]) / 1e6,
        seconds=float(told.get("dur", 0)) / 1e6,
        thread=thread if isinstance(thread, int) else -1,
        bytes=int(size),
    )
