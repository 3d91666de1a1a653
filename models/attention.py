"""Attention of a text model's tokens to what rows of the cache hold, and the writing of their keys
and values there.

Each class is made once for a step, or for a slice of prefill, and then called layer by layer with
queries (tokens, heads, head size) and new keys and values (tokens, 2, key heads, head size); it
returns (tokens, heads · head size).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.bias import causal_lower_right

from models.flash import SequenceBounds, flash
from models.operations import attention
from models.packed import Packed, are_whole
from raylens.engine.model import KVRows, KVShape, PrefillChunk

STEP = 32
"""Keys are read in whole steps, so that products are prepared for few shapes."""


class CacheAttention(Protocol):
    """Attention of one layer's queries, once the layer's new keys and values are written to the
    cache."""

    def __call__(self, layer: int, query: Tensor, pairs: Tensor) -> Tensor: ...


class Prefill(ABC):
    """DecoderSpec of prompts, whose tokens stand one behind another; each attends to its own row.
    ``make_prefill`` chooses which."""

    def __init__(self, shape: KVShape, heads: int, parts: Sequence[PrefillChunk]) -> None:
        self.kv_heads, self.shared = shape.heads, heads // shape.heads
        self.parts = parts
        ends = list(accumulate(len(part.token_ids) for part in parts))
        self.places = [
            slice(end - len(part.token_ids), end) for part, end in zip(parts, ends, strict=True)
        ]
        self.rows: Sequence[KVRows] = ()

    def over(self, rows: Sequence[KVRows]) -> CacheAttention:
        """The same with rows where they are now: the cache moves them between slices."""
        self.rows = rows
        return self

    def __call__(self, layer: int, query: Tensor, pairs: Tensor) -> Tensor:
        for part, place, row in zip(self.parts, self.places, self.rows, strict=True):
            end = part.start + len(part.token_ids)
            row.layers[layer][:, 0, :, part.start : end] = pairs[place].permute(1, 2, 0, 3)
        return self.mixed(layer, query, pairs)

    @abstractmethod
    def mixed(self, layer: int, query: Tensor, pairs: Tensor) -> Tensor:
        """What attention makes of the queries, once keys and values are written."""


class BiasedPrefill(Prefill):
    """By a bias that shuts out later tokens. The heads that share a key stand one behind another in
    the place of query positions."""

    def __init__(self, shape: KVShape, heads: int, parts: Sequence[PrefillChunk]) -> None:
        super().__init__(shape, heads, parts)
        self._biases = [self._bias(part, shape) for part in parts]

    def _bias(self, part: PrefillChunk, shape: KVShape) -> Tensor:
        new = len(part.token_ids)
        span = -(-(part.start + new) // STEP) * STEP
        later = torch.ones((new, span), dtype=torch.bool, device=shape.device).triu(part.start + 1)
        later[
            : max(0, part.bidirectional_prefix_len - part.start), : part.bidirectional_prefix_len
        ] = False
        return attention_bias(later, shape.dtype).repeat(self.shared, 1)

    def mixed(self, layer: int, query: Tensor, pairs: Tensor) -> Tensor:
        parts = []
        for place, row, bias in zip(self.places, self.rows, self._biases, strict=True):
            keys, values = row.layers[layer][:, :, :, : bias.shape[1]]
            new = place.stop - place.start
            queries = query[place].unflatten(1, (-1, self.shared)).permute(1, 2, 0, 3).flatten(1, 2)
            mixed = attention(queries[None], keys, values, bias)[0]
            parts.append(mixed.unflatten(1, (self.shared, new)).permute(2, 0, 1, 3).flatten(1))
        return parts[0] if len(parts) == 1 else torch.cat(parts)


class CausalPrefill(Prefill):
    """Without a bias, on a GPU: tokens that see each other first, and then those that see what is
    before them."""

    def mixed(self, layer: int, query: Tensor, pairs: Tensor) -> Tensor:
        mixed = torch.empty_like(query)
        for part, place, row in zip(self.parts, self.places, self.rows, strict=True):
            first = min(
                max(part.start, part.bidirectional_prefix_len), part.start + len(part.token_ids)
            )
            split = place.start + first - part.start
            self._attend(layer, query, mixed, slice(place.start, split), row, first, causal=False)
            end = part.start + len(part.token_ids)
            self._attend(layer, query, mixed, slice(split, place.stop), row, end, causal=True)
        return mixed.flatten(1)

    def _attend(
        self,
        layer: int,
        query: Tensor,
        mixed: Tensor,
        place: slice,
        row: KVRows,
        end: int,
        causal: bool,
    ) -> None:
        """Writes what the queries at ``place`` make of the row's first ``end`` tokens."""
        count = place.stop - place.start
        if not count:
            return
        keys, values = row.layers[layer][:, :, :, :end]
        queries = query[place].transpose(0, 1)[None]
        grouped = self.shared > 1
        if causal and count < end:
            bias = causal_lower_right(count, end)
            out = F.scaled_dot_product_attention(queries, keys, values, bias, enable_gqa=grouped)
        else:
            out = F.scaled_dot_product_attention(
                queries, keys, values, is_causal=causal, enable_gqa=grouped
            )
        mixed[place] = out[0].transpose(0, 1)


