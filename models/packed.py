"""Prompts, or what is left of them, one behind another, for one call of flash attention."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.flash import SequenceBounds, flash
from raylens.engine.model import KVRows, PrefillChunk
from raylens.engine.transfer import upload


@dataclass(frozen=True)
class Sizes:
    """To which prompts are filled up, so that few shapes come again and again, each as a CUDA
    graph."""

    tokens: int
    """At least one more than there are."""
    prompts: int
    tail: int
    """Tokens behind those that see each other, of all prompts; 0 if there are none that do."""
    longest: int
    """Tokens of a prompt."""

    @classmethod
    def of(cls, parts: Sequence[PrefillChunk]) -> Sizes:
        lengths = [len(part.token_ids) for part in parts]
        tokens = sum(lengths) + 1
        return cls(
            tokens=_up(tokens, 64 if tokens <= 1024 else 256),
            prompts=_power(len(parts)),
            tail=_up(sum(_tails(parts)), 32) if any(map(_bidirectional, parts)) else 0,
            longest=_power(max(lengths)),
        )


@dataclass(frozen=True)
class Keys:
    """Where the prompts' keys and values lie in an arena, whose rows lie one behind another."""

    bounds: SequenceBounds
    seqused: Tensor
    """Tokens of each that count, int32 (prompts,)."""


@dataclass(frozen=True)
class Tail:
    """What follows the tokens that see each other."""

    prefix_lens: Tensor
    """How many these are, int32 (prompts,); a prompt without such tokens has 1, and is all tail."""
    places: Tensor
    """Where the tokens that follow stand (tokens,), of all prompts."""
    bounds: SequenceBounds


