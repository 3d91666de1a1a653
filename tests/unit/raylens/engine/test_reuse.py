from __future__ import annotations

import dataclasses

import torch

from raylens.engine.model import PictureInput, Prompt
from raylens.engine.reuse import SHORTEST_PREFIX, ByteLRU, PrefixCache


def kept(tokens: int) -> torch.Tensor:
    return torch.arange(tokens).float().expand(1, 2, 1, tokens)[..., None].contiguous()


def prompt(*ids: int, picture: tuple[int, bytes, int] | None = None) -> Prompt:
    if picture is None:
        return Prompt(ids)
    at, key, tokens = picture
    return Prompt(ids, (PictureInput(key.ljust(16), tokens, None),), (at,))


def test_the_oldest_goes_first_and_a_look_makes_young() -> None:
    cache: ByteLRU[str, int] = ByteLRU(10)
    for key in "abc":
        cache.put(key, ord(key), 3)
    assert cache.get("a") == ord("a")
    cache.put("d", 4, 3)
    assert [cache.get(key) for key in "abcd"] == [ord("a"), None, ord("c"), 4]
    assert cache.bytes == 9


def test_what_is_larger_than_everything_is_not_kept() -> None:
    cache: ByteLRU[str, int] = ByteLRU(10)
    cache.put("a", 1, 4)
    cache.put("b", 2, 11)
    assert cache.get("a") == 1
    assert cache.get("b") is None


def test_a_value_that_is_put_again_counts_once() -> None:
    cache: ByteLRU[str, int] = ByteLRU(10)
    for size in (4, 6, 5):
        cache.put("a", size, size)
    assert (cache.get("a"), cache.bytes) == (5, 5)


def test_the_longest_common_beginning_is_found() -> None:
    cache = PrefixCache(10**6)
    cache.keep(prompt(*range(40)), kept(40))
    cache.keep(prompt(*range(30), 99, 98, 97), kept(33))
    found = cache.find(prompt(*range(30), 99, 98, 5, 6))
    assert found is not None
    assert found.shape[3] == 32


def test_the_last_token_is_always_read_again() -> None:
    cache = PrefixCache(10**6)
    cache.keep(prompt(*range(40)), kept(40))
    found = cache.find(prompt(*range(40)))
    assert found is not None
    assert found.shape[3] == 39


def test_a_short_beginning_is_not_worth_it() -> None:
    cache = PrefixCache(10**6)
    cache.keep(prompt(*range(40)), kept(40))
    assert cache.find(prompt(*range(SHORTEST_PREFIX - 1), 99, 98)) is None
    assert not cache.wants(prompt(*range(SHORTEST_PREFIX - 1)), 8)


def test_another_picture_in_the_same_place_is_another_beginning() -> None:
    cache = PrefixCache(10**6)
    ids = [1] * 20 + [7] * 20 + [2] * 5
    cache.keep(prompt(*ids, picture=(20, b"cat", 20)), kept(45))
    same = cache.find(prompt(*ids, 3, picture=(20, b"cat", 20)))
    other = cache.find(prompt(*ids, 3, picture=(20, b"dog", 20)))
    assert same is not None
    assert other is not None
    assert (same.shape[3], other.shape[3]) == (45, 20)


def test_it_wants_what_it_has_not_and_what_fits() -> None:
    cache = PrefixCache(400)
    assert cache.wants(prompt(*range(40)), 8)
    assert not cache.wants(prompt(*range(60)), 8)
    cache.keep(prompt(*range(40)), kept(40))
    assert not cache.wants(prompt(*range(40)), 8)
    assert cache.bytes == 320


def test_tokens_that_see_each_other_are_known_together_or_not_at_all() -> None:
    cache = PrefixCache(10**6)
    cache.keep(prompt(*range(40)), kept(40))
    beginning = Prompt((*range(30), *range(50, 60)), bidirectional_prefix_len=30)
    assert cache.find(beginning) is not None
    assert cache.find(dataclasses.replace(beginning, bidirectional_prefix_len=31)) is None


def test_what_adds_little_to_a_known_prompt_is_not_kept() -> None:
    cache = PrefixCache(10**6)
    cache.keep(prompt(*range(400)), kept(400))
    assert not cache.wants(prompt(*range(400), *range(1000, 1049)), 8)
    assert cache.wants(prompt(*range(400), *range(1000, 1060)), 8)


def test_a_prompt_that_had_to_go_is_not_found() -> None:
    cache = PrefixCache(700)
    for first in (0, 100, 200):
        cache.keep(prompt(*range(first, first + 40)), kept(40))
    found = [cache.find(prompt(*range(first, first + 45))) is not None for first in (0, 100, 200)]
    assert found == [False, True, True]
    assert cache.bytes == 640
    cache.clear()
    assert cache.find(prompt(*range(200, 245))) is None
