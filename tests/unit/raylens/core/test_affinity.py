"""Questions about one picture go to one replica, within bounds."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from raylens.core.affinity import MAX_SHARE, Affinity, picture_key

REPLICAS = {name: name for name in "abcd"}


@pytest.fixture
def affinity() -> Affinity[str]:
    affinity: Affinity[str] = Affinity()
    affinity.update(REPLICAS)
    return affinity


def route(affinity: Affinity[str], key: str) -> str:
    replica = affinity.choose(key)
    assert replica is not None
    affinity.note(replica)
    return replica


def test_a_picture_stays_with_its_replica(affinity: Affinity[str]) -> None:
    rng = random.Random(0)
    keys = [f"picture {number}" for number in range(300)] * 3
    rng.shuffle(keys)
    seen: set[tuple[str, str]] = set()
    hits = 0
    counts: Counter[str] = Counter()
    for key in keys:
        replica = route(affinity, key)
        counts[replica] += 1
        hits += (key, replica) in seen
        seen.add((key, replica))
    assert hits / len(keys) >= 0.6  # the ceiling is 2/3; at random it would be 0.24
    assert max(counts.values()) <= 1.25 * len(keys) / len(REPLICAS)


def test_a_hot_picture_spills_over(affinity: Affinity[str]) -> None:
    rng = random.Random(1)
    counts: Counter[str] = Counter()
    hot: Counter[str] = Counter()
    for number in range(4000):
        key = "hot" if rng.random() < 0.5 else f"picture {number}"
        replica = route(affinity, key)
        counts[replica] += 1
        hot[replica] += key == "hot"
    assert max(counts.values()) <= 1.25 * 4000 / len(REPLICAS)
    first, second = (count for _, count in hot.most_common(2))
    assert first + second > 0.8 * hot.total()  # it has two homes, not four


def test_without_bounds_a_picture_has_one_home(affinity: Affinity[str]) -> None:
    home = affinity.choose("a", is_bounded=False)
    for _ in range(100):
        assert affinity.choose("a", is_bounded=False) == home
        affinity.note(home or "")
    assert affinity.choose("a") != home


def test_a_replica_that_leaves_takes_only_its_own_pictures_along(affinity: Affinity[str]) -> None:
    keys = [f"picture {number}" for number in range(500)]
    before = {key: affinity.choose(key, is_bounded=False) for key in keys}
    affinity.update({name: name for name in "abc"})
    after = {key: affinity.choose(key, is_bounded=False) for key in keys}
    assert all(after[key] == before[key] for key in keys if before[key] != "d")
    affinity.update(REPLICAS)
    assert {key: affinity.choose(key, is_bounded=False) for key in keys} == before


def test_a_new_replica_is_not_flooded(affinity: Affinity[str]) -> None:
    for number in range(2000):
        route(affinity, f"picture {number}")
    affinity.update({name: name for name in "abcde"})
    counts = Counter(route(affinity, f"new picture {number}") for number in range(200))
    assert 20 <= counts["e"] <= MAX_SHARE * 200 / 5 + 1


def test_nobody_to_choose_from() -> None:
    affinity: Affinity[str] = Affinity()
    assert affinity.choose("a") is None
    affinity.note("a")


def test_files_are_told_apart() -> None:
    long = bytes(10**6)
    files = (b"", b"a", b"b", long, long + b"x", b"x" + long, long[1:])
    assert len(set(map(picture_key, files))) == len(files)
    assert picture_key(long) == picture_key(bytes(10**6))
