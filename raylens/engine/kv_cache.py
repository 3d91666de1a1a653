"""Keys and values of running sequences: rows of arenas, under one budget of bytes.

An arena holds rows of one capacity, a power of two; a sequence takes a row of the smallest arena in
which its prompt and all that it may answer have room. Rows of like length are so read together,
with little padding, and a short answer never holds a long one's memory. An arena's rows stand
together: where one leaves, the last one takes its place.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

import torch
from torch import Tensor

from raylens.engine.model import KVRows, KVShape

SMALLEST = 128
Holder = TypeVar("Holder")
"""What holds a row: a sequence."""


class Arena(Generic[Holder]):
    """Rows of one capacity. ``holders`` stand in the order of the rows."""

    def __init__(self, shape: KVShape, capacity: int) -> None:
        self.capacity = capacity
        self.row_bytes = shape.bytes_per_token * capacity
        self.holders: list[Holder] = []
        self.lengths: list[int] = []
        self._shape = shape
        self._layers: list[Tensor] = [self._zeros(0)] * shape.layers

    @property
    def rows(self) -> int:
        """Rows that there is room for; where a resize broke off for want of memory, those of every
        layer."""
        return min(layer.shape[1] for layer in self._layers)

    def resize(self, rows: int) -> None:
        """Makes room for so many rows, a layer at a time: what is held twice meanwhile is one
        layer."""
        held = len(self.holders)
        for index, layer in enumerate(self._layers):
            resized = self._zeros(rows)
            resized[:, :held] = layer[:, :held]
            self._layers[index] = resized

    def _zeros(self, rows: int) -> Tensor:
        """(2, rows, heads, capacity, head size). Zeros: attention multiplies what it masks by
        nothing, and nothing times a stray NaN is NaN. On a GPU the heads of a token lie together,
        as flash attention reads them."""
        shape, device = self._shape, torch.device(self._shape.device)
        if device.type == "cuda":
            size = (2, rows, self.capacity, shape.heads, shape.head_dim)
            return torch.zeros(size, dtype=shape.dtype, device=device).transpose(2, 3)
        return torch.zeros(
            (2, rows, shape.heads, self.capacity, shape.head_dim), dtype=shape.dtype, device=device
        )

    def append(self, holder: Holder) -> None:
        self.holders.append(holder)
        self.lengths.append(0)

    def remove(self, holder: Holder) -> None:
        row, last = self.holders.index(holder), len(self.holders) - 1
        if row != last:
            used = self.lengths[last]
            for layer in self._layers:
                layer[:, row, :, :used] = layer[:, last, :, :used]
            self.holders[row], self.lengths[row] = self.holders[last], used
        self.holders.pop()
        self.lengths.pop()

    def row(self, holder: Holder) -> KVRows:
        index = self.holders.index(holder)
        layers = [layer[:, index : index + 1] for layer in self._layers]
        return KVRows(layers, self.lengths[index : index + 1], self._layers, index)

    def all_rows(self) -> KVRows:
        return KVRows(list(self._layers), list(self.lengths))


class KVCache(Generic[Holder]):
    """Arenas by capacity, under ``budget`` bytes in all."""

    def __init__(self, shape: KVShape, budget: int, max_rows: int) -> None:
        self.shape = shape
        self.budget = budget
        self._max_rows = max_rows
        self._arenas: dict[int, Arena[Holder]] = {}
        self._home: dict[Holder, Arena[Holder]] = {}

    @property
    def allocated_bytes(self) -> int:
        return sum(arena.rows * arena.row_bytes for arena in list(self._arenas.values()))

    @property
    def used_bytes(self) -> int:
        """May be asked from any thread."""
        return sum(len(arena.holders) * arena.row_bytes for arena in list(self._arenas.values()))

    def cost(self, tokens: int) -> int:
        """Bytes that a sequence of so many tokens takes."""
        return self.shape.bytes_per_token * _capacity(tokens)

    def reserve(self, holder: Holder, tokens: int) -> bool:
        """Takes a row for a sequence of so many tokens; False where the budget has no room for it
        now."""
        cost = self.cost(tokens)
        if self.used_bytes + cost > self.budget:
            return False
        capacity = _capacity(tokens)
        arena = self._arenas.setdefault(capacity, Arena(self.shape, capacity))
        if len(arena.holders) == arena.rows:
            self._grow(arena)
        arena.append(holder)
        self._home[holder] = arena
        return True

    def release(self, holder: Holder) -> None:
        """Frees the row, where the sequence has one."""
        arena = self._home.pop(holder, None)
        if arena is not None:
            arena.remove(holder)

    def clear(self, holder: Holder) -> None:
        """Wipes the row, where the sequence has one: numbers that are none would spoil its next
        holder's sums."""
        if holder in self._home:
            for layer in self.row(holder).layers:
                layer.zero_()

    def rewind(self, holder: Holder) -> None:
        """Empties the row."""
        self.clear(holder)
        arena = self._home[holder]
        arena.lengths[arena.holders.index(holder)] = 0

    def advance(self, holder: Holder, tokens: int = 1) -> None:
        """So many more have been written to the row."""
        arena = self._home[holder]
        arena.lengths[arena.holders.index(holder)] += tokens

    def row(self, holder: Holder) -> KVRows:
        """The one row of a sequence."""
        return self._home[holder].row(holder)

    def groups(self) -> Iterator[tuple[list[Holder], KVRows]]:
        """All rows, an arena at a time."""
        for arena in self._arenas.values():
            if arena.holders:
                yield list(arena.holders), arena.all_rows()

    def read(self, holder: Holder, tokens: int) -> Tensor:
        """A copy of the row's first tokens: (layers, 2, heads, tokens, head size)."""
        return torch.stack([layer[:, 0, :, :tokens] for layer in self.row(holder).layers])

    def write(self, holder: Holder, kept: Tensor) -> None:
        """Fills an empty row with what ``read`` gave, or with its first tokens."""
        tokens = kept.shape[3]
        for layer, read in zip(self.row(holder).layers, kept, strict=True):
            layer[:, 0, :, :tokens] = read
        self.advance(holder, tokens)

    def _grow(self, arena: Arena[Holder]) -> None:
        """Twice as many rows where the budget allows it, else one more; other arenas give up what
        they don't use."""
        held = arena.rows
        wanted = max(1, min(2 * held, self._max_rows))
        if self.allocated_bytes + (wanted - held) * arena.row_bytes > self.budget:
            wanted = held + 1
        for other in self._arenas.values():
            short = self.allocated_bytes + (wanted - held) * arena.row_bytes > self.budget
            if short and other.rows > len(other.holders):
                other.resize(len(other.holders))
        arena.resize(wanted)


def _capacity(tokens: int) -> int:
    return max(SMALLEST, 1 << (tokens - 1).bit_length())
