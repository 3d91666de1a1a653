"""A cache of prompts' keys and values, for later prompts that begin with the same tokens.

It is bounded in bytes, and evicts the least recently used prompt first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from raylens.core.lru import ByteLRU
from raylens.engine.model import Prompt

Key = bytes
"""The bytes of a prompt's content ids (see :func:`_content_ids`)."""
BucketKey = bytes
"""The bytes of a prompt's first ``MIN_PREFIX_TOKENS`` content ids."""
MIN_PREFIX_TOKENS = 16
"""Length of the shortest prefix worth caching. Recomputing a shorter one is as cheap as looking it
up."""
MIN_NEW_FRACTION = 1 / 8
"""Smallest fraction of a prompt that must be new for the prompt to be worth storing."""


@dataclass(frozen=True, eq=False)
class CachedPrompt:
    """A prompt in the prefix cache."""

    content_ids: NDArray[np.int64]
    """Token ids, with image tokens replaced with numbers derived from the picture's digest."""
    keys_values: Tensor
    """(layers, 2, kv heads, tokens, head_dim)."""


class PrefixCache:
    """Keys and values of whole prompts, for prompts that share a prefix with one of them."""

    def __init__(self, budget: int) -> None:
        self._prompts: ByteLRU[Key, CachedPrompt] = ByteLRU(budget)
        self._buckets: dict[BucketKey, dict[Key, CachedPrompt]] = {}
        """The same prompts, by their first ``MIN_PREFIX_TOKENS`` content ids. Prompts in different
        buckets have no prefix in common that is worth reusing."""

    @property
    def bytes(self) -> int:
        return self._prompts.bytes

    def shrink(self, budget: int) -> None:
        """Remove the oldest prompts until the others take at most ``budget`` bytes."""
        for removed in self._prompts.shrink(budget):
            self._remove_from_bucket(removed)

    def clear(self) -> None:
        self._prompts.clear()
        self._buckets.clear()

    def find(self, prompt: Prompt) -> Tensor | None:
        """Return the keys and values of the longest cached prefix (layers, 2, kv heads, tokens,
        head_dim), or None.

        The prefix never includes the prompt's last token, which must be prefilled to get logits.
        """
        key, prefix_len = self._find_longest_match(_content_ids(prompt)[:-1])
        if prefix_len < max(MIN_PREFIX_TOKENS, prompt.bidirectional_prefix_len):
            return None
        cached = self._prompts.get(key)
        return None if cached is None else cached.keys_values[:, :, :, :prefix_len]

    def should_store(self, prompt: Prompt, bytes_per_token: int) -> bool:
        """Return whether a prompt is worth storing.

        It must be neither too short nor larger than the budget. A large enough fraction of it must
        be new, because storing it takes memory for all of it.
        """
        num_tokens = len(prompt.token_ids)
        if num_tokens < MIN_PREFIX_TOKENS or num_tokens * bytes_per_token > self._prompts.budget:
            return False
        _, prefix_len = self._find_longest_match(_content_ids(prompt))
        return num_tokens - prefix_len >= max(MIN_PREFIX_TOKENS, int(MIN_NEW_FRACTION * num_tokens))

    def store(self, prompt: Prompt, keys_values: Tensor) -> None:
        """Store a prompt's keys and values (layers, 2, kv heads, tokens, head_dim).

        Does nothing if they exceed the budget.
        """
        if keys_values.nbytes > self._prompts.budget:
            return
        content_ids = _content_ids(prompt)
        key = content_ids.tobytes()
        cached = CachedPrompt(content_ids, keys_values)
        for evicted in self._prompts.put(key, cached, keys_values.nbytes):
            self._remove_from_bucket(evicted)
        self._buckets.setdefault(_bucket_key(key), {})[key] = cached

    def _find_longest_match(self, content_ids: NDArray[np.int64]) -> tuple[Key, int]:
        """Return the key of the prompt with the longest common prefix, and that prefix's length."""
        bucket = self._buckets.get(_bucket_key(content_ids.tobytes()), {})
        matches = (
            (key, _common_prefix_len(content_ids, cached.content_ids))
            for key, cached in bucket.items()
        )
        return max(matches, key=lambda match: match[1], default=(b"", 0))

    def _remove_from_bucket(self, key: Key) -> None:
        bucket = self._buckets[_bucket_key(key)]
        del bucket[key]
        if not bucket:
            del self._buckets[_bucket_key(key)]


def _bucket_key(key: Key) -> BucketKey:
    return key[: 8 * MIN_PREFIX_TOKENS]  # 8 bytes per int64 id


def _content_ids(prompt: Prompt) -> NDArray[np.int64]:
    """Return the prompt's token ids, with image tokens replaced with numbers derived from the
    picture's digest.

    Image tokens are replaced with negative numbers, which can't collide with prompt token ids.
    """
    content_ids = np.array(prompt.token_ids, np.int64)
    for start, picture in zip(prompt.image_starts, prompt.pictures, strict=True):
        digest = int.from_bytes(picture.key[:7], "big")
        content_ids[start : start + picture.num_tokens] = (
            -1 - digest - np.arange(picture.num_tokens)
        )
    return content_ids


def _common_prefix_len(first: NDArray[np.int64], second: NDArray[np.int64]) -> int:
    shorter = min(len(first), len(second))
    differences = np.flatnonzero(first[:shorter] != second[:shorter])
    return int(differences[0]) if len(differences) else shorter
