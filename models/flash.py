"""Attention over sequences of different lengths in one call, by the flash attention that comes with
torch.

torch's own wrapper, ``torch.nn.attention.varlen``, names its arguments differently from one release
to the next; what it calls does not.
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
    """Sequences that lie one behind another: where each begins, and the end of the last."""

    cu_seqlens: Tensor
    """int32 (sequences + 1,)."""
    max_seqlen: int

    @classmethod
    def of(
        cls,
        lengths: Sequence[int],
        device: str | torch.device,
        count: int | None = None,
        max_seqlen: int | None = None,
    ) -> SequenceBounds:
        """``count``: filled up to so many by sequences without tokens; ``max_seqlen``: a bound of
        their lengths."""
        starts = np.full((count or len(lengths)) + 1, sum(lengths), np.int32)
        starts[: len(lengths) + 1] = np.cumsum([0, *lengths])
        return cls(upload(starts, device), max_seqlen or max(lengths))


def flash(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    queries: SequenceBounds,
    keys: SequenceBounds,
    causal: bool = False,
    seqused: Tensor | None = None,
) -> Tensor:
    """Attention of queries (tokens, heads, head size) to keys and values (tokens, key heads, head
    size) of the same sequence. ``seqused``, int32 (sequences,): how many of a sequence's keys
    count. ``causal``: the last query sees all of these, and each before it one less."""
    lengths = queries.max_seqlen, keys.max_seqlen
    out: Tensor = torch.ops.aten._flash_attention_forward(
        query,
        key,
        value,
        queries.cu_seqlens,
        keys.cu_seqlens,
        *lengths,
        0.0,
        causal,
        False,
        seqused_k=seqused,
    )[0]
    return out


@cache
def has_flash_attention(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether ``flash`` runs here: in half precision, on GPUs of NVIDIA's Ampere generation or
    newer."""
    if (
        device.type != "cuda"
        or dtype not in (torch.float16, torch.bfloat16)
        or head_dim % 8
        or head_dim > 256
    ):
        return False
    states = torch.ones(2, 1, head_dim, dtype=dtype, device=device)
    bounds = SequenceBounds.of([1, 1], device)
    try:
        flash(
            states,
            states,
            states,
            bounds,
            bounds,
            seqused=torch.ones(2, dtype=torch.int32, device=device),
        )
    except RuntimeError as error:
        logger.warning("torch's flash attention does not run here: %s", error)
        return False
    return True
