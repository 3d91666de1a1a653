"""What is kept of earlier requests: pictures' features, and the keys and values of prompts. Both
are bounded by bytes; what was used longest ago goes first."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from raylens.engine.model import Prompt

Key = bytes
K = TypeVar("K")
V = TypeVar("V")
SHORTEST_PREFIX = 16
"""Tokens below which reading again costs as little as looking up."""
NEW_SHARE = 1 / 8
"""Of a prompt, below which what it adds to a known one isn't kept."""


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

    def put(self, key: K, value: V, size: int) -> list[K]:
        """Keeps a value of ``size`` bytes, unless it is larger than the whole budget; the keys that
        went for it."""
        self.drop(key)
        if size > self.budget:
            return []
        gone = []
        while self.bytes + size > self.budget:
            gone.append(next(iter(self._entries)))
            self.drop(gone[-1])
        self._entries[key] = value, size
        self.bytes += size
        return gone

    def drop(self, key: K) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.bytes -= entry[1]

    def clear(self) -> None:
        self._entries.clear()
        self.bytes = 0


@dataclass(frozen=True, eq=False)
class Prefix:
    """The beginning of a prompt as read: what stands at each place, and keys and values (layers, 2,
    heads, tokens, head size)."""

    content: NDArray[np.int64]
    kept: Tensor


class PrefixCache:
    """Keys and values of whole prompts, for others that begin alike."""

    def __init__(self, budget: int) -> None:
        self._prefixes: ByteLRU[bytes, Prefix] = ByteLRU(budget)
        self._by_head: dict[bytes, dict[bytes, Prefix]] = {}
        """The same by their first tokens: only those that share them are compared."""

    @property
    def bytes(self) -> int:
        return self._prefixes.bytes

    def clear(self) -> None:
        self._prefixes.clear()
        self._by_head.clear()

    def find(self, prompt: Prompt) -> Tensor | None:
        """Keys and values of the longest known beginning, without the last token: its scores are
        wanted."""
        key, tokens = self._longest(_content(prompt)[:-1])
        if tokens < max(SHORTEST_PREFIX, prompt.bidirectional_prefix_len):
            return None
        found = self._prefixes.get(key)
        return None if found is None else found.kept[:, :, :, :tokens]

    def wants(self, prompt: Prompt, bytes_per_token: int) -> bool:
        """Whether it would keep this prompt: it is neither tiny nor too large, and so much of it is
        new that it is worth the memory of all."""
        tokens = len(prompt.token_ids)
        if tokens < SHORTEST_PREFIX or tokens * bytes_per_token > self._prefixes.budget:
            return False
        _, known = self._longest(_content(prompt))
        return tokens - known >= max(SHORTEST_PREFIX, int(NEW_SHARE * tokens))

    def keep(self, prompt: Prompt, kept: Tensor) -> None:
        content = _content(prompt)
        key, prefix = content.tobytes(), Prefix(content, kept)
        for gone in self._prefixes.put(key, prefix, kept.nbytes):
            self._forget(gone)
        self._by_head.setdefault(_head(key), {})[key] = prefix

    def _longest(self, content: NDArray[np.int64]) -> tuple[Key, int]:
        """The kept prompt that has the longest beginning in common, and how many tokens that is."""
        alike = self._by_head.get(_head(content.tobytes()), {})
        lengths = ((key, _common(content, prefix.content)) for key, prefix in alike.items())
        return max(lengths, key=lambda found: found[1], default=(b"", 0))

    def _forget(self, key: Key) -> None:
        alike = self._by_head[_head(key)]
        del alike[key]
        if not alike:
            del self._by_head[_head(key)]


def _head(key: bytes) -> bytes:
    return key[: 8 * SHORTEST_PREFIX]


def _content(prompt: Prompt) -> NDArray[np.int64]:
    """Token ids; in the place of image tokens, numbers that depend on the picture. Those are
    negative: no token is."""
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
