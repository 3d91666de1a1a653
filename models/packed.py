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
    longest_tail: int

    @classmethod
    def of(cls, parts: Sequence[Part]) -> Sizes:
        lengths = [len(part.token_ids) for part in parts]
        tails = _tails(parts) if any(part.whole for part in parts) else []
        tokens = sum(lengths) + 1
        return cls(
            tokens=_up(tokens, 64 if tokens <= 1024 else 256),
            prompts=_power(len(parts)),
            tail=_up(sum(tails), 32),
            longest=_power(max(lengths)),
            longest_tail=_power(max(tails, default=1)),
        )


@dataclass(frozen=True)
class Packed:
    """The bounds of the prompts; if some of a prompt's first tokens see each other, how many, and what follows them."""

    bounds: Bounds
    whole: Tensor | None = None
    """int32 (prompts,); a prompt without such tokens has 1, and is all tail."""
    tail: Tensor | None = None
    """Places of the tokens that follow, of all prompts."""
    tail_bounds: Bounds | None = None

    @classmethod
    def of(cls, parts: Sequence[Part], device: str, sizes: Sizes | None = None) -> Packed:
        """``sizes``: filled up by prompts without tokens, and by the tokens of none."""
        lengths = [len(part.token_ids) for part in parts]
        prompts = sizes.prompts if sizes else len(parts)
        bounds = _bounds(lengths, prompts, sizes.longest if sizes else max(lengths), device)
        if not any(part.whole for part in parts):
            return cls(bounds)
        starts = np.cumsum([0, *lengths])
        tails = _tails(parts)
        places = [int(end) - tail + n for end, tail in zip(starts[1:], tails, strict=True) for n in range(tail)]
        if sizes is not None:
            places += [sizes.tokens - 1] * (sizes.tail - len(places))
        whole = [max(1, part.whole) for part in parts] + [1] * (prompts - len(parts))
        return cls(
            bounds,
            upload(np.array(whole, np.int32), device),
            upload(places, device),
            _bounds(tails, prompts, sizes.longest_tail if sizes else max(tails), device),
        )

    @property
    def tensors(self) -> list[Tensor]:
        """All that is asked when it is used."""
        if self.whole is None or self.tail is None or self.tail_bounds is None:
            return [self.bounds.starts]
        return [self.bounds.starts, self.whole, self.tail, self.tail_bounds.starts]

    def of_tensors(self, starts: Tensor, *more: Tensor) -> Packed:
        """The same with other ``tensors``."""
        bounds = Bounds(starts, self.bounds.longest)
        if not more or self.tail_bounds is None:
            return Packed(bounds)
        whole, tail, tail_starts = more
        return Packed(bounds, whole, tail, Bounds(tail_starts, self.tail_bounds.longest))

    def attend(self, query: Tensor, pairs: Tensor) -> Tensor:
        """Of queries (tokens, heads, head size) to keys and values (tokens, 2, key heads, head size) of their prompt:
        (tokens, heads · head size)."""
        keys, values = pairs.unbind(1)
        if self.whole is None or self.tail is None or self.tail_bounds is None:
            return flash(query, keys, values, self.bounds, self.bounds, causal=True).flatten(1)
        mixed = flash(query, keys, values, self.bounds, self.bounds, used=self.whole)
        mixed[self.tail] = flash(query[self.tail], keys, values, self.tail_bounds, self.bounds, causal=True)
        return mixed.flatten(1)


def are_whole(parts: Sequence[Part]) -> bool:
    """Whether these are prompts from their beginning to beyond the tokens that see each other."""
    return all(part.start == 0 and len(part.token_ids) > part.whole for part in parts)


def share_an_arena(rows: Sequence[KVRows]) -> bool:
    return all(row.arena and row.arena[0] is rows[0].arena[0] for row in rows)


def destinations(parts: Sequence[Part], rows: Sequence[KVRows], tokens: int, device: str) -> Tensor:
    """Row and place of each token's keys and values (2, tokens). Those of no prompt go where the first prompt's next
    token will be written."""
    spare = [rows[0].first, len(parts[0].token_ids)]
    index = [[row.first, place] for part, row in zip(parts, rows, strict=True) for place in range(len(part.token_ids))]
    return upload(np.array(index + [spare] * (tokens - len(index))).T, device)


def address(rows: Sequence[KVRows]) -> Hashable:
    """Where the arena lies."""
    return (rows[0].arena[0].shape, *(layer.data_ptr() for layer in rows[0].arena))


def _tails(parts: Sequence[Part]) -> list[int]:
    return [len(part.token_ids) - part.whole for part in parts]


def _bounds(lengths: Sequence[int], count: int, longest: int, device: str) -> Bounds:
    """Of so many sequences, the last of which have no tokens."""
    starts = np.cumsum([0, *lengths, *[0] * (count - len(lengths))]).astype(np.int32)
    return Bounds(upload(starts, device), longest)


def _up(count: int, step: int) -> int:
    return -(-count // step) * step


def _power(count: int) -> int:
    return 1 << (count - 1).bit_length()


def filled(states: Tensor, tokens: int) -> Tensor:
    """(tokens, …), with zeros behind what there is."""
    padded = torch.zeros((tokens, *states.shape[1:]), dtype=states.dtype, device=states.device)
    padded[: len(states)] = states
    return padded
