from __future__ import annotations

import random

import pytest
import torch

from raylens.engine.kv_cache import MIN_CAPACITY, KVCache
from raylens.engine.model import KVSpec

SHAPE = KVSpec(num_layers=2, num_kv_heads=3, head_dim=4, dtype=torch.float32, device="cpu")
TOKEN_BYTES = 2 * 2 * 3 * 4 * 4
ROW_BYTES = MIN_CAPACITY * TOKEN_BYTES


def fill(cache: KVCache[str], owner: str, value: float, tokens: int) -> None:
    for index, layer in enumerate(cache.row_of(owner).layer_kv):
        layer[0, 0, :, :tokens] = value + index
        layer[1, 0, :, :tokens] = -value - index
    cache.advance(owner, tokens)


def contains(cache: KVCache[str], owner: str, value: float, tokens: int) -> bool:
    """Return whether the row contains what ``fill`` has written."""
    row = cache.row_of(owner)
    return row.lengths == [tokens] and all(
        bool(
            (layer[0, 0, :, :tokens] == value + index).all()
            and (layer[1, 0, :, :tokens] == -value - index).all()
        )
        for index, layer in enumerate(row.layer_kv)
    )


def test_a_token_costs_its_keys_and_values_in_every_layer() -> None:
    assert SHAPE.bytes_per_token == TOKEN_BYTES
    cache: KVCache[str] = KVCache(SHAPE, 10 * ROW_BYTES, 8)
    costs = [cache.cost(tokens) for tokens in (1, MIN_CAPACITY, MIN_CAPACITY + 1, 1000)]
    assert costs == [ROW_BYTES, ROW_BYTES, 2 * ROW_BYTES, 8 * ROW_BYTES]


def test_rows_keep_their_content_while_others_come_and_go() -> None:
    rng = random.Random(3)
    cache: KVCache[str] = KVCache(SHAPE, 40 * ROW_BYTES, 16)
    expected: dict[str, tuple[float, int]] = {}
    for number in range(300):
        if expected and rng.random() < 0.45:
            released = rng.choice(list(expected))
            cache.release_row(released)
            del expected[released]
        else:
            owner = f"s{number}"
            tokens = rng.choice((5, 100, 200, 300, 900))
            if cache.reserve(owner, tokens):
                fill(cache, owner, number, tokens)
                expected[owner] = number, tokens
        assert cache.used_bytes == sum(cache.cost(tokens) for _, tokens in expected.values())
        assert cache.allocated_bytes <= cache.budget
        assert all(contains(cache, owner, *content) for owner, content in expected.items())
    assert {owner for owners, _ in cache.arenas_in_use() for owner in owners} == set(expected)


def test_rows_of_one_capacity_share_an_arena() -> None:
    cache: KVCache[str] = KVCache(SHAPE, 100 * ROW_BYTES, 8)
    for owner, tokens in (("a", 10), ("b", 200), ("c", 20), ("d", 210)):
        assert cache.reserve(owner, tokens)
        fill(cache, owner, 1, 3)
    arenas = {tuple(owners): kv_rows for owners, kv_rows in cache.arenas_in_use()}
    assert set(arenas) == {("a", "c"), ("b", "d")}
    assert [tuple(kv_rows.layer_kv[0].shape) for kv_rows in arenas.values()] == [
        (2, 2, 3, 128, 4),
        (2, 2, 3, 256, 4),
    ]


def test_the_budget_is_kept_and_other_arenas_give_up_unused_rows() -> None:
    cache: KVCache[str] = KVCache(SHAPE, 4 * ROW_BYTES, 8)
    assert all(cache.reserve(owner, 10) for owner in "abcd")
    assert not cache.reserve("e", 10)
    for owner in "bcd":
        cache.release_row(owner)
    assert cache.reserve("long", 2 * MIN_CAPACITY)
    assert cache.allocated_bytes <= cache.budget
    assert not cache.reserve("f", 2 * MIN_CAPACITY)
    assert cache.reserve("g", 10)


def test_a_prefix_can_be_copied_from_one_row_to_another() -> None:
    cache: KVCache[str] = KVCache(SHAPE, 40 * ROW_BYTES, 8)
    cache.reserve("first", 300)
    fill(cache, "first", 7, 290)
    prefix = cache.copy_prefix("first", 250)
    cache.release_row("first")
    assert prefix.shape == (2, 2, 3, 250, 4)
    cache.reserve("second", 128)
    cache.load_prefix("second", prefix[:, :, :, :100])
    assert contains(cache, "second", 7, 100)


def test_new_rows_are_finite() -> None:
    cache: KVCache[str] = KVCache(SHAPE, 40 * ROW_BYTES, 8)
    cache.reserve("a", 100)
    assert all(bool(torch.isfinite(layer).all()) for layer in cache.row_of("a").layer_kv)


def test_releasing_an_owner_without_a_row_does_nothing() -> None:
    cache: KVCache[str] = KVCache(SHAPE, ROW_BYTES, 8)
    cache.release_row("unknown")
    assert cache.used_bytes == 0


@pytest.mark.parametrize("num_rows", [1, 3, 8])
def test_an_arena_never_allocates_more_than_max_rows(num_rows: int) -> None:
    cache: KVCache[str] = KVCache(SHAPE, 1000 * ROW_BYTES, num_rows)
    for number in range(num_rows):
        assert cache.reserve(str(number), 10)
    assert cache.allocated_bytes == num_rows * ROW_BYTES
