"""What the device can do, measured."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.engine.limits import Machine, in_a_thread, timed

TRIES = 12


def describe(device: str) -> str:
    if device.startswith("cuda"):
        card = torch.cuda.get_device_properties(0)
        return f"{card.name}, {card.total_memory / 2**30:.1f} GiB, CUDA {torch.version.cuda}, torch {torch.__version__}"
    return f"CPU, {os.cpu_count()} cores, torch {torch.__version__}"


@dataclass(frozen=True)
class Card:
    """10⁹ a second: operations in bfloat16, bytes read and written in a copy, and bytes read."""

    gflops: float
    copied: float
    read: float

    def __str__(self) -> str:
        return f"{self.gflops / 1000:.3g} TFLOP/s, copies {self.copied:.0f} GB/s, reads {self.read:.0f} GB/s"

    @property
    def machine(self) -> Machine:
        """What limits are worked out from: of the two rates of memory, the higher."""
        return Machine(self.gflops, max(self.copied, self.read))


def measure(device: str) -> Card:
    """The best of several tries, with all threads."""
    return in_a_thread(lambda: _measured(device), os.cpu_count() or 1)


def _measured(device: str) -> Card:
    side, size = (8192, 2 * 2**30) if device.startswith("cuda") else (512, 64 * 2**20)
    left, right = (torch.randn(side, side, dtype=torch.bfloat16, device=device) for _ in range(2))
    multiplied = _best(lambda: left @ right, device)
    buffer = torch.ones(size // 4, device=device)
    copy = torch.empty_like(buffer)
    copied, read = _best(lambda: copy.copy_(buffer), device), _best(buffer.sum, device)
    return Card(2 * side**3 / multiplied / 1e9, 2 * size / copied / 1e9, size / read / 1e9)


def _best(work: Callable[[], object], device: str) -> float:
    """The least seconds of several tries."""
    return min(timed(work, device) for _ in range(TRIES))
