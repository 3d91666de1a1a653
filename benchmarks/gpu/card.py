"""Measured rates of the device."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.engine.limits import Machine, measure_seconds, run_in_thread

TRIES = 12


def describe(device: str) -> str:
    if device.startswith("cuda"):
        card = torch.cuda.get_device_properties(0)
        memory = f"{card.total_memory / 2**30:.1f} GiB"
        return f"{card.name}, {memory}, CUDA {torch.version.cuda}, torch {torch.__version__}"
    return f"CPU, {os.cpu_count()} cores, torch {torch.__version__}"


@dataclass(frozen=True)
class Card:
    """Rates of the device, in 10⁹ a second."""

    gflops: float
    """Multiplications and additions of a bfloat16 GEMM."""
    copied: float
    """Bytes read and written by a copy."""
    read: float
    """Bytes read by a sum."""

    def __str__(self) -> str:
        tflops = self.gflops / 1000
        return f"{tflops:.3g} TFLOP/s, copies {self.copied:.0f} GB/s, reads {self.read:.0f} GB/s"

    @property
    def machine(self) -> Machine:
        """Rates that the limits are computed from, with the higher of the two memory rates."""
        return Machine(self.gflops, max(self.copied, self.read))


def measure(device: str) -> Card:
    """Return the best rates of several tries, with all threads."""
    return run_in_thread(lambda: _measure(device), os.cpu_count() or 1)


def _measure(device: str) -> Card:
    is_cuda = device.startswith("cuda")
    side = 8192 if is_cuda else 512
    size = 2 * 2**30 if is_cuda else 64 * 2**20
    left = torch.randn(side, side, dtype=torch.bfloat16, device=device)
    right = torch.randn(side, side, dtype=torch.bfloat16, device=device)
    gemm_s = _least_seconds(lambda: left @ right, device)
    buffer = torch.ones(size // 4, device=device)
    target = torch.empty_like(buffer)
    copy_s = _least_seconds(lambda: target.copy_(buffer), device)
    read_s = _least_seconds(buffer.sum, device)
    return Card(2 * side**3 / gemm_s / 1e9, 2 * size / copy_s / 1e9, size / read_s / 1e9)


def _least_seconds(work: Callable[[], object], device: str) -> float:
    """Return the least seconds of several tries."""
    return min(measure_seconds(work, device) for _ in range(TRIES))
