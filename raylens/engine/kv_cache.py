"""KV cache: rows for the keys and values of sequences, in arenas, sharing one memory budget.

An arena holds rows of one capacity, a power of two. A sequence takes a row in the arena with the
smallest sufficient capacity. Rows of similar length are thus read together with little padding, and
a short sequence does not reserve memory for the maximum length. The rows in use of an arena are
contiguous: when one is removed, the last one moves into its place.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

import torch
from torch import Tensor

from raylens.engine.model import KVRows, KVSpec

MIN_CAPACITY = 128
"""Smallest capacity of a row, in tokens."""
Owner = TypeVar("Owner")
"""The owner of a row: a sequence."""


class Arena(Generic[Owner]):
    """Rows of one capacity. ``owners`` and ``lengths`` are in the order of the rows."""

    def __init__(self, spec: KVSpec, capacity: int) -> None:
        self.capacity = capacity
        """Tokens per row."""
        self.row_bytes = spec.bytes_per_token * capacity
        self.owners: list[Owner] = []
        self.lengths: list[int] = []
        self._spec = spec
        self._layer_kv: list[Tensor] = [self._zeros(0)] * spec.num_layers

    @property
    def allocated_rows(self) -> int:
        """Number of rows allocated in every layer. A resize that ran out of memory can leave some
        layers with more."""
        return min(layer.shape[1] for layer in self._layer_kv)

    def resize(self, num_rows: int) -> None:
        """Allocate this many rows, and copy the rows in use.

        Goes layer by layer, so that only one layer takes memory twice.
        """
        used_rows = len(self.owners)
        for index, layer in enumerate(self._layer_kv):
            resized = self._zeros(num_rows)
            resized[:, :used_rows] = layer[:, :used_rows]
            self._layer_kv[index] = resized

    def _zeros(self, num_rows: int) -> Tensor:
        """Return zeros (2, rows, kv heads, capacity, head_dim).

        Attention multiplies masked values by 0, and 0 · NaN is NaN. Uninitialized memory could
        contain NaN. On a GPU the heads of a token are contiguous, as flash attention expects.
        """
        spec = self._spec
        device = torch.device(spec.device)
        if device.type == "cuda":
            shape = (2, num_rows, self.capacity, spec.num_kv_heads, spec.head_dim)
            return torch.zeros(shape, dtype=spec.dtype, device=device).transpose(2, 3)
        shape = (2, num_rows, spec.num_kv_heads, self.capacity, spec.head_dim)
        return torch.zeros(shape, dtype=spec.dtype, device=device)

    def append(self, owner: Owner) -> None:
        self.owners.append(owner)
        self.lengths.append(0)

    def remove(self, owner: Owner) -> None:
        row_index = self.owners.index(owner)
        last_index = len(self.owners) - 1
        if row_index != last_index:
            self._move(last_index, row_index)
        self.owners.pop()
        self.lengths.pop()

    def _move(self, source: int, target: int) -> None:
        length = self.lengths[source]
        for layer in self._layer_kv:
            layer[:, target, :, :length] = layer[:, source, :, :length]
        self.owners[target] = self.owners[source]
        self.lengths[target] = length

    def row_of(self, owner: Owner) -> KVRows:
        """Return the owner's row as a :class:`KVRows` of one row."""
        row_index = self.owners.index(owner)
        layer_kv = [layer[:, row_index : row_index + 1] for layer in self._layer_kv]
        lengths = self.lengths[row_index : row_index + 1]
        return KVRows(layer_kv, lengths, self._layer_kv, row_index)

    def all_rows(self) -> KVRows:
        return KVRows(list(self._layer_kv), list(self.lengths))


