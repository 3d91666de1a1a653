"""State shared by the stages: options, device rates, the loaded model, and pictures."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from benchmarks.gpu.card import Card, measure
from benchmarks.gpu.pixels import start_processes
from benchmarks.gpu.results import free
from benchmarks.gpu.subjects import FAMILY_BY_MODEL, Subject, build
from benchmarks.photograph import draw_photograph

Size = tuple[int, int]
"""(width, height) in pixels."""
MAX_PROCESSES = 8
"""Maximum number of processes that preprocess pictures."""


@dataclass
class Setup:
    """Options of the run, and what the stages build once."""

    device: str
    scale: str
    models: Sequence[str]
    threads: int
    folder: Path
    """Folder for temporary files."""
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
        return list(dict.fromkeys(FAMILY_BY_MODEL[name] for name in self.models))

    @cached_property
    def card(self) -> Card:
        return measure(self.device)

    @property
    def processes(self) -> ProcessPoolExecutor:
        """Processes that preprocess pictures, started once for all stages."""
        if self._processes is None:
            count = min(MAX_PROCESSES, self.threads)
            (jpeg,) = self.jpegs((640, 480), 1)
            self._processes = start_processes(count, jpeg)
        return self._processes

    def subject(self, name: str, reference: bool = False) -> Subject:
        """Return the model of this name. Only one model is in memory at a time.

        ``reference`` keeps transformers' modules beside it. They take memory from the KV cache, and
        rebuilding the model without them is cheap.
        """
        subject = self._subject
        has_reference = subject is not None and subject.reference is not None
        if subject is not None and subject.name == name and has_reference == reference:
            return subject
        del subject
        self.free()
        self._subject = build(name, self.scale, self.device, reference)
        return self._subject

    def free(self) -> None:
        """Drop the model in memory."""
        self._subject = None
        free()

    def close(self) -> None:
        if self._processes is not None:
            self._processes.shutdown()

    def jpegs(self, size: Size, count: int) -> list[bytes]:
        """Return ``count`` different pictures, the same ones at every call."""
        jpegs = self._jpegs.setdefault(size, [])
        if len(jpegs) < count:
            with ThreadPoolExecutor(self.threads) as pool:
                widths = itertools.repeat(size[0])
                heights = itertools.repeat(size[1])
                seeds = range(len(jpegs), count)
                jpegs += pool.map(draw_photograph, widths, heights, seeds)
        return jpegs[:count]