@dataclass(frozen=True)
class Packed:
    """The bounds of the prompts' tokens; ``keys``, if they attend to a cache and not only to each
    other; ``tail``, if some of the tokens see each other."""

    bounds: SequenceBounds
    keys: Keys | None = None
    tail: Tail | None = None

    @classmethod
    def whole(cls, parts: Sequence[PrefillChunk], device: str) -> Packed:
        """Of prompts that begin here."""
        lengths = [len(part.token_ids) for part in parts]
        return cls(
            SequenceBounds.of(lengths, device), tail=_tail(parts, len(parts), max(lengths), device)
        )

    @classmethod
    def cached(
        cls, parts: Sequence[PrefillChunk], rows: Sequence[KVRows], sizes: Sizes, device: str
    ) -> Packed:
        """Of parts whose rows lie in one arena, filled up by prompts without tokens, and by the
        tokens of none."""
        capacity = rows[0].arena[0].shape[3]
        starts, seqused = np.zeros(sizes.prompts + 1, np.int32), np.ones(sizes.prompts, np.int32)
        starts[: len(rows)] = [row.first * capacity for row in rows]
        seqused[: len(parts)] = [part.start + len(part.token_ids) for part in parts]
        return cls(
            SequenceBounds.of(
                [len(part.token_ids) for part in parts], device, sizes.prompts, sizes.longest
            ),
            Keys(SequenceBounds(upload(starts, device), capacity), upload(seqused, device)),
            _tail(parts, sizes.prompts, sizes.longest, device, sizes),
        )

    @property
    def tensors(self) -> list[Tensor]:
        """All that is asked when it is used."""
        keys, tail = self.keys, self.tail
        return [
            self.bounds.cu_seqlens,
            *([] if keys is None else (keys.bounds.cu_seqlens, keys.seqused)),
            *([] if tail is None else (tail.prefix_lens, tail.places, tail.bounds.cu_seqlens)),
        ]

    def of_tensors(self, *tensors: Tensor) -> Packed:
        """The same with other ``tensors``."""
        left = iter(tensors)
        bounds = SequenceBounds(next(left), self.bounds.max_seqlen)
        keys = self.keys and Keys(
            SequenceBounds(next(left), self.keys.bounds.max_seqlen), next(left)
        )
        tail = self.tail and Tail(
            next(left), next(left), SequenceBounds(next(left), self.tail.bounds.max_seqlen)
        )
        return Packed(bounds, keys, tail)

    def attend(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Of queries (tokens, heads, head size) to the keys and values (tokens, key heads, head
        size) of their prompt, or, with ``keys``, of an arena: (tokens, heads · head size)."""
        bounds, seqused = (
            (self.bounds, None) if self.keys is None else (self.keys.bounds, self.keys.seqused)
        )
        tail = self.tail
        if tail is None:
            return flash(
                query, keys, values, self.bounds, bounds, causal=True, seqused=seqused
            ).flatten(1)
        mixed = flash(query, keys, values, self.bounds, bounds, seqused=tail.prefix_lens)
        mixed[tail.places] = flash(
            query[tail.places], keys, values, tail.bounds, bounds, causal=True, seqused=seqused
        )
        return mixed.flatten(1)


def are_whole(parts: Sequence[PrefillChunk]) -> bool:
    """Whether these are prompts from their beginning to beyond the tokens that see each other."""
    return all(part.start == 0 for part in parts) and can_be_packed(parts)


def can_be_packed(parts: Sequence[PrefillChunk]) -> bool:
    """Whether each goes beyond the tokens that see each other, and holds all of these or none."""
    return all(
        part.start >= part.bidirectional_prefix_len
        or (part.start == 0 and len(part.token_ids) > part.bidirectional_prefix_len)
        for part in parts
    )


def share_an_arena(rows: Sequence[KVRows]) -> bool:
    return all(row.arena and row.arena[0] is rows[0].arena[0] for row in rows)


def destinations(
    parts: Sequence[PrefillChunk], rows: Sequence[KVRows], tokens: int, device: str
) -> Tensor:
    """Row and place of each token's keys and values (2, tokens). Those of no prompt go where the
    first prompt's next token will be written."""
    spare = tokens - sum(len(part.token_ids) for part in parts)
    index = [np.full(len(part.token_ids), row.first) for part, row in zip(parts, rows, strict=True)]
    places = [part.start + np.arange(len(part.token_ids)) for part in parts]
    index.append(np.full(spare, rows[0].first))
    places.append(np.full(spare, parts[0].start + len(parts[0].token_ids)))
    return upload(np.stack([np.concatenate(index), np.concatenate(places)]), device)


def address(rows: Sequence[KVRows]) -> Hashable:
    """Where the arena lies."""
    return (rows[0].arena[0].shape, *(layer.data_ptr() for layer in rows[0].arena))


def _bidirectional(part: PrefillChunk) -> int:
    """How many of a part's tokens see each other."""
    return part.bidirectional_prefix_len if part.start < part.bidirectional_prefix_len else 0


def _tails(parts: Sequence[PrefillChunk]) -> list[int]:
    """Tokens of each part that follow those that see each other."""
    return [len(part.token_ids) - _bidirectional(part) for part in parts]


def _tail(
    parts: Sequence[PrefillChunk],
    prompts: int,
    longest: int,
    device: str,
    sizes: Sizes | None = None,
) -> Tail | None:
    if not any(map(_bidirectional, parts)):
        return None
    tails = _tails(parts)
    ends = np.cumsum([len(part.token_ids) for part in parts])
    places = [np.arange(end - tail, end) for end, tail in zip(ends, tails, strict=True)]
    if sizes is not None:
        places.append(np.full(sizes.tail - sum(tails), sizes.tokens - 1))
    prefix_lens = np.ones(prompts, np.int32)
    prefix_lens[: len(parts)] = [max(1, _bidirectional(part)) for part in parts]
    bounds = SequenceBounds.of(tails, device, prompts, longest)
    return Tail(upload(prefix_lens, device), upload(np.concatenate(places), device), bounds)


def _up(count: int, step: int) -> int:
    return -(-count // step) * step


def _power(count: int) -> int:
    return 1 << (count - 1).bit_length()


def padded(states: Tensor, tokens: int) -> Tensor:
    """(tokens, …), with zeros behind what there is."""
    out = torch.zeros((tokens, *states.shape[1:]), dtype=states.dtype, device=states.device)
    out[: len(states)] = states
    return out
