"""Attention within spans of tokens: the windows of a picture, or whole pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.cpu.attention import AttentionInput, attend, attention_library
from models.flash import SequenceBounds, flash_attention, has_flash_attention
from models.operations import attention


@dataclass(frozen=True)
class Spans:
    """Consecutive spans of tokens that attend only within themselves."""

    bounds: SequenceBounds
    groups: Sequence[tuple[int, int]]
    """(Spans, tokens in each) of consecutive spans of the same size."""

    @classmethod
    def of(cls, groups: Sequence[tuple[int, int]], device: torch.device) -> Spans:
        lengths = [size for count, size in groups for _ in range(count)]
        return cls(SequenceBounds.of(lengths, device), groups)

    def with_starts(self, starts: Tensor) -> Spans:
        """Return the same spans with another tensor of their starts."""
        return Spans(SequenceBounds(starts, self.bounds.max_seqlen), self.groups)


def attend_within(spans: Spans, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attend within each span. All tensors, and the result, are (tokens, heads, head_dim)."""
    if has_flash_attention(query.device, query.dtype, query.shape[-1]):
        return flash_attention(query, key, value, spans.bounds, spans.bounds)
    library = attention_library(query.device, query.dtype, query.shape[-1])
    if library is not None:
        sizes = [size for count, size in spans.groups for _ in range(count)]
        parts = zip(*(states.split(sizes) for states in (query, key, value)), strict=True)
        return attend(library, [AttentionInput(*part) for part in parts])
    attended: list[Tensor] = []
    first = 0
    for count, size in spans.groups:
        last = first + count * size
        # (spans, heads, tokens in each, head_dim)
        batches = (
            states[first:last].unflatten(0, (count, size)).transpose(1, 2)
            for states in (query, key, value)
        )
        attended.append(attention(*batches).transpose(1, 2).flatten(0, 1))
        first = last
    return torch.cat(attended) if len(attended) > 1 else attended[0]
