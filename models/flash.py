"""Attention over sequences of different lengths in one call, by torch's flash attention.

The operator is called directly, because its arguments are stable. Those of its wrapper,
``torch.nn.attention.varlen``, change their names from one torch release to the next.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from raylens.engine.transfer import upload

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SequenceBounds:
    """The boundaries of sequences that are concatenated in one tensor."""

    cu_seqlens: Tensor
    """The start of each sequence and the end of the last, in tokens: int32 (sequences + 1,)."""
    max_seqlen: int
    """An upper bound of the sequences' lengths, in tokens."""

    @classmethod
    def of(
        cls,
        lengths: Sequence[int],
        device: str | torch.device,
        count: int | None = None,
        max_seqlen: int | None = None,
    ) -> SequenceBounds:
        """Return the bounds of sequences of these lengths.

        Empty sequences pad them to ``count``. ``max_seqlen`` defaults to the longest length.
        """
        starts = np.full((count or len(lengths)) + 1, sum(lengths), np.int32)
        starts[: len(lengths) + 1] = np.cumsum([0, *lengths])
        return cls(upload(starts, device), max_seqlen or max(lengths))


def flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    queries: SequenceBounds,
    keys: SequenceBounds,
    causal: bool = False,
    seqused: Tensor | None = None,
) -> Tensor:
    """Attend within each sequence: queries (tokens, heads, head_dim) to keys and values (tokens,
    kv heads, head_dim). Returns (tokens, heads, head_dim).

    ``seqused``, int32 (sequences,), is the number of a sequence's keys that are used; by default
    all are. If ``causal``, a sequence's last query sees all of these keys, and each earlier query
    one fewer than the next.
    """
    out: Tensor = torch.ops.aten._flash_attention_forward(
        query,
        key,
        value,
        queries.cu_seqlens,
        keys.cu_seqlens,
        queries.max_seqlen,
        keys.max_seqlen,
        0.0,
        causal,
        False,
        seqused_k=seqused,
    )[0]
    return out


@cache
def has_flash_attention(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether ``flash_attention`` runs here: in half precision, on NVIDIA GPUs since Ampere."""
    if (
        device.type != "cuda"
        or dtype not in (torch.float16, torch.bfloat16)
        or head_dim % 8
        or head_dim > 256
    ):
        return False
    states = torch.ones(2, 1, head_dim, dtype=dtype, device=device)
    bounds = SequenceBounds.of([1, 1], device)
    seqused = torch.ones(2, dtype=torch.int32, device=device)
    try:
        flash_attention(states, states, states, bounds, bounds, seqused=seqused)
    except RuntimeError as error:
        logger.warning("flash attention is not available: %s", error)
        return False
    return True
