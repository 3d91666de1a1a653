"""What the stages share: the options, the device's limits, the model at hand, and pictures."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from benchmarks.gpu.card import Card, measure
from benchmarks.gpu.pixels import processes
from benchmarks.gpu.results import free
from benchmarks.gpu.subjects import FAMILIES, Subject, build
from benchmarks.photograph import photograph

Size = tuple[int, int]
"""(width, height) in pixels."""
MOST_PROCESSES = 8


@dataclass
class Setup:
    device: str
    scale: str
    models: Sequence[str]
    threads: int
    folder: Path
    """For files that nobody needs afterwards."""
    _subject: Subject | None = None
    _processes: ProcessPoolExecutor | None = None
    _jpegs: dict[Size, list[bytes]] = field(default_factory=dict)

    @property
    def is_cuda(self) -> bool:
        return self.device.startswith("cuda")

    @property
    def is_tiny(self) -> bool:
        return self.scale == "tiny"

    @property
    def families(self) -> list[str]:
        return list(dict.fromkeys(FAMILIES[name] for name in self.models))

    @cached_property
    def card(self) -> Card:
        return measure(self.device)

    @property
    def processes(self) -> ProcessPoolExecutor:
        """That preprocess pictures, the same ones until the end."""
        if self._processes is None:
            self._processes = processes(
                min(MOST_PROCESSES, self.threads), self.jpegs((640, 480), 1)[0]
            )
        return self._processes

    def subject(self, name: str, reference: bool = False) -> Subject:
        """The model of this name; one is held at a time. ``reference``: with transformers' modules
        beside it, which take memory from keys and values; to build it anew is cheap."""
        held = self._subject
        if held is None or held.name != name or reference != (held.reference is not None):
            del held
            self.free()
            self._subject = build(name, self.scale, self.device, reference)
            return self._subject
        return held

    def free(self) -> None:
        """Lets go of the model that is held."""
        self._subject = None
        free()

    def close(self) -> None:
        if self._processes is not None:
            self._processes.shutdown()

    def jpegs(self, size: Size, count: int) -> list[bytes]:
        """So many different pictures, the same at every call."""
        made = self._jpegs.setdefault(size, [])
        if len(made) < count:
            with ThreadPoolExecutor(self.threads) as pool:
                seeds = range(len(made), count)
                made += pool.map(
                    photograph, itertools.repeat(size[0]), itertools.repeat(size[1]), seeds
                )
        return made[:count]