class KVCache(Generic[Owner]):
    """Arenas of different capacities, which together take at most ``budget`` bytes."""

    def __init__(self, spec: KVSpec, budget: int, max_rows: int) -> None:
        self.spec = spec
        self.budget = budget
        self.max_rows = max_rows
        """An arena is enlarged to more rows only one by one."""
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

    def cost(self, num_tokens: int) -> int:
        """Return the bytes that a sequence of up to ``num_tokens`` tokens takes."""
        return self.spec.bytes_per_token * row_capacity(num_tokens)

    def reserve(self, owner: Owner, num_tokens: int) -> bool:
        """Take a row for up to ``num_tokens`` tokens. Return False if the budget has no room."""
        cost = self.cost(num_tokens)
        if self.used_bytes + cost > self.budget:
            return False
        capacity = row_capacity(num_tokens)
        arena = self._arenas.setdefault(capacity, Arena(self.spec, capacity))
        if len(arena.owners) == arena.allocated_rows:
            self._grow(arena)
        arena.append(owner)
        self._arena_of[owner] = arena
        return True

    @property
    def max_capacity(self) -> int:
        """Tokens of the largest row that the budget can hold; 0 if it can hold none."""
        capacity = MIN_CAPACITY
        while self.cost(2 * capacity) <= self.budget:
            capacity *= 2
        return capacity if self.cost(capacity) <= self.budget else 0

    def capacity_of(self, owner: Owner) -> int:
        """Return how many tokens the owner's row can hold."""
        return self._arena_of[owner].capacity

    def enlarge(self, owner: Owner) -> bool:
        """Move the owner to a row of twice the capacity. Return False if the budget has no room.

        Both rows exist for a moment.
        """
        old = self._arena_of[owner]
        length = old.lengths[old.owners.index(owner)]
        if not self.reserve(owner, 2 * old.capacity):
            return False
        source = old.row_of(owner)
        target = self.row_of(owner)
        for source_layer, layer in zip(source.layer_kv, target.layer_kv, strict=True):
            layer[:, 0, :, :length] = source_layer[:, 0, :, :length]
        self.advance(owner, length)
        old.remove(owner)
        return True

    def release_row(self, owner: Owner) -> None:
        """Free the owner's row, if it has one."""
        arena = self._arena_of.pop(owner, None)
        if arena is not None:
            arena.remove(owner)

    def zero_row(self, owner: Owner) -> None:
        """Zero the owner's row, if it has one.

        Attention multiplies masked values by 0, and 0 · NaN is NaN, so a leftover NaN would corrupt
        the row's next owner.
        """
        if owner in self._arena_of:
            for layer in self.row_of(owner).layer_kv:
                layer.zero_()

    def reset_row(self, owner: Owner) -> None:
        """Zero the owner's row, and set its length to 0."""
        self.zero_row(owner)
        arena = self._arena_of[owner]
        arena.lengths[arena.owners.index(owner)] = 0

    def advance(self, owner: Owner, num_tokens: int = 1) -> None:
        """Add ``num_tokens`` to the length of the owner's row."""
        arena = self._arena_of[owner]
        arena.lengths[arena.owners.index(owner)] += num_tokens

    def row_of(self, owner: Owner) -> KVRows:
        """Return the owner's row as a :class:`KVRows` of one row."""
        return self._arena_of[owner].row_of(owner)

    def arenas_in_use(self) -> Iterator[tuple[list[Owner], KVRows]]:
        """Yield the owners and rows of each arena that has rows in use."""
        for arena in self._arenas.values():
            if arena.owners:
                yield list(arena.owners), arena.all_rows()

    def copy_prefix(self, owner: Owner, num_tokens: int) -> Tensor:
        """Return a copy of the keys and values of a row's first ``num_tokens`` tokens (layers, 2,
        kv heads, tokens, head_dim)."""
        return torch.stack([layer[:, 0, :, :num_tokens] for layer in self.row_of(owner).layer_kv])

    def load_prefix(self, owner: Owner, prefix: Tensor) -> None:
        """Write keys and values (layers, 2, kv heads, tokens, head_dim) to an empty row."""
        num_tokens = prefix.shape[3]
        for layer, prefix_layer in zip(self.row_of(owner).layer_kv, prefix, strict=True):
            layer[:, 0, :, :num_tokens] = prefix_layer
        self.advance(owner, num_tokens)

    def _grow(self, arena: Arena[Owner]) -> None:
        """Double the rows of an arena if the budget allows it; otherwise add one row.

        If the budget requires it, free the unused rows of other arenas.
        """
        one_more = arena.allocated_rows + 1
        num_rows = max(one_more, min(2 * arena.allocated_rows, self.max_rows))
        if not self._fits_budget(arena, num_rows):
            num_rows = one_more
        for other in self._arenas.values():
            has_unused_rows = other.allocated_rows > len(other.owners)
            if has_unused_rows and not self._fits_budget(arena, num_rows):
                other.resize(len(other.owners))
        arena.resize(num_rows)

    def _fits_budget(self, arena: Arena[Owner], num_rows: int) -> bool:
        """Return whether the budget allows resizing an arena to ``num_rows``."""
        added_bytes = (num_rows - arena.allocated_rows) * arena.row_bytes
        return self.allocated_bytes + added_bytes <= self.budget


def row_capacity(num_tokens: int) -> int:
    """Return the tokens of the row that a sequence of up to ``num_tokens`` tokens takes."""
    return max(MIN_CAPACITY, 1 << (num_tokens - 1).bit_length())
