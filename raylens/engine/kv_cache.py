"""KV cache: rows for the keys and values of sequences, in arenas, under one budget of bytes.

An arena holds rows of one capacity, a power of two. A sequence takes a row of the smallest arena
that has room for its prompt and its longest answer. Rows of similar length are thus read together
with little padding, and a short sequence never takes as much memory as a long one. The rows in use
of an arena are contiguous: when one is removed, the last one moves into its place.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

import torch
from torch import Tensor

from raylens.engine.model import KVRows, KVShape

MIN_CAPACITY = 128
Owner = TypeVar("Owner")
"""The owner of a row: a sequence."""


class Arena(Generic[Owner]):
    """Rows of one capacity. ``owners`` and ``lengths`` are in the order of the rows."""

    def __init__(self, shape: KVShape, capacity: int) -> None:
        self.capacity = capacity
        self.row_bytes = shape.bytes_per_token * capacity
        self.owners: list[Owner] = []
        self.lengths: list[int] = []
        self._shape = shape
        self._layers: list[Tensor] = [self._zeros(0)] * shape.layers

    @property
    def allocated_rows(self) -> int:
        """Number of rows that all layers have. Layers differ if a resize ran out of memory."""
        return min(layer.shape[1] for layer in self._layers)

    def resize(self, rows: int) -> None:
        """Allocate this many rows, and copy the rows in use.

        Goes layer by layer, so that only one layer takes memory twice.
        """
        used_rows = len(self.owners)
        for index, layer in enumerate(self._layers):
            resized = self._zeros(rows)
            resized[:, :used_rows] = layer[:, :used_rows]
            self._layers[index] = resized

    def _zeros(self, rows: int) -> Tensor:
        """Return zeros (2, rows, heads, capacity, head size).

        Attention multiplies masked values by 0. Uninitialized memory could contain NaN, and 0 · NaN
        is NaN. On a GPU the heads of a token are contiguous, as flash attention expects.
        """
        shape = self._shape
        device = torch.device(shape.device)
        if device.type == "cuda":
            size = (2, rows, self.capacity, shape.heads, shape.head_dim)
            return torch.zeros(size, dtype=shape.dtype, device=device).transpose(2, 3)
        size = (2, rows, shape.heads, self.capacity, shape.head_dim)
        return torch.zeros(size, dtype=shape.dtype, device=device)

    def append(self, owner: Owner) -> None:
        self.owners.append(owner)
        self.lengths.append(0)

    def remove(self, owner: Owner) -> None:
        row = self.owners.index(owner)
        last = len(self.owners) - 1
        if row != last:
            self._move(last, row)
        self.owners.pop()
        self.lengths.pop()

    def _move(self, source: int, target: int) -> None:
        length = self.lengths[source]
        for layer in self._layers:
            layer[:, target, :, :length] = layer[:, source, :, :length]
        self.owners[target] = self.owners[source]
        self.lengths[target] = length

    def row(self, owner: Owner) -> KVRows:
        index = self.owners.index(owner)
        layers = [layer[:, index : index + 1] for layer in self._layers]
        return KVRows(layers, self.lengths[index : index + 1], self._layers, index)

    def all_rows(self) -> KVRows:
        return KVRows(list(self._layers), list(self.lengths))


class KVCache(Generic[Owner]):
    """Arenas of different capacities, which together take at most ``budget`` bytes."""

    def __init__(self, shape: KVShape, budget: int, max_rows: int) -> None:
        self.shape = shape
        self.budget = budget
        self._max_rows = max_rows
        self._arenas: dict[int, Arena[Owner]] = {}
        """By capacity."""
        self._arena_of: dict[Owner, Arena[Owner]] = {}

    @property
    def allocated_bytes(self) -> int:
        return sum(arena.allocated_rows * arena.row_bytes for arena in list(self._arenas.values()))

    @property
    def used_bytes(self) -> int:
        """Bytes of the rows in use. Can be read from any thread."""
        return sum(len(arena.owners) * arena.row_bytes for arena in list(self._arenas.values()))

    def cost(self, tokens: int) -> int:
        """Return the bytes that a sequence of up to ``tokens`` tokens takes."""
        return self.shape.bytes_per_token * _capacity(tokens)

    def reserve(self, owner: Owner, tokens: int) -> bool:
        """Take a row for up to ``tokens`` tokens. Return False if the budget has no room for it."""
        cost = self.cost(tokens)
        if self.used_bytes + cost > self.budget:
            return False
        capacity = _capacity(tokens)
        arena = self._arenas.setdefault(capacity, Arena(self.shape, capacity))
        if len(arena.owners) == arena.allocated_rows:
            self._grow(arena)
        arena.append(owner)
        self._arena_of[owner] = arena
        return True

    def release(self, owner: Owner) -> None:
        """Free the owner's row, if it has one."""
        arena = self._arena_of.pop(owner, None)
        if arena is not None:
            arena.remove(owner)

    def clear(self, owner: Owner) -> None:
        """Zero the owner's row, if it has one.

        NaN left in a row would poison its next owner, because 0 · NaN is NaN.
        """
        if owner in self._arena_of:
            for layer in self.row(owner).layers:
                layer.zero_()

    def reset(self, owner: Owner) -> None:
        """Zero the owner's row, and set its length to 0."""
        self.clear(owner)
        arena = self._arena_of[owner]
        arena.lengths[arena.owners.index(owner)] = 0

    def advance(self, owner: Owner, tokens: int = 1) -> None:
        """Add ``tokens`` to the length of the owner's row."""
        arena = self._arena_of[owner]
        arena.lengths[arena.owners.index(owner)] += tokens

    def row(self, owner: Owner) -> KVRows:
        """Return the owner's row."""
        return self._arena_of[owner].row(owner)

    def groups(self) -> Iterator[tuple[list[Owner], KVRows]]:
        """Yield the owners and rows of each arena that has rows in use."""
        for arena in self._arenas.values():
            if arena.owners:
                yield list(arena.owners), arena.all_rows()

    def copy_prefix(self, owner: Owner, tokens: int) -> Tensor:
        """Return a copy of a row's first tokens (layers, 2, heads, tokens, head size)."""
        return torch.stack([layer[:, 0, :, :tokens] for layer in self.row(owner).layers])

    def load_prefix(self, owner: Owner, prefix: Tensor) -> None:
        """Write keys and values (layers, 2, heads, tokens, head size) to an empty row."""
        tokens = prefix.shape[3]
        for layer, prefix_layer in zip(self.row(owner).layers, prefix, strict=True):
            layer[:, 0, :, :tokens] = prefix_layer
        self.advance(owner, tokens)

    def _grow(self, arena: Arena[Owner]) -> None:
        """Double the rows of an arena if the budget allows it; otherwise add one row.

        Other arenas give up their unused rows if the budget requires it.
        """
        rows = max(1, min(2 * arena.allocated_rows, self._max_rows))
        if not self._allows(arena, rows):
            rows = arena.allocated_rows + 1
        for other in self._arenas.values():
            has_unused_rows = other.allocated_rows > len(other.owners)
            if has_unused_rows and not self._allows(arena, rows):
                other.resize(len(other.owners))
        arena.resize(rows)

    def _allows(self, arena: Arena[Owner], rows: int) -> bool:
        """Return whether the budget allows resizing an arena to ``rows``."""
        added_bytes = (rows - arena.allocated_rows) * arena.row_bytes
        return self.allocated_bytes + added_bytes <= self.budget


def _capacity(tokens: int) -> int:
    return max(MIN_CAPACITY, 1 << (tokens - 1).bit_length())