class PackedPrefill(Prefill):
    """Several whole prompts in one call of flash attention, by the keys and values that they have
    just made."""

    def __init__(self, shape: KVShape, heads: int, parts: Sequence[PrefillChunk]) -> None:
        super().__init__(shape, heads, parts)
        self._packed = Packed.whole(parts, shape.device)

    def mixed(self, layer: int, query: Tensor, pairs: Tensor) -> Tensor:
        return self._packed.attend(query, *pairs.unbind(1))


class CachedPrefill:
    """Several parts of prompts in one call of flash attention, by rows of one arena. Asks nothing
    but its tensors: a CUDA graph does it again without the code."""

    def __init__(
        self, layers: Sequence[Tensor], packed: Packed, rows: Tensor, places: Tensor
    ) -> None:
        self._layers = layers
        self._packed = packed
        self._rows, self._places = rows, places

    def __call__(self, layer: int, query: Tensor, pairs: Tensor) -> Tensor:
        held = self._layers[layer]
        held[:, self._rows, :, self._places] = pairs
        return self._packed.attend(query, *_tokens_first(held))


def make_prefill(
    shape: KVShape, heads: int, parts: Sequence[PrefillChunk], on_gpu: bool, has_flash: bool
) -> Prefill:
    """The fastest way that fits the device and the parts; ``has_flash``: whether it runs flash
    attention."""
    if not on_gpu:
        return BiasedPrefill(shape, heads, parts)
    if has_flash and are_whole(parts):
        return PackedPrefill(shape, heads, parts)
    return CausalPrefill(shape, heads, parts)


@dataclass(frozen=True)
class Batch:
    """Rows of one arena that are decoded together: its layers, how many rows, and the tokens of
    each that are read, for which 0 stands if every row is read as far as it goes."""

    layers: Sequence[Tensor]
    rows: int
    span: int


class Decode:
    """One new token in each of some rows. Asks nothing but its tensors: a CUDA graph does it again
    without the code."""

    def __init__(
        self, shape: KVShape, heads: int, batches: Sequence[Batch], lengths: Tensor
    ) -> None:
        self._kv_heads, self._shared = shape.heads, heads // shape.heads
        held = lengths.split([batch.rows for batch in batches])
        kinds = [_FlashRows if batch.span == 0 else _BiasedRows for batch in batches]
        self._batches = [
            kind(batch, tokens) for kind, batch, tokens in zip(kinds, batches, held, strict=True)
        ]

    def __call__(self, layer: int, query: Tensor, pairs: Tensor) -> Tensor:
        mixed, first = [], 0
        for batch in self._batches:
            rows = slice(first, first + batch.rows)
            mixed.append(batch(layer, query[rows], pairs[rows]))
            first += batch.rows
        return mixed[0] if len(mixed) == 1 else torch.cat(mixed)


class _Rows:
    """Where a batch's newest tokens are written."""

    def __init__(self, batch: Batch, lengths: Tensor) -> None:
        self.rows = batch.rows
        self._layers = batch.layers
        self._at = lengths
        self._index = torch.arange(batch.rows, device=lengths.device)

    def append(self, layer: int, pairs: Tensor) -> Tensor:
        """Writes (rows, 2, heads, head size); all keys and values (2, rows, heads, capacity, head
        size)."""
        held = self._layers[layer]
        held[:, self._index, :, self._at] = pairs
        return held[:, : self.rows]


class _BiasedRows(_Rows):
    """Reads all rows as far as the longest goes, and shuts out what lies behind each one's end."""

    def __init__(self, batch: Batch, lengths: Tensor) -> None:
        super().__init__(batch, lengths)
        self._span = batch.span
        later = torch.arange(batch.span, device=lengths.device) > lengths[:, None]
        self._bias = attention_bias(later, batch.layers[0].dtype)[:, None, None]

    def __call__(self, layer: int, query: Tensor, pairs: Tensor) -> Tensor:
        keys, values = self.append(layer, pairs)[:, :, :, : self._span]
        # The heads that share a key stand in the place of query positions.
        return attention(query.unflatten(1, (keys.shape[1], -1)), keys, values, self._bias).flatten(
            1
        )


class _FlashRows(_Rows):
    """Reads each row as far as it goes."""

    def __init__(self, batch: Batch, lengths: Tensor) -> None:
        super().__init__(batch, lengths)
        capacity = batch.layers[0].shape[3]
        ends = torch.arange(batch.rows + 1, dtype=torch.int32, device=lengths.device)
        self._queries, self._keys = (
            SequenceBounds(ends, 1),
            SequenceBounds(ends * capacity, capacity),
        )
        self._seqused = (lengths + 1).int()

    def __call__(self, layer: int, query: Tensor, pairs: Tensor) -> Tensor:
        keys, values = _tokens_first(self.append(layer, pairs))
        return flash(query, keys, values, self._queries, self._keys, seqused=self._seqused).flatten(
            1
        )


def _tokens_first(held: Tensor) -> Tensor:
    """Rows (2, rows, heads, capacity, head size) as (2, rows · capacity, heads, head size), as they
    lie on a GPU."""
    return held.transpose(2, 3).flatten(1, 2)


def attention_bias(masked: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to attention's scores: −∞ for keys that are masked, and 0 for the others."""
    return torch.zeros(masked.shape, dtype=dtype, device=masked.device).masked_fill_(
        masked, -torch.inf
    )
