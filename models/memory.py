"""How much memory a replica may take: its share of a GPU is enforced here, since Ray only counts
it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

CPU_KV_BYTES = 2**30
CONTEXT_BYTES = 2**30
"""What CUDA itself takes for a process, its kernels and graphs included, and torch's own bound
leaves out: 0.7 GiB on an H100."""
WORKING_SHARE = 0.2
"""Of a replica's share, what is kept free for the working memory of prefill and the vision tower,
once for plain operations and once for CUDA graphs, and for what graphs hold."""


def hold_to_share(device: str, gpus: float) -> None:
    """Lets this process take no more than ``gpus`` of its card; more fails as out of memory."""
    if device.startswith("cuda") and 0 < gpus < 1:
        total = _card_bytes()
        torch.cuda.set_per_process_memory_fraction(max(0.0, share_bytes(total, gpus) / total))


@contextmanager
def loading(device: str, gpus: float) -> Iterator[None]:
    """Around the loading of a model. Raises ``MemoryError`` with the share's figures if the weights
    don't fit."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        share = share_bytes(_card_bytes(), gpus) / 2**30
        raise MemoryError(
            f"the weights don't fit into {share:.1f} GiB, this replica's share of the GPU (num_gpus: {gpus:g})"
        ) from error


def kv_budget(device: str, gpus: float, kept: int, wanted: int | None = None) -> int:
    """Bytes for keys and values: ``wanted``, or, where the configuration names none, on CUDA what
    is left of the share, once the model is loaded and ``kept`` bytes are set aside for other
    caches. Raises ``MemoryError`` where nothing is left, or less than is wanted."""
    if not device.startswith("cuda"):
        return CPU_KV_BYTES if wanted is None else wanted
    share = share_bytes(_card_bytes(), gpus)
    return within(left_of(share, torch.cuda.memory_allocated(), kept), wanted)


def within(left: int, wanted: int | None) -> int:
    """What is ``wanted``, or all that is left. Raises ``MemoryError`` where that is too little."""
    if wanted is not None and wanted > left:
        raise MemoryError(
            f"kv_cache: {wanted / 2**30:.1f} GiB; the weights and the other caches leave {left / 2**30:.1f} GiB of this"
            " replica's share of the GPU"
        )
    return left if wanted is None else wanted


def share_bytes(total: int, gpus: float) -> int:
    """What torch may allocate of a card of ``total`` bytes, ``gpus`` of which a replica holds; 0
    means all of it."""
    return int(total * min(1.0, gpus or 1.0)) - CONTEXT_BYTES


def left_of(share: int, weights: int, kept: int) -> int:
    """Bytes that weights, caches and working memory leave. Raises ``MemoryError`` where they leave
    nothing."""
    left = int(share * (1 - WORKING_SHARE)) - weights - kept
    if left <= 0:
        raise MemoryError(
            f"the weights ({weights / 2**30:.1f} GiB) and the caches ({kept / 2**30:.1f} GiB) leave nothing of"
            f" {share / 2**30:.1f} GiB, this replica's share of the GPU, for keys and values"
        )
    return left


def _card_bytes() -> int:
    return int(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)
