from __future__ import annotations

import dataclasses

import torch

from raylens.core.lru import ByteLRU
from raylens.engine.model import PictureInput, Prompt
from raylens.engine.prefix_cache import MIN_PREFIX_TOKENS, PrefixCache


def keys_values(tokens: int) -> torch.Tensor:
    """Return (1, 2, 1, tokens, 1): 8 bytes per token."""
    return torch.arange(tokens).float().expand(1, 2, 1, tokens)[..., None].contiguous()


def prompt(*ids: int, picture: tuple[int, bytes, int] | None = None) -> Prompt:
    """``picture``: the index of its first token, its key, and its number of tokens."""
    if picture is None:
        return Prompt(ids)
    index, key, tokens = picture
    return Prompt(ids, (PictureInput(key.ljust(16), tokens, None),), (index,))


def test_the_least_recently_used_entry_is_evicted_first() -> None:
    cache: ByteLRU[str, int] = ByteLRU(10)
    for key in "abc":
        cache.put(key, ord(key), 3)
    assert cache.get("a") == ord("a")
    cache.put("d", 4, 3)
    assert [cache.get(key) for key in "abcd"] == [ord("a"), None, ord("c"), 4]
    assert cache.bytes == 9


def test_a_value_larger_than_the_budget_is_not_stored() -> None:
    cache: ByteLRU[str, int] = ByteLRU(10)
    cache.put("a", 1, 4)
    cache.put("b", 2, 11)
    assert cache.get("a") == 1
    assert cache.get("b") is None


def test_a_value_that_is_replaced_counts_once() -> None:
    cache: ByteLRU[str, int] = ByteLRU(10)
    for size in (4, 6, 5):
        cache.put("a", size, size)
    assert (cache.get("a"), cache.bytes) == (5, 5)


def test_the_longest_common_prefix_is_found() -> None:
    cache = PrefixCache(10**6)
    cache.store(prompt(*range(40)), keys_values(40))
    cache.store(prompt(*range(30), 99, 98, 97), keys_values(33))
    prefix = cache.find(prompt(*range(30), 99, 98, 5, 6))
    assert prefix is not None
    assert prefix.shape[3] == 32


def test_the_last_token_is_always_prefilled() -> None:
    cache = PrefixCache(10**6)
    cache.store(prompt(*range(40)), keys_values(40))
    prefix = cache.find(prompt(*range(40)))
    assert prefix is not None
    assert prefix.shape[3] == 39


def test_a_short_prefix_is_neither_found_nor_stored() -> None:
    cache = PrefixCache(10**6)
    cache.store(prompt(*range(40)), keys_values(40))
    assert cache.find(prompt(*range(MIN_PREFIX_TOKENS - 1), 99, 98)) is None
    assert not cache.should_store(prompt(*range(MIN_PREFIX_TOKENS - 1)), 8)


def test_a_different_picture_at_the_same_index_ends_the_common_prefix() -> None:
    cache = PrefixCache(10**6)
    ids = [1] * 20 + [7] * 20 + [2] * 5
    cache.store(prompt(*ids, picture=(20, b"cat", 20)), keys_values(45))
    same = cache.find(prompt(*ids, 3, picture=(20, b"cat", 20)))
    different = cache.find(prompt(*ids, 3, picture=(20, b"dog", 20)))
    assert same is not None
    assert different is not None
    assert (same.shape[3], different.shape[3]) == (45, 20)


def test_a_prompt_is_worth_storing_if_it_is_new_and_fits() -> None:
    cache = PrefixCache(400)
    assert cache.should_store(prompt(*range(40)), 8)
    assert not cache.should_store(prompt(*range(60)), 8)
    cache.store(prompt(*range(40)), keys_values(40))
    assert not cache.should_store(prompt(*range(40)), 8)
    assert cache.bytes == 320


def test_a_bidirectional_prefix_is_reused_as_a_whole_or_not_at_all() -> None:
    cache = PrefixCache(10**6)
    cache.store(prompt(*range(40)), keys_values(40))
    bidirectional = Prompt((*range(30), *range(50, 60)), bidirectional_prefix_len=30)
    assert cache.find(bidirectional) is not None
    assert cache.find(dataclasses.replace(bidirectional, bidirectional_prefix_len=31)) is None


def test_a_prompt_that_adds_little_to_a_cached_one_is_not_worth_storing() -> None:
    cache = PrefixCache(10**6)
    cache.store(prompt(*range(400)), keys_values(400))
    assert not cache.should_store(prompt(*range(400), *range(1000, 1049)), 8)
    assert cache.should_store(prompt(*range(400), *range(1000, 1060)), 8)


def test_a_prompt_larger_than_the_budget_does_not_hide_a_cached_one() -> None:
    cache = PrefixCache(200)
    cache.store(prompt(*range(40)), keys_values(40))
    cache.store(prompt(*range(20)), keys_values(20))
    prefix = cache.find(prompt(*range(45)))
    assert prefix is not None
    assert prefix.shape[3] == 20
    assert cache.bytes == 160


def test_an_evicted_prompt_is_not_found() -> None:
    cache = PrefixCache(700)
    for first in (0, 100, 200):
        cache.store(prompt(*range(first, first + 40)), keys_values(40))
    prefixes = [cache.find(prompt(*range(first, first + 45))) for first in (0, 100, 200)]
    assert [prefix is not None for prefix in prefixes] == [False, True, True]
    assert cache.bytes == 640
    cache.clear()
    assert cache.find(prompt(*range(200, 245))) is None
