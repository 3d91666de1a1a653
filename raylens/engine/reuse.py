"""What is kept of earlier requests: pictures' features, and the keys and values of prompts. Both are bounded by bytes;
what was used longest ago goes first."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from raylens.engine.model import Prompt

K = TypeVar("K")
V = TypeVar("V")
SHORTEST_PREFIX = 16
"""Tokens below which reading again costs as little as looking up."""


class ByteLRU(Generic[K, V]):
    """A dictionary of at most ``budget`` bytes of values."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.bytes = 0
        self._entries: OrderedDict[K, tuple[V, int]] = OrderedDict()

    def get(self, key: K) -> V | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._entries.move_to_end(key)
        return entry[0]

    def put(self, key: K, value: V, size: int) -> None:
        """Keeps a value of ``size`` bytes, unless it is larger than the whole budget."""
        self.drop(key)
        if size > self.budget:
            return
        while self.bytes + size > self.budget:
            self.drop(next(iter(self._entries)))
        self._entries[key] = value, size
        self.bytes += size

    def drop(self, key: K) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.bytes -= entry[1]

    def clear(self) -> None:
        self._entries.clear()
        self.bytes = 0

    def items(self) -> list[tuple[K, V]]:
        return [(key, value) for key, (value, _) in self._entries.items()]


@dataclass(frozen=True, eq=False)
class Prefix:
    """The beginning of a prompt as read: what stands at each place, and keys and values (layers, 2, heads, tokens, head
    size)."""

    content: NDArray[np.int64]
    kept: Tensor


class PrefixCache:
    """Keys and values of whole prompts, for others that begin alike."""

    def __init__(self, budget: int) -> None:
        self._prefixes: ByteLRU[bytes, Prefix] = ByteLRU(budget)

    @property
    def bytes(self) -> int:
        return self._prefixes.bytes

    def clear(self) -> None:
        self._prefixes.clear()

    def find(self, prompt: Prompt) -> Tensor | None:
        """Keys and values of the longest known beginning, without the last token: its logits are wanted."""
        content = _content(prompt)
        tokens, key = max(
            ((_common(content[:-1], prefix.content), key) for key, prefix in self._prefixes.items()),
            default=(0, b""),
        )
        found = self._prefixes.get(key) if tokens >= SHORTEST_PREFIX else None
        return None if found is None else found.kept[:, :, :, :tokens]

    def wants(self, prompt: Prompt, bytes_per_token: int) -> bool:
        """Whether it would keep this prompt: no entry holds it yet, and it is neither tiny nor too large."""
        tokens = len(prompt.token_ids)
        if tokens < SHORTEST_PREFIX or tokens * bytes_per_token > self._prefixes.budget:
            return False
        return self._prefixes.get(_content(prompt).tobytes()) is None

    def keep(self, prompt: Prompt, kept: Tensor) -> None:
        content = _content(prompt)
        self._prefixes.put(content.tobytes(), Prefix(content, kept), kept.nbytes)


def _content(prompt: Prompt) -> NDArray[np.int64]:
    """Token ids; in the place of image tokens, numbers that depend on the picture. Those are negative: no token is."""
    content = np.array(prompt.token_ids, np.int64)
    for start, picture in zip(prompt.image_at, prompt.pictures, strict=True):
        salt = int.from_bytes(picture.key[:7], "big")
        content[start : start + picture.tokens] = -1 - salt - np.arange(picture.tokens)
    return content


def _common(first: NDArray[np.int64], second: NDArray[np.int64]) -> int:
    """Length of the common beginning."""
    shorter = min(len(first), len(second))
    different = np.flatnonzero(first[:shorter] != second[:shorter])
    return int(different[0]) if len(different) else shorter
