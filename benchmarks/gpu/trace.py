"""Figures from a profiler's trace of a GPU. Times are in seconds."""

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
"""Attention backends, by substrings of their kernels' names. The first match counts."""
GPU_EVENTS = ("kernel", "gpu_memcpy", "gpu_memset")
WAITS = ("Synchronize", "cudaMemcpy")
"""CUDA calls in which the host waits for the card. A copy from pageable memory waits as well."""
LAUNCHES = ("LaunchKernel", "GraphLaunch")
MAX_NAME = 72
"""Characters of a kernel's name that are kept."""


@dataclass(frozen=True)
class Event:
    name: str
    category: str
    """``kernel``, ``gpu_memcpy``, ``cuda_runtime``, …"""
    start: float
    seconds: float
    thread: int
    bytes: int


@dataclass(frozen=True)
class Trace:
    """Events of a profiled interval."""

    events: Sequence[Event]

    @classmethod
    def read(cls, path: Path) -> Trace:
        """Read a file in Chrome's trace format."""
        entries = json.loads(path.read_text(errors="replace"))["traceEvents"]
        return cls(
            [_parse_event(entry) for entry in entries if entry.get("ph") == "X" and "cat" in entry]
        )

    def first(self, seconds: float) -> Trace:
        """Return the events that start within ``seconds`` of the first GPU event.

        The profiler goes on recording for a while after the interval, until it has stopped.
        """
        gpu_starts = (event.start for event in self.events if event.category in GPU_EVENTS)
        until = min(gpu_starts, default=0.0) + seconds
        return Trace([event for event in self.events if event.start < until])

    def of(self, *categories: str) -> list[Event]:
        return [event for event in self.events if event.category in categories]

    @property
    def kernels(self) -> list[Event]:
        return self.of("kernel")

    def busy(self) -> tuple[float, NDArray[np.float64]]:
        """Return the seconds in which the card worked, and the gaps between.

        Kernels and copies that overlap count once.
        """
        work = sorted(self.of(*GPU_EVENTS), key=lambda event: event.start)
        if not work:
            return 0.0, np.zeros(0)
        starts = np.array([event.start for event in work])
        ends = np.maximum.accumulate([event.start + event.seconds for event in work])
        gaps = starts[1:] - ends[:-1]
        gaps = gaps[gaps > 0]
        return float(ends[-1] - starts[0] - gaps.sum()), gaps

    def largest(self, count: int) -> list[tuple[str, float, int]]:
        """Return the ``count`` kernels that took the longest: name, total seconds and launches."""
        seconds = Counter[str]()
        launches = Counter[str]()
        for event in self.kernels:
            name = shorten_name(event.name)
            seconds[name] += event.seconds  # type: ignore[assignment]
            launches[name] += 1
        return [(name, total, launches[name]) for name, total in seconds.most_common(count)]

    def attention(self) -> dict[str, float]:
        """Return the seconds in the kernels of each attention backend in use."""
        seconds = dict.fromkeys(ATTENTION, 0.0)
        for event in self.kernels:
            backend = _find_backend(event.name)
            if backend is not None:
                seconds[backend] += event.seconds
        return {backend: total for backend, total in seconds.items() if total}

    def copies(self) -> dict[str, tuple[int, int]]:
        """Return the number of copies in each direction, and their bytes."""
        copies: dict[str, tuple[int, int]] = {}
        for event in self.of("gpu_memcpy"):
            direction = _find_direction(event.name)
            count, size = copies.get(direction, (0, 0))
            copies[direction] = count + 1, size + event.bytes
        return copies

    def calls(self, substrings: Sequence[str], thread: int) -> list[Event]:
        """Return the thread's CUDA calls whose names contain one of the substrings.

        Falls back to all threads if the trace has no calls under this thread id.
        """
        calls = self.of("cuda_runtime", "cuda_driver")
        calls = [event for event in calls if event.thread == thread] or calls
        return [event for event in calls if any(part in event.name for part in substrings)]


def shorten_name(name: str) -> str:
    """Return a kernel's name without its parameters and torch's common prefixes."""
    for noise in ("(anonymous namespace)::", "at::native::", "void ", "c10::"):
        name = name.replace(noise, "")
    return name.split("(")[0][:MAX_NAME]


def _find_backend(kernel: str) -> str | None:
    """Return the attention backend of a kernel; None if it has none."""
    name = kernel.lower()
    for backend, substrings in ATTENTION.items():
        if any(part in name for part in substrings):
            return backend
    return None


def _find_direction(name: str) -> str:
    for direction in ("HtoD", "DtoH", "DtoD"):
        if direction in name:
            return direction
    return "other"


def _parse_event(entry: dict[str, Any]) -> Event:
    thread = entry.get("tid")
    return Event(
        name=str(entry["name"]),
        category=str(entry["cat"]),
        start=float(entry["ts"]) / 1e6,
        seconds=float(entry.get("dur", 0)) / 1e6,
        thread=thread if isinstance(thread, int) else -1,
        bytes=int(entry.get("args", {}).get("bytes", 0)),
    )
