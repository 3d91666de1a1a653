from __future__ import annotations

import random

import pytest
import torch

from raylens.engine.kv_cache import SMALLEST, KVCache
from raylens.engine.model import KVShape

SHAPE = KVShape(layers=2, heads=3, head_dim=4, dtype=torch.float32, device="cpu")
TOKEN = 2 * 2 * 3 * 4 * 4
ROW = SMALLEST * TOKEN


def fill(cache: KVCache[str], name: str, value: float, tokens: int) -> None:
    row = cache.row(name)
    for number, layer in enumerate(row.layers):
        layer[0, 0, :, :tokens] = value + number
        layer[1, 0, :, :tokens] = -value - number
    cache.advance(name, tokens)


def holds(cache: KVCache[str], name: str, value: float, tokens: int) -> bool:
    row = cache.row(name)
    return row.lengths == [tokens] and all(
        bool(
            (layer[0, 0, :, :tokens] == value + number).all()
            and (layer[1, 0, :, :tokens] == -value - number).all()
        )
        for number, layer in enumerate(row.layers)
    )


def test_a_token_costs_its_keys_and_values_in_every_layer() -> None:
    assert SHAPE.bytes_per_token == TOKEN
    cache: KVCache[str] = KVCache(SHAPE, 10 * ROW, 8)
    assert [cache.cost(tokens) for tokens in (1, SMALLEST, SMALLEST + 1, 1000)] == [
        ROW,
        ROW,
        2 * ROW,
        8 * ROW,
    ]


def test_rows_keep_what_they_hold_while_others_come_and_go() -> None:
    rng = random.Random(3)
    cache: KVCache[str] = KVCache(SHAPE, 40 * ROW, 16)
    held: dict[str, tuple[float, int]] = {}
    for number in range(300):
        if held and rng.random() < 0.45:
            gone = rng.choice(list(held))
            cache.release(gone)
            del held[gone]
        else:
            name, tokens = f"s{number}", rng.choice((5, 100, 200, 300, 900))
            if cache.reserve(name, tokens):
                fill(cache, name, number, tokens)
                held[name] = number, tokens
        assert cache.used_bytes == sum(cache.cost(tokens) for _, tokens in held.values())
        assert cache.allocated_bytes <= cache.budget
        assert all(holds(cache, name, *what) for name, what in held.items())
    assert {name for names, _ in cache.groups() for name in names} == set(held)


def test_rows_of_one_capacity_stand_together() -> None:
    cache: KVCache[str] = KVCache(SHAPE, 100 * ROW, 8)
    for name, tokens in (("a", 10), ("b", 200), ("c", 20), ("d", 210)):
        assert cache.reserve(name, tokens)
        fill(cache, name, 1, 3)
    groups = {tuple(names): rows for names, rows in cache.groups()}
    assert set(groups) == {("a", "c"), ("b", "d")}
    assert [tuple(rows.layers[0].shape) for rows in groups.values()] == [
        (2, 2, 3, 128, 4),
        (2, 2, 3, 256, 4),
    ]


def test_the_budget_holds_and_unused_rows_of_others_are_given_up() -> None:
    cache: KVCache[str] = KVCache(SHAPE, 4 * ROW, 8)
    assert all(cache.reserve(name, 10) for name in "abcd")
    assert not cache.reserve("e", 10)
    for name in "bcd":
        cache.release(name)
    assert cache.reserve("long", 2 * SMALLEST)
    assert cache.allocated_bytes <= cache.budget
    assert not cache.reserve("f", 2 * SMALLEST)
    assert cache.reserve("g", 10)


def test_what_was_read_can_be_written_elsewhere() -> None:
    cache: KVCache[str] = KVCache(SHAPE, 40 * ROW, 8)
    cache.reserve("first", 300)
    fill(cache, "first", 7, 290)
    kept = cache.read("first", 250)
    cache.release("first")
    assert kept.shape == (2, 2, 3, 250, 4)
    cache.reserve("second", 128)
    cache.write("second", kept[:, :, :, :100])
    assert holds(cache, "second", 7, 100)


def test_fresh_rows_hold_nothing_that_could_spoil_a_sum() -> None:
    cache: KVCache[str] = KVCache(SHAPE, 40 * ROW, 8)
    cache.reserve("a", 100)
    assert all(bool(torch.isfinite(layer).all()) for layer in cache.row("a").layers)


def test_releasing_what_holds_no_row_does_nothing() -> None:
    cache: KVCache[str] = KVCache(SHAPE, ROW, 8)
    cache.release("nobody")
    assert cache.used_bytes == 0


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_an_arena_never_has_more_rows_than_may_run(rows: int) -> None:
    cache: KVCache[str] = KVCache(SHAPE, 1000 * ROW, rows)
    for number in range(rows):
        assert cache.reserve(str(number), 10)
    assert cache.allocated_bytes == rows * ROW
