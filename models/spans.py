"""Attention within spans that lie one behind another: windows of a picture, or pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.flash import Bounds, flash, flashes
from models.operations import attention
from raylens.engine.transfer import upload


@dataclass(frozen=True)
class Spans:
    starts: Tensor
    """Where each begins, and the end of the last: int32 (spans + 1,)."""
    sizes: Sequence[tuple[int, int]]
    """(How many, tokens of each), one after another."""

    @classmethod
    def of(cls, sizes: Sequence[tuple[int, int]], device: torch.device) -> Spans:
        lengths = [size for count, size in sizes for _ in range(count)]
        return cls(upload(np.cumsum([0, *lengths]).astype(np.int32), device), sizes)


def attend_within(spans: Spans, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of (tokens, heads, head size) within each span."""
    if flashes(query.device, query.dtype, query.shape[-1]):
        bounds = Bounds(spans.starts, max(size for _, size in spans.sizes))
        return flash(query, key, value, bounds, bounds)
    parts, first = [], 0
    for count, size in spans.sizes:
        last = first + count * size
        window = (part[first:last].unflatten(0, (count, size)).transpose(1, 2) for part in (query, key, value))
        parts.append(attention(*window).transpose(1, 2).flatten(0, 1))
        first = last
    return torch.cat(parts) if len(parts) > 1 else parts[0]
