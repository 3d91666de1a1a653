"""Whole prompts one behind another, for one call of flash attention."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.flash import Bounds, flash
from raylens.engine.model import KVRows, Part
from raylens.engine.transfer import upload


@dataclass(frozen=True)
class Sizes:
    """To which prompts are filled up, so that few shapes come again and again, each as a CUDA graph."""

    tokens: int
    """At least one more than there are."""
    prompts: int
    tail: int
    """Tokens behind those that see each other, of all prompts; 0 if there are none that do."""
    longest: int
    """Tokens of a prompt."""

    @classmethod
    def of(cls, parts: Sequence[Part]) -> Sizes:
        lengths = [len(part.token_ids) for part in parts]
        tokens = sum(lengths) + 1
        return cls(
            tokens=_up(tokens, 64 if tokens <= 1024 else 256),
            prompts=_power(len(parts)),
            tail=_up(sum(_tails(parts)), 32) if any(part.whole for part in parts) else 0,
            longest=_power(max(lengths)),
        )


@dataclass(frozen=True)
class Tail:
    """What follows the tokens that see each other."""

    whole: Tensor
    """How many these are, int32 (prompts,); a prompt without such tokens has 1, and is all tail."""
    places: Tensor
    """Where the tokens that follow stand (tokens,), of all prompts."""
    bounds: Bounds


@dataclass(frozen=True)
class Packed:
    """The bounds of the prompts, and their tails, if some of their tokens see each other."""

    bounds: Bounds
    tail: Tail | None = None

    @classmethod
    def of(cls, parts: Sequence[Part], device: str, sizes: Sizes | None = None) -> Packed:
        """``sizes``: filled up by prompts without tokens, and by the tokens of none."""
        lengths = [len(part.token_ids) for part in parts]
        prompts = sizes.prompts if sizes else len(parts)
        longest = sizes.longest if sizes else max(lengths)
        bounds = Bounds.of(lengths, device, prompts, longest)
        if not any(part.whole for part in parts):
            return cls(bounds)
        tails = _tails(parts)
        ends = np.cumsum(lengths)
        places = [np.arange(end - tail, end) for end, tail in zip(ends, tails, strict=True)]
        if sizes is not None:
            places.append(np.full(sizes.tail - sum(tails), sizes.tokens - 1))
        whole = np.ones(prompts, np.int32)
        whole[: len(parts)] = [max(1, part.whole) for part in parts]
        tail_bounds = Bounds.of(tails, device, prompts, longest)
        return cls(bounds, Tail(upload(whole, device), upload(np.concatenate(places), device), tail_bounds))

    @property
    def tensors(self) -> list[Tensor]:
        """All that is asked when it is used."""
        tail = self.tail
        return [self.bounds.starts, *([] if tail is None else (tail.whole, tail.places, tail.bounds.starts))]

    def of_tensors(self, starts: Tensor, *tail: Tensor) -> Packed:
        """The same with other ``tensors``."""
        bounds = Bounds(starts, self.bounds.longest)
        if not tail:
            return Packed(bounds)
        whole, places, tail_starts = tail
        return Packed(bounds, Tail(whole, places, Bounds(tail_starts, bounds.longest)))

    def attend(self, query: Tensor, pairs: Tensor) -> Tensor:
        """Of queries (tokens, heads, head size) to keys and values (tokens, 2, key heads, head size) of their prompt:
        (tokens, heads · head size)."""
        keys, values = pairs.unbind(1)
        tail = self.tail
        if tail is None:
            return flash(query, keys, values, self.bounds, self.bounds, causal=True).flatten(1)
        mixed = flash(query, keys, values, self.bounds, self.bounds, used=tail.whole)
        mixed[tail.places] = flash(query[tail.places], keys, values, tail.bounds, self.bounds, causal=True)
        return mixed.flatten(1)


def are_whole(parts: Sequence[Part]) -> bool:
    """Whether these are prompts from their beginning to beyond the tokens that see each other."""
    return all(part.start == 0 and len(part.token_ids) > part.whole for part in parts)


def share_an_arena(rows: Sequence[KVRows]) -> bool:
    return all(row.arena and row.arena[0] is rows[0].arena[0] for row in rows)


def destinations(parts: Sequence[Part], rows: Sequence[KVRows], tokens: int, device: str) -> Tensor:
    """Row and place of each token's keys and values (2, tokens). Those of no prompt go where the first prompt's next
    token will be written."""
    lengths = [len(part.token_ids) for part in parts]
    spare = tokens - sum(lengths)
    index = np.repeat([row.first for row in rows] + [rows[0].first], [*lengths, spare])
    places = np.concatenate([*(np.arange(length) for length in lengths), np.full(spare, lengths[0])])
    return upload(np.stack([index, places]), device)


def address(rows: Sequence[KVRows]) -> Hashable:
    """Where the arena lies."""
    return (rows[0].arena[0].shape, *(layer.data_ptr() for layer in rows[0].arena))


def _tails(parts: Sequence[Part]) -> list[int]:
    return [len(part.token_ids) - part.whole for part in parts]


def _up(count: int, step: int) -> int:
    return -(-count // step) * step


def _power(count: int) -> int:
    return 1 << (count - 1).bit_length()


def padded(states: Tensor, tokens: int) -> Tensor:
    """(tokens, …), with zeros behind what there is."""
    out = torch.zeros((tokens, *states.shape[1:]), dtype=states.dtype, device=states.device)
    out[: len(states)] = states
    return out
