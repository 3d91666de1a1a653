"""Attention over sequences of different lengths in one call, by the flash attention that comes with torch.

torch's own wrapper, ``torch.nn.attention.varlen``, names its arguments differently from one release to the next; what
it calls does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from raylens.engine.transfer import upload


@dataclass(frozen=True)
class Bounds:
    """Sequences that lie one behind another: where each begins, and the end of the last."""

    starts: Tensor
    """int32 (sequences + 1,)."""
    longest: int

    @classmethod
    def of(
        cls, lengths: Sequence[int], device: str | torch.device, count: int | None = None, longest: int | None = None
    ) -> Bounds:
        """``count``: filled up to so many by sequences without tokens; ``longest``: a bound of their lengths."""
        starts = np.full((count or len(lengths)) + 1, sum(lengths), np.int32)
        starts[: len(lengths) + 1] = np.cumsum([0, *lengths])
        return cls(upload(starts, device), longest or max(lengths))


def flash(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    queries: Bounds,
    keys: Bounds,
    causal: bool = False,
    used: Tensor | None = None,
) -> Tensor:
    """Attention of queries (tokens, heads, head size) to keys and values (tokens, key heads, head size) of the same
    sequence. ``used``, int32 (sequences,): how many of a sequence's keys count. ``causal``: the last query sees all of
    these, and each before it one less."""
    lengths = queries.longest, keys.longest
    out: Tensor = torch.ops.aten._flash_attention_forward(
        query, key, value, queries.starts, keys.starts, *lengths, 0.0, causal, False, seqused_k=used
    )[0]
    return out


@cache
def flashes(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether ``flash`` runs here: in half precision, on GPUs of NVIDIA's Ampere generation or newer."""
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16) or head_dim % 8 or head_dim > 256:
        return False
    states = torch.ones(2, 1, head_dim, dtype=dtype, device=device)
    spans = Bounds.of([1, 1], device)
    try:
        flash(states, states, states, spans, spans, used=torch.ones(2, dtype=torch.int32, device=device))
    except (RuntimeError, TypeError):
        return False
    return True
