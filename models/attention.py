"""Attention of a decoder's tokens to the KV cache.

:class:`AttentionBackend` creates a :class:`CacheAttention` for each step, the fastest one on the
device. A layer calls it with its fused query-key-value product. Only this module and
:mod:`models.packed` depend on the memory layout of the cache's rows.
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

from models.cpu.attention import AttentionInput, attend, attention_library
from models.cpu.library import Library
from models.flash import SequenceBounds, flash_attention, has_flash_attention
from models.operations import attention
from models.packed import CacheAddresses, PackedChunks, are_whole_prompts
from models.rope import CosSin, RopeParameters, RotaryEmbedding
from raylens.engine.model import KVRows, KVSpec, PrefillChunk

KV_STEP = 32
"""The number of keys read is a multiple of this, so that matrix products have few shapes."""


@dataclass(frozen=True)
class DecodeBatch:
    """Rows of one arena that are decoded together."""

    layer_kv: Sequence[Tensor]
    """For each layer (2, rows, kv heads, capacity, head_dim)."""
    num_rows: int
    padded_kv_len: int
    """Number of tokens read from every row; 0 if flash attention reads each row's own length."""


class AttentionBackend:
    """Creates the attention of prefill and decode steps for one decoder on one device."""

    def __init__(self, shape: KVSpec, num_query_heads: int, rope: RopeParameters) -> None:
        device = torch.device(shape.device)
        self.shape = shape
        self.num_query_heads = num_query_heads
        self.rope = RotaryEmbedding(rope, num_query_heads, shape)
        self.is_on_gpu = device.type == "cuda"
        self.has_flash = has_flash_attention(device, shape.dtype, shape.head_dim)
        self._native = attention_library(device, shape.dtype, shape.head_dim)

    def prefill(self, chunks: Sequence[PrefillChunk], cos_sin: CosSin) -> PrefillAttention:
        """Return the fastest attention for these chunks, whose tokens are concatenated."""
        if self._native is not None:
            return NativePrefill(self, cos_sin, chunks, self._native)
        if not self.is_on_gpu:
            return BiasedPrefill(self, cos_sin, chunks)
        if self.has_flash and are_whole_prompts(chunks):
            return PackedPrefill(self, cos_sin, chunks)
        return CausalPrefill(self, cos_sin, chunks)

    def cached_prefill(
        self,
        arena_kv: Sequence[Tensor],
        packed: PackedChunks,
        addresses: CacheAddresses,
        cos_sin: CosSin,
    ) -> CacheAttention:
        """Return the attention of chunks whose rows share an arena. Can be captured in a CUDA
        graph."""
        return CachedPrefill(self, cos_sin, arena_kv, packed, addresses)

    def decode(
        self, batches: Sequence[DecodeBatch], lengths: Tensor, cos_sin: CosSin
    ) -> CacheAttention:
        """Return the attention of one new token per row.

        ``lengths``, int64 (rows,), are the numbers of tokens before it. Can be captured in a CUDA
        graph.
        """
        return DecodeAttention(self, cos_sin, batches, lengths)

    def decode_batch(
        self, kv_rows: KVRows, kv_len_buckets: int | None = None, padded_batch_size: int = 0
    ) -> DecodeBatch:
        """Return all of ``kv_rows`` as a batch, padded with unused rows to ``padded_batch_size``.

        With ``kv_len_buckets``, the padded KV length is one of at most this many sizes up to
        the row's capacity, so that few CUDA graphs are needed.
        """
        num_rows = padded_batch_size or len(kv_rows.lengths)
        if self.has_flash:
            return DecodeBatch(kv_rows.layer_kv, num_rows, padded_kv_len=0)
        capacity = kv_rows.layer_kv[0].shape[3]
        step = KV_STEP if kv_len_buckets is None else max(KV_STEP, capacity // kv_len_buckets)
        longest = max(kv_rows.lengths) + 1
        padded_kv_len = min(_round_up(longest, step), capacity)
        return DecodeBatch(kv_rows.layer_kv, num_rows, padded_kv_len)


class CacheAttention(ABC):
    """Attention of one step's tokens, called once for every layer."""

    def __init__(self, backend: AttentionBackend, cos_sin: CosSin) -> None:
        self.shape = backend.shape
        self.num_query_heads = backend.num_query_heads
        self.queries_per_key = backend.num_query_heads // backend.shape.num_kv_heads
        self._rope = backend.rope
        self._cos_sin = cos_sin

    def __call__(self, layer: int, qkv: Tensor) -> Tensor:
        """Write a layer's keys and values to the cache, and attend.

        ``qkv``: (tokens, (query heads + 2 · kv heads) · head_dim). Returns (tokens, query heads ·
        head_dim).
        """
        qkv = self._rope.apply(qkv.unflatten(-1, (-1, self.shape.head_dim)), self._cos_sin)
        query = qkv[:, : self.num_query_heads]
        kv = qkv[:, self.num_query_heads :].unflatten(1, (2, self.shape.num_kv_heads))
        return self.attend(layer, query, kv)

    @abstractmethod
    def attend(self, layer: int, query: Tensor, kv: Tensor) -> Tensor:
        """Write keys and values (tokens, 2, kv heads, head_dim) to the cache, and attend with
        queries (tokens, query heads, head_dim)."""


class PrefillAttention(CacheAttention):
    """Attention of chunks of prompts, each to its own row."""

    kv_rows: Sequence[KVRows] = ()
    """The row of each chunk. Set again before every slice, because the cache may move rows between
    slices."""

    def __init__(
        self, backend: AttentionBackend, cos_sin: CosSin, chunks: Sequence[PrefillChunk]
    ) -> None:
        super().__init__(backend, cos_sin)
        self.chunks = chunks
        lengths = [len(chunk.token_ids) for chunk in chunks]
        ends = accumulate(lengths)
        self.slices = [slice(end - length, end) for end, length in zip(ends, lengths, strict=True)]
        """The range of each chunk among the tokens of the step."""

    def attend(self, layer: int, query: Tensor, kv: Tensor) -> Tensor:
        for chunk, tokens, row in zip(self.chunks, self.slices, self.kv_rows, strict=True):
            end = chunk.start + len(chunk.token_ids)
            row.layer_kv[layer][:, 0, :, chunk.start : end] = kv[tokens].permute(1, 2, 0, 3)
        return self.attend_to_rows(layer, query, kv)

    @abstractmethod
    def attend_to_rows(self, layer: int, query: Tensor, kv: Tensor) -> Tensor:
        """Attend to the rows after keys and values are written."""


class NativePrefill(PrefillAttention):
    """Attends with the kernels of :mod:`models.cpu`, which skip later tokens."""

    def __init__(
        self,
        backend: AttentionBackend,
        cos_sin: CosSin,
        chunks: Sequence[PrefillChunk],
        library: Library,
    ) -> None:
        super().__init__(backend, cos_sin, chunks)
        self._library = library
        self._limits = [self._tokens_seen(chunk) for chunk in chunks]

    @staticmethod
    def _tokens_seen(chunk: PrefillChunk) -> Tensor:
        """Return the number of tokens that each token attends to, int32 (tokens,)."""
        end = chunk.start + len(chunk.token_ids)
        limits = torch.arange(chunk.start + 1, end + 1, dtype=torch.int32)
        prefix_len = chunk.bidirectional_prefix_len
        limits[: max(0, prefix_len - chunk.start)] = min(prefix_len, end)
        return limits

    def attend_to_rows(self, layer: int, query: Tensor, kv: Tensor) -> Tensor:
        inputs = []
        for chunk, tokens, row, limits in zip(
            self.chunks, self.slices, self.kv_rows, self._limits, strict=True
        ):
            end = chunk.start + len(chunk.token_ids)
            keys, values = row.layer_kv[layer][:, 0, :, :end].transpose(1, 2)
            inputs.append(AttentionInput(query[tokens], keys, values, limits))
        return attend(self._library, inputs).flatten(1)


class BiasedPrefill(PrefillAttention):
    """Adds a bias of −∞ to the scores of later tokens. Queries of the heads that share a kv head
    are concatenated along the token axis."""

    def __init__(
        self, backend: AttentionBackend, cos_sin: CosSin, chunks: Sequence[PrefillChunk]
    ) -> None:
        super().__init__(backend, cos_sin, chunks)
        self._biases = [self._bias(chunk) for chunk in chunks]

    def _bias(self, chunk: PrefillChunk) -> Tensor:
        """Return (queries per key · tokens, padded KV length)."""
        num_tokens = len(chunk.token_ids)
        padded_kv_len = _round_up(chunk.start + num_tokens, KV_STEP)
        prefix_len = chunk.bidirectional_prefix_len
        is_masked = torch.ones(
            (num_tokens, padded_kv_len), dtype=torch.bool, device=self.shape.device
        )
        is_masked = is_masked.triu(chunk.start + 1)
        is_masked[: max(0, prefix_len - chunk.start), :prefix_len] = False
        return attention_bias(is_masked, self.shape.dtype).repeat(self.queries_per_key, 1)

    def attend_to_rows(self, layer: int, query: Tensor, kv: Tensor) -> Tensor:
        outputs = []
        for tokens, row, bias in zip(self.slices, self.kv_rows, self._biases, strict=True):
            keys, values = row.layer_kv[layer][:, :, :, : bias.shape[1]]
            by_kv_head = query[tokens].unflatten(1, (-1, self.queries_per_key))
            stacked = by_kv_head.permute(1, 2, 0, 3).flatten(1, 2)
            output = attention(stacked[None], keys, values, bias)[0]
            output = output.unflatten(1, (self.queries_per_key, -1))
            outputs.append(output.permute(2, 0, 1, 3).flatten(1))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


class CausalPrefill(PrefillAttention):
    """Uses two calls of attention: one for the bidirectional prefix, and one for the causal rest.
    Neither needs a bias."""

    def attend_to_rows(self, layer: int, query: Tensor, kv: Tensor) -> Tensor:
        output = torch.empty_like(query)
        for chunk, tokens, row in zip(self.chunks, self.slices, self.kv_rows, strict=True):
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
        """Let ``tokens`` attend to the row's first ``kv_len`` tokens, and write the result to
        ``output``."""
        num_tokens = tokens.stop - tokens.start
        if not num_tokens:
            return
        keys, values = row.layer_kv[layer][:, :, :, :kv_len]
        queries = query[tokens].transpose(0, 1)[None]
        bias = causal_lower_right(num_tokens, kv_len) if is_causal and num_tokens < kv_len else None
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
    """Attention of whole prompts: one call of flash attention on the new keys and values, without
    reading the cache."""

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
        arena_kv: Sequence[Tensor],
        packed: PackedChunks,
        addresses: CacheAddresses,
    ) -> None:
        super().__init__(backend, cos_sin)
        self._arena_kv = arena_kv
        self._packed = packed
        self._addresses = addresses

    def attend(self, layer: int, query: Tensor, kv: Tensor) -> Tensor:
        arena = self._arena_kv[layer]
        arena[:, self._addresses.cache_rows, :, self._addresses.positions] = kv
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
        self._batch_sizes = [batch.num_rows for batch in batches]
        self._batches: list[_BiasedDecode | _FlashDecode] = []
        lengths_by_batch = lengths.split(self._batch_sizes)
        for batch, batch_lengths in zip(batches, lengths_by_batch, strict=True):
            decode_type = _BiasedDecode if batch.padded_kv_len else _FlashDecode
            self._batches.append(decode_type(batch, batch_lengths))

    def attend(self, layer: int, query: Tensor, kv: Tensor) -> Tensor:
        outputs = [
            batch(layer, batch_query, batch_kv)
            for batch, batch_query, batch_kv in zip(
                self._batches,
                query.split(self._batch_sizes),
                kv.split(self._batch_sizes),
                strict=True,
            )
        ]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


