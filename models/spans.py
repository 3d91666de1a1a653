"""Attention within spans that lie one behind another: windows of a picture, or pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.flash import SequenceBounds, flash, has_flash_attention
from models.operations import attention


@dataclass(frozen=True)
class Spans:
    bounds: SequenceBounds
    sizes: Sequence[tuple[int, int]]
    """(How many, tokens of each), one after another."""

    @classmethod
    def of(cls, sizes: Sequence[tuple[int, int]], device: torch.device) -> Spans:
        return cls(
            SequenceBounds.of([size for count, size in sizes for _ in range(count)], device), sizes
        )

    def at(self, starts: Tensor) -> Spans:
        """The same with the tensor of where each begins."""
        return Spans(SequenceBounds(starts, self.bounds.max_seqlen), self.sizes)


def attend_within(spans: Spans, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of (tokens, heads, head size) within each span."""
    if has_flash_attention(query.device, query.dtype, query.shape[-1]):
        return flash(query, key, value, spans.bounds, spans.bounds)
    parts, first = [], 0
    for count, size in spans.sizes:
        last = first + count * size
        window = (
            part[first:last].unflatten(0, (count, size)).transpose(1, 2)
            for part in (query, key, value)
        )
        parts.append(attention(*window).transpose(1, 2).flatten(0, 1))
        first = last
    return torch.cat(parts) if len(parts) > 1 else parts[0]
