"""How much memory a replica may take: its share of a GPU is enforced here, since Ray only counts it."""

from __future__ import annotations

import torch

CPU_KV_BYTES = 2**30
_WORKING_SHARE = 0.15
"""Of a replica's share of a card, what is kept free for the working memory of prefill and the vision tower."""


def hold_to_share(device: str, gpus: float) -> None:
    """Lets this process take no more than ``gpus`` of its card; more fails as out of memory."""
    if device.startswith("cuda") and 0 < gpus < 1:
        torch.cuda.set_per_process_memory_fraction(gpus)


def kv_budget(device: str, gpus: float, kept: int) -> int:
    """Bytes for keys and values where the configuration names none: on CUDA what is left of the share, once the model
    is loaded and ``kept`` bytes are set aside for other caches. Raises ``MemoryError`` where nothing is left."""
    if not device.startswith("cuda"):
        return CPU_KV_BYTES
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    share = total * min(1.0, gpus or 1.0)
    left = int(share * (1 - _WORKING_SHARE)) - torch.cuda.memory_allocated() - kept
    if left <= 0:
        raise MemoryError(
            f"the model and its caches leave nothing of {share / 2**30:.1f} GiB, the replica's share of the GPU, for"
            " keys and values"
        )
    return left
