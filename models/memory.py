"""GPU memory of a replica: its share of a GPU is enforced here, since Ray only counts shares."""

from __future__ import annotations

import gc
import math
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch

from models.malloc_trim import malloc_trim
from raylens.core.types import MemoryUsage
from raylens.engine.memory_guard import MemoryGuard

CPU_KV_BYTES = 2**30
CONTEXT_BYTES = 2**30
"""Memory that a process's CUDA context takes, with its kernels and graphs: 0.7 GiB on an H100.
torch's own limit leaves it out."""
WORKING_SHARE = 0.2
"""Fraction of a replica's share that is reserved for working memory: that of prefill and the vision
encoder, once for plain operations and once for CUDA graphs, and what graphs hold."""


def limit_gpu_memory(device: str, gpus: float) -> None:
    """Limit this process to the fraction ``gpus`` of its GPU's memory.

    Allocations beyond that raise ``torch.OutOfMemoryError``.
    """
    if device.startswith("cuda") and 0 < gpus < 1:
        total = _gpu_bytes()
        torch.cuda.set_per_process_memory_fraction(max(0.0, share_bytes(total, gpus) / total))


def memory_usage(device: str, gpus: float = 0.0) -> MemoryUsage:
    """Return the memory of this process: on its GPU, of which its share is ``gpus``, or on its node
    if the device is a CPU."""
    host = socket.gethostname()
    replica = f"{host}:{os.getpid()}"
    if device.startswith("cuda"):
        unit = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
        allocated, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
        total = _gpu_bytes()
        share = share_bytes(total, gpus)
        return MemoryUsage(device, unit, total, allocated, reserved, replica, share)
    resident = int(psutil.Process().memory_info().rss)
    total = int(psutil.virtual_memory().total)
    return MemoryUsage(device, host, total, resident, resident, replica)


def make_memory_guard(
    device: str, gpus: float, kv_bytes: int, threshold: float | None
) -> MemoryGuard | None:
    """Return a guard of the replica's share of its GPU; None on a CPU, and without a threshold."""
    if threshold is None or not device.startswith("cuda"):
        return None
    available = share_bytes(_gpu_bytes(), gpus) - kv_bytes
    return MemoryGuard(
        available, kv_bytes, threshold, torch.cuda.memory_reserved, torch.cuda.empty_cache
    )


def return_unused_memory() -> None:
    """Return what the allocators of the GPU and of this process keep for later."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    malloc_trim()


@contextmanager
def report_oversized_weights(device: str, gpus: float) -> Iterator[None]:
    """Raise ``MemoryError``, with the size of the replica's share, if the weights don't fit into
    it."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        share = share_bytes(_gpu_bytes(), gpus)
        raise MemoryError(
            f"the weights don't fit into {_gib(share)}, this replica's share of the GPU"
            f" (num_gpus: {gpus:g})"
        ) from error


def kv_cache_bytes(device: str, gpus: float, reserved: int, configured: int | None = None) -> int:
    """Return the size of the KV cache in bytes.

    On CUDA, it defaults to all that the loaded model leaves of the replica's share, minus
    ``reserved`` bytes for other caches. On a CPU, it defaults to ``CPU_KV_BYTES``. Raises
    ``MemoryError`` if nothing remains on CUDA, or less than ``configured``.
    """
    if not device.startswith("cuda"):
        return CPU_KV_BYTES if configured is None else configured
    share = share_bytes(_gpu_bytes(), gpus)
    remaining = remaining_bytes(share, torch.cuda.memory_allocated(), reserved)
    return choose_kv_bytes(remaining, configured)


def choose_kv_bytes(remaining: int, configured: int | None) -> int:
    """Return ``configured``, or by default all that remains.

    Raises ``MemoryError`` if less than ``configured`` remains.
    """
    if configured is not None and configured > remaining:
        raise MemoryError(
            f"kv_cache: {_gib(configured)}; the limit is {_gib(remaining)}, which the weights and"
            " the other caches leave of this replica's share of the GPU"
        )
    return remaining if configured is None else configured


def share_bytes(total: int, gpus: float) -> int:
    """Return the bytes that torch may allocate on a GPU of ``total`` bytes.

    ``gpus`` is the replica's share of the GPU; 0 means all of it.
    """
    return int(total * min(1.0, gpus or 1.0)) - CONTEXT_BYTES


def remaining_bytes(share: int, weights: int, caches: int) -> int:
    """Return the bytes that weights, caches and working memory leave of a share.

    Raises ``MemoryError`` if they leave nothing.
    """
    remaining = int(share * (1 - WORKING_SHARE)) - weights - caches
    if remaining <= 0:
        raise MemoryError(
            f"this replica's share of the GPU is {_gib(share)}; the weights ({_gib(weights)}) and"
            f" the caches ({_gib(caches)}) leave nothing for the KV cache"
        )
    return remaining


def needed_bytes(weights: int, caches: int, kv_cache: int) -> int:
    """Return the least part of a GPU's memory in which :func:`remaining_bytes` leaves ``kv_cache``
    bytes."""
    return math.ceil((weights + caches + kv_cache) / (1 - WORKING_SHARE)) + CONTEXT_BYTES


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


def _gpu_bytes() -> int:
    return int(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)
