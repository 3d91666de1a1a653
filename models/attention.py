"""Attention of a decoder's tokens to the KV cache.

:class:`AttentionBackend` knows the device, and chooses for each step a :class:`CacheAttention`. A
layer calls that with its fused query-key-value product. Only this module and
:mod:`models.packed` know how rows of the cache are laid out.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.bias import causal_lower_right

from models.flash import SequenceBounds, flash_attention, has_flash_attention
from models.operations import attention
from models.packed import CacheAddresses, PackedChunks, are_whole_prompts
from models.rope import CosSin, Rotary, RotaryEmbedding
from raylens.engine.model import KVRows, KVShape, PrefillChunk

KV_STEP = 32
"""Keys are read in multiples of this length, so that matrix products come in few shapes."""


@dataclass(frozen=True)
class DecodeBatch:
    """Rows of one arena that are decoded together."""

    layers: Sequence[Tensor]
    """The arena's layers, each (2, rows, heads, capacity, head size)."""
    rows: int
    padded_kv_len: int
    """Tokens that are read of every row; 0 if flash attention reads each row's own length."""


class AttentionBackend:
    """Creates the attention of prefill and decode steps for one decoder on one device."""

    def __init__(self, shape: KVShape, heads: int, rotary: Rotary) -> None:
        device = torch.device(shape.device)
        self.shape = shape
        self.heads = heads
        self.rope = RotaryEmbedding(rotary, heads, shape)
        self.is_on_gpu = device.type == "cuda"
        self.has_flash = has_flash_attention(device, shape.dtype, shape.head_dim)

    def prefill(self, chunks: Sequence[PrefillChunk], cos_sin: CosSin) -> PrefillAttention:
        """Return the fastest attention for these chunks, whose tokens are concatenated."""
        if not self.is_on_gpu:
            return BiasedPrefill(self, cos_sin, chunks)
        if self.has_flash and are_whole_prompts(chunks):
            return PackedPrefill(self, cos_sin, chunks)
        return CausalPrefill(self, cos_sin, chunks)

    def cached_prefill(
        self,
        layers: Sequence[Tensor],
        packed: PackedChunks,
        addresses: CacheAddresses,
        cos_sin: CosSin,
    ) -> CacheAttention:
        """Return the attention of chunks whose rows share an arena. A CUDA graph can replay it."""
        return CachedPrefill(self, cos_sin, layers, packed, addresses)

    def decode(
        self, batches: Sequence[DecodeBatch], lengths: Tensor, cos_sin: CosSin
    ) -> CacheAttention:
        """Return the attention of one new token a row, behind ``lengths``, int64 (rows,), tokens.

        A CUDA graph can replay it.
        """
        return DecodeAttention(self, cos_sin, batches, lengths)

    def decode_batch(self, rows: KVRows, sections: int = 1, padded_rows: int = 0) -> DecodeBatch:
        """Return all of ``rows`` as a batch, with unowned rows behind them up to ``padded_rows``.

        With ``sections``, the padded length is a multiple of that part of a row's capacity: fewer
        lengths make fewer CUDA graphs.
        """
        count = padded_rows or len(rows.lengths)
        if self.has_flash:
            return DecodeBatch(rows.layers, count, padded_kv_len=0)
        capacity = rows.layers[0].shape[3]
        step = KV_STEP if sections == 1 else max(KV_STEP, capacity // sections)
        longest = max(rows.lengths) + 1
        return DecodeBatch(rows.layers, count, min(_round_up(longest, step), capacity))


class CacheAttention(ABC):
    """Attention of one step's tokens, called once for every layer."""

    def __init__(self, backend: AttentionBackend, cos_sin: CosSin) -> None:
        self.shape = backend.shape
        self.heads = backend.heads
        self.queries_per_key = backend.heads // backend.shape.heads
        self._rope = backend.rope
        self._cos_sin = cos_sin

    def __call__(self, layer: int, qkv: Tensor) -> Tensor:
        """Write a layer's keys and values to the cache, and attend.

        ``qkv``: (tokens, (heads + 2 · key heads) · head size). Returns (tokens, heads · head size).
        """
        qkv = self._rope.apply(qkv.unflatten(-1, (-1, self.shape.head_dim)), self._cos_sin)
        query = qkv[:, : self.heads]
        kv = qkv[:, self.heads :].unflatten(1, (2, self.shape.heads))
        return self.attend(layer, query, kv)

    @abstractmethod
    def attend(self, layer: int, query: Tensor, kv: Tensor) -> Tensor:
        """Write (tokens, 2, key heads, head size), and attend with (tokens, heads, head size)."""


class PrefillAttention(CacheAttention):
    """Attention of chunks of prompts, each to its own row. ``rows`` is set before every slice: the
    cache may move rows between slices."""

    rows: Sequence[KVRows] = ()

    def __init__(
        self, backend: AttentionBackend, cos_sin: CosSin, chunks: Sequence[PrefillChunk]
    ) -> None:
        super().__init__(backend, cos_sin)
        self.chunks = chunks
        lengths = [len(chunk.token_ids) for chunk in chunks]
        ends = accumulate(lengths)
        self.slices = [slice(end - length, end) for end, length in zip(ends, lengths, strict=True)]
        """The chunks' tokens among the step's tokens."""

    def attend(self, layer: int, query: Tensor, kv: Tensor) -> Tensor:
        for chunk, tokens, row in zip(self.chunks, self.slices, self.rows, strict=True):
            end = chunk.start + len(chunk.token_ids)
            row.layers[layer][:, 0, :, chunk.start : end] = kv[tokens].permute(1, 2, 0, 3)
        return self.attend_to_rows(layer, query, kv)

    @abstractmethod
    def attend_to_rows(self, layer: int, query: Tensor, kv: Tensor) -> Tensor:
        """Attend to the rows, once keys and values are written."""


class BiasedPrefill(PrefillAttention):
    """Adds a bias of −∞ to the scores of later tokens. The queries that share a key head are
    concatenated, as if they were further positions."""

    def __init__(
        self, backend: AttentionBackend, cos_sin: CosSin, chunks: Sequence[PrefillChunk]
    ) -> None:
        super().__init__(backend, cos_sin, chunks)
        self._biases = [self._bias(chunk) for chunk in chunks]

    def _bias(self, chunk: PrefillChunk) -> Tensor:
        """Return (queries per key · tokens, padded key length)."""
        tokens = len(chunk.token_ids)
        padded_kv_len = _round_up(chunk.start + tokens, KV_STEP)
        prefix_len = chunk.bidirectional_prefix_len
        is_masked = torch.ones((tokens, padded_kv_len), dtype=torch.bool, device=self.shape.device)
        is_masked = is_masked.triu(chunk.start + 1)
        is_masked[: max(0, prefix_len - chunk.start), :prefix_len] = False
        return attention_bias(is_masked, self.shape.dtype).repeat(self.queries_per_key, 1)

    def attend_to_rows(self, layer: int, query: Tensor, kv: Tensor) -> Tensor:
        outputs = []
        for tokens, row, bias in zip(self.slices, self.rows, self._biases, strict=True):
            keys, values = row.layers[layer][:, :, :, : bias.shape[1]]
            by_key_head = query[tokens].unflatten(1, (-1, self.queries_per_key))
            stacked = by_key_head.permute(1, 2, 0, 3).flatten(1, 2)
            output = attention(stacked[None], keys, values, bias)[0]
            output = output.unflatten(1, (self.queries_per_key, -1))
            outputs.append(output.permute(2, 0, 1, 3).flatten(1))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


class CausalPrefill(PrefillAttention):
    """Needs no bias: the bidirectional prefix is one call of attention, the causal rest another."""

    def attend_to_rows(self, layer: int, query: Tensor, kv: Tensor) -> Tensor:
        output = torch.empty_like(query)
        for chunk, tokens, row in zip(self.chunks, self.slices, self.rows, strict=True):
            end = chunk.start + len(chunk.token_ids)
            prefix_end = min(max(chunk.start, chunk.bidirectional_prefix_len), end)
            split = tokens.start + prefix_end - chunk.start
            prefix = slice(tokens.start, split)
            rest = slice(split, tokens.stop)
            self._attend(layer, query, output, prefix, row, prefix_end, is_causal=False)
            self._attend(layer, query, output, rest, row, end, is_causal=True)
        return output.flatten(1)

    def _attend(
        self,
        layer: int,
        query: Tensor,
        output: Tensor,
        tokens: slice,
        row: KVRows,
        kv_len: int,
        is_causal: bool,
    ) -> None:
        """Write the attention of ``tokens`` to the row's first ``kv_len`` tokens to ``output``."""
        count = tokens.stop - tokens.start
        if not count:
            return
        keys, values = row.layers[layer][:, :, :, :kv_len]
        queries = query[tokens].transpose(0, 1)[None]
        bias = causal_lower_right(count, kv_len) if is_causal and count < kv_len else None
        attended = F.scaled_dot_product_attention(
            queries,
            keys,
            values,
            bias,
            is_causal=is_causal and bias is None,
            enable_gqa=self.queries_per_key > 1,
        )
        output[tokens] = attended[0].transpose(0, 1)


class PackedPrefill(PrefillAttention):
    """Attends to the new keys and values themselves, in one call of flash attention: the chunks are
    whole prompts."""

    def __init__(
        self, backend: AttentionBackend, cos_sin: CosSin, chunks: Sequence[PrefillChunk]
    ) -> None:
        super().__init__(backend, cos_sin, chunks)
        self._packed = PackedChunks.of_whole_prompts(chunks, backend.shape.device)

    def attend_to_rows(self, layer: int, query: Tensor, kv: Tensor) -> Tensor:
        keys, values = kv.unbind(1)
        return self._packed.attend(query, keys, values)


class CachedPrefill(CacheAttention):
    """Attends to the rows of one arena in one call of flash attention."""

    def __init__(
        self,
        backend: AttentionBackend,
        cos_sin: CosSin,
        layers: Sequence[Tensor],
        packed: PackedChunks,
        addresses: CacheAddresses,
    ) -> None:
        super().__init__(backend, cos_sin)
        self._layers = layers
        self._packed = packed
        self._addresses = addresses

    def attend(self, layer: int, query: Tensor, kv: Tensor) -> Tensor:
        arena = self._layers[layer]
        arena[:, self._addresses.rows, :, self._addresses.positions] = kv
        keys, values = _tokens_first(arena)
        return self._packed.attend(query, keys, values)


class DecodeAttention(CacheAttention):
    """Attention of one new token in each row, batch by batch."""

    def __init__(
        self,
        backend: AttentionBackend,
        cos_sin: CosSin,
        batches: Sequence[DecodeBatch],
        lengths: Tensor,
    ) -> None:
        super().__init__(backend, cos_sin)
        self._sizes = [batch.rows for batch in batches]
        self._batches = [
            _BiasedDecode(batch, batch_lengths)
            if batch.padded_kv_len
            else _FlashDecode(batch, batch_lengths)
            for batch, batch_lengths in zip(batches, lengths.split(self._sizes), strict=True)
        ]

    def attend(self, layer: int, query: Tensor, kv: Tensor) -> Tensor:
        outputs = [
            batch(layer, batch_query, batch_kv)
            for batch, batch_query, batch_kv in zip(
                self._batches, query.split(self._sizes), kv.split(self._sizes), strict=True
            )
        ]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


class _KVWriter:
    """Appends one token to each row of a batch."""

    def __init__(self, batch: DecodeBatch, lengths: Tensor) -> None:
        self.rows = batch.rows
        self._layers = batch.layers
        self._positions = lengths
        self._row_indices = torch.arange(batch.rows, device=lengths.device)

    def append(self, layer: int, kv: Tensor) -> Tensor:
        """Write (rows, 2, heads, head size).

        Returns all keys and values of the rows, (2, rows, heads, capacity, head size).
        """
        arena = self._layers[layer]
        arena[:, self._row_indices, :, self._positions] = kv
        return arena[:, : self.rows]


class _BiasedDecode(_KVWriter):
    """Reads every row to the same padded length, and masks what lies behind its end."""

    def __init__(self, batch: DecodeBatch, lengths: Tensor) -> None:
        super().__init__(batch, lengths)
        self._padded_kv_len = batch.padded_kv_len
        is_masked = torch.arange(batch.padded_kv_len, device=lengths.device) > lengths[:, None]
        self._bias = attention_bias(is_masked, batch.layers[0].dtype)[:, None, None]

    def __call__(self, layer: int, query: Tensor, kv: Tensor) -> Tensor:
        keys, values = self.append(layer, kv)[:, :, :, : self._padded_kv_len]
        # The heads that share a key head take the place of query positions.
        by_key_head = query.unflatten(1, (keys.shape[1], -1))
        return attention(by_key_head, keys, values, self._bias).flatten(1)


class _FlashDecode(_KVWriter):
    """Reads every row to its own length."""

    def __init__(self, batch: DecodeBatch, lengths: Tensor) -> None:
        super().__init__(batch, lengths)
        capacity = batch.layers[0].shape[3]
        ends = torch.arange(batch.rows + 1, dtype=torch.int32, device=lengths.device)
        self._query_bounds = SequenceBounds(ends, 1)
        self._key_bounds = SequenceBounds(ends * capacity, capacity)
        self._seqused = (lengths + 1).int()

    def __call__(self, layer: int, query: Tensor, kv: Tensor) -> Tensor:
        keys, values = _tokens_first(self.append(layer, kv))
        output = flash_attention(
            query, keys, values, self._query_bounds, self._key_bounds, seqused=self._seqused
        )
        return output.flatten(1)


def attention_bias(is_masked: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what is added to attention scores: −∞ for masked keys, 0 for the others."""
    bias = torch.zeros(is_masked.shape, dtype=dtype, device=is_masked.device)
    return bias.masked_fill_(is_masked, -torch.inf)


def _tokens_first(rows: Tensor) -> Tensor:
    """View rows (2, rows, heads, capacity, head size) as (2, rows · capacity, heads, head size),
    which is their memory layout on a GPU."""
    return rows.transpose(2, 3).flatten(1, 2)


def _round_up(count: int, step: int) -> int:
    return -(-count // step) * step
