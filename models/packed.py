"""Chunks of several prompts, concatenated for one call of flash attention.

A prompt may begin with a bidirectional prefix, whose tokens attend to each other. The other tokens
of a chunk, its tail, are causal.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.flash import SequenceBounds, flash_attention
from raylens.engine.model import KVRows, PrefillChunk
from raylens.engine.transfer import upload


@dataclass(frozen=True)
class PaddedSizes:
    """Sizes that chunks are padded to. Few sizes repeat often, and each needs one CUDA graph."""

    num_tokens: int
    """Tokens of all chunks, and at least one of padding."""
    num_prompts: int
    num_tail_tokens: int
    """Tokens of all tails; 0 if no chunk has a bidirectional prefix."""
    max_chunk_len: int
    """Tokens of the longest chunk."""

    @classmethod
    def of(cls, chunks: Sequence[PrefillChunk]) -> PaddedSizes:
        lengths = [len(chunk.token_ids) for chunk in chunks]
        num_tokens = sum(lengths) + 1
        has_prefix = any(map(_prefix_len, chunks))
        return cls(
            num_tokens=_round_up(num_tokens, 64 if num_tokens <= 1024 else 256),
            num_prompts=_next_power_of_two(len(chunks)),
            num_tail_tokens=_round_up(sum(map(_tail_len, chunks)), 32) if has_prefix else 0,
            max_chunk_len=_next_power_of_two(max(lengths)),
        )


@dataclass(frozen=True)
class CachedKeys:
    """The prompts' rows in an arena, whose rows are concatenated."""

    bounds: SequenceBounds
    seqused: Tensor
    """Tokens in use of each row, int32 (prompts,)."""


@dataclass(frozen=True)
class Tail:
    """The causal tokens after bidirectional prefixes."""

    prefix_lens: Tensor
    """int32 (prompts,). A chunk without a prefix counts as 1 token of prefix, and is all tail."""
    indices: Tensor
    """The tails' tokens among the step's tokens, int64 (tail tokens,)."""
    bounds: SequenceBounds


@dataclass(frozen=True)
class CacheAddresses:
    """For each token, its row in an arena and its position in the row, both int64 (tokens,)."""

    cache_rows: Tensor
    positions: Tensor

    @classmethod
    def of(
        cls, chunks: Sequence[PrefillChunk], kv_rows: Sequence[KVRows], num_tokens: int, device: str
    ) -> CacheAddresses:
        """Return the addresses of the chunks' tokens, padded to ``num_tokens``.

        All padding goes to the position after the first chunk, where the row's next token will be
        written.
        """
        lengths = [len(chunk.token_ids) for chunk in chunks]
        padding = num_tokens - sum(lengths)
        cache_rows = [
            *(np.full(length, row.first_row) for length, row in zip(lengths, kv_rows, strict=True)),
            np.full(padding, kv_rows[0].first_row),
        ]
        positions = [
            *(chunk.start + np.arange(len(chunk.token_ids)) for chunk in chunks),
            np.full(padding, chunks[0].start + lengths[0]),
        ]
        addresses = np.stack([np.concatenate(cache_rows), np.concatenate(positions)])
        return cls(*upload(addresses, device))


