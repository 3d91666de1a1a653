"""Attention within spans that lie one behind another: windows of a picture, or pictures."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.flash import Spans, flash, flashes
from models.operations import attention


class SpanAttention:
    """Attention of (tokens, heads, head size) within ``spans``: (how many, tokens of each), one after another."""

    def __init__(
        self, spans: Sequence[tuple[int, int]], device: torch.device, dtype: torch.dtype, head_dim: int
    ) -> None:
        self._spans = spans
        self._packed: Spans | None = None
        if flashes(device, dtype, head_dim):
            self._packed = Spans.of([size for count, size in spans for _ in range(count)], device)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if self._packed is not None:
            return flash(query, key, value, self._packed, self._packed)
        parts, first = [], 0
        for count, size in self._spans:
            last = first + count * size
            window = (part[first:last].unflatten(0, (count, size)).transpose(1, 2) for part in (query, key, value))
            parts.append(attention(*window).transpose(1, 2).flatten(0, 1))
            first = last
        return torch.cat(parts) if len(parts) > 1 else parts[0]
