from __future__ import annotations

import pytest
import torch

from raylens.engine.engine import Engine
from raylens.engine.limits import EngineLimits
from raylens.engine.memory_guard import PERIOD_IF_FULL_S, PERIOD_S, MemoryGuard
from tests.unit.raylens.engine.fakes import FakeModel


class Allocator:
    """The memory of an engine: what it uses, and blocks that its allocator keeps."""

    def __init__(self, engine: Engine, kv_bytes: int) -> None:
        self.engine = engine
        self.kv_bytes = kv_bytes
        self.unused = 0
        self.releases = 0
        self.now = 0.0

    def reserved(self) -> int:
        gauges = self.engine.gauges
        return self.kv_bytes + self.unused + gauges.feature_bytes + gauges.prefix_bytes

    def release(self) -> None:
        self.unused = 0
        self.releases += 1


KV_BYTES = 10_000


@pytest.fixture
def engine() -> Engine:
    engine = Engine(FakeModel(), EngineLimits(max_batch_size=2))
    cache = engine._prefill_runner.feature_cache
    for number in range(8):
        cache.put(bytes([number]), torch.zeros(25), 100)
    return engine


@pytest.fixture
def allocator(engine: Engine) -> Allocator:
    return Allocator(engine, KV_BYTES)


def make_guard(allocator: Allocator, available: int) -> MemoryGuard:
    return MemoryGuard(
        available, KV_BYTES, 0.5, allocator.reserved, allocator.release, lambda: allocator.now
    )


def check_later(guard: MemoryGuard, allocator: Allocator) -> None:
    allocator.now += PERIOD_S
    guard.check(allocator.engine)


def test_nothing_is_cleared_below_the_threshold(allocator: Allocator) -> None:
    check_later(make_guard(allocator, 1600), allocator)
    assert (allocator.releases, allocator.engine.gauges.feature_bytes) == (0, 800)


def test_unused_blocks_are_given_back_first(allocator: Allocator) -> None:
    allocator.unused = 500
    check_later(make_guard(allocator, 1600), allocator)
    assert (allocator.releases, allocator.engine.gauges.feature_bytes) == (1, 800)


def test_what_caches_do_not_hold_is_not_looked_for_every_second(allocator: Allocator) -> None:
    guard = make_guard(allocator, -100)
    check_later(guard, allocator)
    releases = allocator.releases
    check_later(guard, allocator)
    assert allocator.releases == releases
    allocator.now += PERIOD_IF_FULL_S
    guard.check(allocator.engine)
    assert allocator.releases > releases


def test_then_the_older_entries_of_the_caches_are_dropped(allocator: Allocator) -> None:
    check_later(make_guard(allocator, 500), allocator)
    assert allocator.engine.gauges.feature_bytes == 200
    cache = allocator.engine._prefill_runner.feature_cache
    left = [number for number in range(8) if cache.get(bytes([number])) is not None]
    assert left == [6, 7]


def test_what_can_not_be_cleared_ends_the_attempt(allocator: Allocator) -> None:
    check_later(make_guard(allocator, 0), allocator)
    allocator.kv_bytes += 1
    check_later(make_guard(allocator, 0), allocator)
    assert allocator.engine.gauges.feature_bytes == 0


def test_checks_are_a_second_apart(allocator: Allocator) -> None:
    guard = make_guard(allocator, 100)
    guard.check(allocator.engine)
    assert allocator.releases == 0
    check_later(guard, allocator)
    assert allocator.releases > 0