@dataclass(frozen=True)
class PackedChunks:
    """Bounds of chunks whose tokens are concatenated."""

    bounds: SequenceBounds
    keys: CachedKeys | None = None
    """None if the chunks attend to their own keys and values."""
    tail: Tail | None = None
    """None if no chunk has a bidirectional prefix."""

    @classmethod
    def of_whole_prompts(cls, chunks: Sequence[PrefillChunk], device: str) -> PackedChunks:
        """Chunks that attend to nothing but themselves."""
        lengths = [len(chunk.token_ids) for chunk in chunks]
        return cls(
            SequenceBounds.of(lengths, device),
            tail=_tail(chunks, len(chunks), max(lengths), device),
        )

    @classmethod
    def of_cached_rows(
        cls,
        chunks: Sequence[PrefillChunk],
        kv_rows: Sequence[KVRows],
        sizes: PaddedSizes,
        device: str,
    ) -> PackedChunks:
        """Chunks whose rows share an arena, padded with prompts that have no tokens."""
        capacity = kv_rows[0].arena_kv[0].shape[3]
        lengths = [len(chunk.token_ids) for chunk in chunks]
        starts = np.zeros(sizes.num_prompts + 1, np.int32)
        starts[: len(kv_rows)] = [row.first_row * capacity for row in kv_rows]
        seqused = np.ones(sizes.num_prompts, np.int32)
        seqused[: len(chunks)] = [chunk.start + len(chunk.token_ids) for chunk in chunks]
        row_bounds = SequenceBounds(upload(starts, device), capacity)
        return cls(
            SequenceBounds.of(lengths, device, sizes.num_prompts, sizes.max_chunk_len),
            CachedKeys(row_bounds, upload(seqused, device)),
            _tail(chunks, sizes.num_prompts, sizes.max_chunk_len, device, sizes),
        )

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors that :meth:`attend` reads, which a CUDA graph gets anew for each replay."""
        tensors = [self.bounds.cu_seqlens]
        if self.keys is not None:
            tensors += [self.keys.bounds.cu_seqlens, self.keys.seqused]
        if self.tail is not None:
            tensors += [self.tail.prefix_lens, self.tail.indices, self.tail.bounds.cu_seqlens]
        return tensors

    def with_tensors(self, tensors: Iterable[Tensor]) -> PackedChunks:
        """Return the same chunks, with other :attr:`tensors`."""
        remaining = iter(tensors)
        bounds = SequenceBounds(next(remaining), self.bounds.max_seqlen)
        return PackedChunks(bounds, self._keys_with(remaining), self._tail_with(remaining))

    def _keys_with(self, tensors: Iterator[Tensor]) -> CachedKeys | None:
        if self.keys is None:
            return None
        bounds = SequenceBounds(next(tensors), self.keys.bounds.max_seqlen)
        return CachedKeys(bounds, next(tensors))

    def _tail_with(self, tensors: Iterator[Tensor]) -> Tail | None:
        if self.tail is None:
            return None
        prefix_lens = next(tensors)
        indices = next(tensors)
        bounds = SequenceBounds(next(tensors), self.tail.bounds.max_seqlen)
        return Tail(prefix_lens, indices, bounds)

    def attend(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attend with queries (tokens, heads, head_dim). Returns (tokens, heads · head_dim).

        Keys and values, (tokens, kv heads, head_dim), are the chunks' own, or an arena's if there
        are :attr:`keys`.
        """
        key_bounds = self.bounds if self.keys is None else self.keys.bounds
        seqused = None if self.keys is None else self.keys.seqused
        tail = self.tail
        if tail is None:
            output = flash_attention(
                query, keys, values, self.bounds, key_bounds, causal=True, seqused=seqused
            )
            return output.flatten(1)
        output = flash_attention(
            query, keys, values, self.bounds, key_bounds, seqused=tail.prefix_lens
        )
        output[tail.indices] = flash_attention(
            query[tail.indices], keys, values, tail.bounds, key_bounds, causal=True, seqused=seqused
        )
        return output.flatten(1)


def are_whole_prompts(chunks: Sequence[PrefillChunk]) -> bool:
    """Whether each chunk begins its prompt, and reaches behind its bidirectional prefix."""
    return all(chunk.start == 0 for chunk in chunks) and can_be_packed(chunks)


def can_be_packed(chunks: Sequence[PrefillChunk]) -> bool:
    """Whether each chunk has causal tokens, and all of its bidirectional prefix or none of it."""
    return all(
        chunk.start >= chunk.bidirectional_prefix_len
        or (chunk.start == 0 and len(chunk.token_ids) > chunk.bidirectional_prefix_len)
        for chunk in chunks
    )


def share_an_arena(kv_rows: Sequence[KVRows]) -> bool:
    return all(row.arena_kv and row.arena_kv[0] is kv_rows[0].arena_kv[0] for row in kv_rows)


def arena_key(kv_rows: Sequence[KVRows]) -> Hashable:
    """Return a key for the memory of the rows' arena: a CUDA graph is valid for one arena only."""
    arena_kv = kv_rows[0].arena_kv
    return (arena_kv[0].shape, *(layer.data_ptr() for layer in arena_kv))


def pad_tokens(states: Tensor, num_tokens: int) -> Tensor:
    """Append zeros to (tokens, …) to get (``num_tokens``, …)."""
    padded = torch.zeros((num_tokens, *states.shape[1:]), dtype=states.dtype, device=states.device)
    padded[: len(states)] = states
    return padded


def _prefix_len(chunk: PrefillChunk) -> int:
    """Return how many of a chunk's tokens belong to the bidirectional prefix."""
    return chunk.bidirectional_prefix_len if chunk.start < chunk.bidirectional_prefix_len else 0


def _tail_len(chunk: PrefillChunk) -> int:
    return len(chunk.token_ids) - _prefix_len(chunk)


def _tail(
    chunks: Sequence[PrefillChunk],
    num_prompts: int,
    max_chunk_len: int,
    device: str,
    sizes: PaddedSizes | None = None,
) -> Tail | None:
    """Return the chunks' tails, padded to ``sizes``; None if no chunk has a prefix."""
    if not any(map(_prefix_len, chunks)):
        return None
    lengths = [_tail_len(chunk) for chunk in chunks]
    ends = np.cumsum([len(chunk.token_ids) for chunk in chunks])
    indices = [np.arange(end - length, end) for end, length in zip(ends, lengths, strict=True)]
    if sizes is not None:
        indices.append(np.full(sizes.num_tail_tokens - sum(lengths), sizes.num_tokens - 1))
    prefix_lens = np.ones(num_prompts, np.int32)
    prefix_lens[: len(chunks)] = [max(1, _prefix_len(chunk)) for chunk in chunks]
    return Tail(
        upload(prefix_lens, device),
        upload(np.concatenate(indices), device),
        SequenceBounds.of(lengths, device, num_prompts, max_chunk_len),
    )


def _round_up(count: int, step: int) -> int:
    return -(-count // step) * step


def _next_power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()