class _KVWriter:
    """Appends one token to each row of a batch."""

    def __init__(self, batch: DecodeBatch, lengths: Tensor) -> None:
        self.num_rows = batch.num_rows
        self._layer_kv = batch.layer_kv
        self._positions = lengths
        self._row_indices = torch.arange(batch.num_rows, device=lengths.device)

    def append(self, layer: int, kv: Tensor) -> Tensor:
        """Write keys and values (rows, 2, kv heads, head_dim).

        Returns all keys and values of the rows, (2, rows, kv heads, capacity, head_dim).
        """
        arena = self._layer_kv[layer]
        arena[:, self._row_indices, :, self._positions] = kv
        return arena[:, : self.num_rows]


class _BiasedDecode(_KVWriter):
    """Reads the same padded length from every row, and masks positions past its end."""

    def __init__(self, batch: DecodeBatch, lengths: Tensor) -> None:
        super().__init__(batch, lengths)
        self._padded_kv_len = batch.padded_kv_len
        is_masked = torch.arange(batch.padded_kv_len, device=lengths.device) > lengths[:, None]
        self._bias = attention_bias(is_masked, batch.layer_kv[0].dtype)[:, None, None]

    def __call__(self, layer: int, query: Tensor, kv: Tensor) -> Tensor:
        keys, values = self.append(layer, kv)[:, :, :, : self._padded_kv_len]
        # The heads that share a kv head take the place of query positions.
        by_kv_head = query.unflatten(1, (keys.shape[1], -1))
        return attention(by_kv_head, keys, values, self._bias).flatten(1)


class _FlashDecode(_KVWriter):
    """Reads each row's own length."""

    def __init__(self, batch: DecodeBatch, lengths: Tensor) -> None:
        super().__init__(batch, lengths)
        capacity = batch.layer_kv[0].shape[3]
        ends = torch.arange(batch.num_rows + 1, dtype=torch.int32, device=lengths.device)
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
    """Return the attention bias: −∞ for masked keys, 0 for the others."""
    bias = torch.zeros(is_masked.shape, dtype=dtype, device=is_masked.device)
    return bias.masked_fill_(is_masked, -torch.inf)


def _tokens_first(rows: Tensor) -> Tensor:
    """View rows (2, rows, kv heads, capacity, head_dim) as (2, rows · capacity, kv heads,
    head_dim), their memory layout on a GPU."""
    return rows.transpose(2, 3).flatten(1, 2)


def _round_up(count: int, step: int) -> int:
    return -(-count // step) * step
