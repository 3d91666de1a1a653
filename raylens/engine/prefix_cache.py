"""A cache of prompts' keys and values, for later prompts that begin with the same tokens.

It is bounded in bytes, and evicts the least recently used prompt first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from raylens.engine.lru import ByteLRU
from raylens.engine.model import Prompt

Key = bytes
"""The bytes of a prompt's content ids."""
MIN_PREFIX_TOKENS = 16
"""Length of the shortest prefix worth caching. A shorter one costs as little as a lookup."""
MIN_NEW_SHARE = 1 / 8
"""Smallest share of a prompt that must be new for the prompt to be worth storing."""


@dataclass(frozen=True, eq=False)
class Prefix:
    """A prompt in the prefix cache."""

    content_ids: NDArray[np.int64]
    """Token ids, in which image tokens depend on the picture's content."""
    keys_values: Tensor
    """(layers, 2, heads, tokens, head size)."""


class PrefixCache:
    """Keys and values of whole prompts, for prompts that share a prefix with one of them."""

    def __init__(self, budget: int) -> None:
        self._prefixes: ByteLRU[Key, Prefix] = ByteLRU(budget)
        self._buckets: dict[Key, dict[Key, Prefix]] = {}
        """The same prefixes, grouped by their first ``MIN_PREFIX_TOKENS`` tokens. Prompts that
        differ in these need not be compared."""

    @property
    def bytes(self) -> int:
        return self._prefixes.bytes

    def clear(self) -> None:
        self._prefixes.clear()
        self._buckets.clear()

    def find(self, prompt: Prompt) -> Tensor | None:
        """Return the keys and values of the longest cached prefix, or None.

        The prefix never includes the prompt's last token, which must be prefilled to get logits.
        """
        key, tokens = self._find_longest(_content_ids(prompt)[:-1])
        if tokens < max(MIN_PREFIX_TOKENS, prompt.bidirectional_prefix_len):
            return None
        prefix = self._prefixes.get(key)
        return None if prefix is None else prefix.keys_values[:, :, :, :tokens]

    def should_store(self, prompt: Prompt, bytes_per_token: int) -> bool:
        """Return whether a prompt is worth storing.

        It must be neither too short nor larger than the budget. A large enough share of it must be
        new, because storing it takes memory for all of it.
        """
        tokens = len(prompt.token_ids)
        if tokens < MIN_PREFIX_TOKENS or tokens * bytes_per_token > self._prefixes.budget:
            return False
        _, cached_tokens = self._find_longest(_content_ids(prompt))
        return tokens - cached_tokens >= max(MIN_PREFIX_TOKENS, int(MIN_NEW_SHARE * tokens))

    def store(self, prompt: Prompt, keys_values: Tensor) -> None:
        """Store a prompt's keys and values (layers, 2, heads, tokens, head size)."""
        content_ids = _content_ids(prompt)
        key = content_ids.tobytes()
        prefix = Prefix(content_ids, keys_values)
        for evicted in self._prefixes.put(key, prefix, keys_values.nbytes):
            self._remove_from_bucket(evicted)
        self._buckets.setdefault(_bucket_key(key), {})[key] = prefix

    def _find_longest(self, content_ids: NDArray[np.int64]) -> tuple[Key, int]:
        """Return the key of the prompt with the longest common prefix, and that prefix's length."""
        bucket = self._buckets.get(_bucket_key(content_ids.tobytes()), {})
        lengths = (
            (key, _common_prefix_len(content_ids, prefix.content_ids))
            for key, prefix in bucket.items()
        )
        return max(lengths, key=lambda match: match[1], default=(b"", 0))

    def _remove_from_bucket(self, key: Key) -> None:
        bucket = self._buckets[_bucket_key(key)]
        del bucket[key]
        if not bucket:
            del self._buckets[_bucket_key(key)]


def _bucket_key(key: Key) -> Key:
    return key[: 8 * MIN_PREFIX_TOKENS]


def _content_ids(prompt: Prompt) -> NDArray[np.int64]:
    """Return the prompt's token ids, in which each image token depends on the picture's content.

    Image tokens become negative numbers, which no token id is.
    """
    content_ids = np.array(prompt.token_ids, np.int64)
    for start, picture in zip(prompt.image_starts, prompt.pictures, strict=True):
        salt = int.from_bytes(picture.key[:7], "big")
        content_ids[start : start + picture.num_tokens] = -1 - salt - np.arange(picture.num_tokens)
    return content_ids


def _common_prefix_len(first: NDArray[np.int64], second: NDArray[np.int64]) -> int:
    shorter = min(len(first), len(second))
    differences = np.flatnonzero(first[:shorter] != second[:shorter])
    return int(differences[0]) if len(differences) else shorter
