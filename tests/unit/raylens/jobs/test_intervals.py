from __future__ import annotations

import random
from itertools import pairwise
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylens.jobs.intervals import Evidence, Interval, intervals

_OF = {"y": True, "n": False, "?": None}


def _evidence(text: str) -> list[Evidence]:
    return [_OF[letter] for letter in text]


def _spans(text: str, enter: int = 2, leave: int = 2) -> list[tuple[float, float]]:
    """The intervals of frames at 0, 1, 2 …"""
    found = intervals([float(number) for number in range(len(text))], _evidence(text), enter, leave)
    return [(interval.start, interval.end) for interval in found]


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("", []),
        ("nnnn", []),
        ("????", []),
        ("yyyy", [(0, 3)]),
        ("nnyyynn", [(1.5, 4.5)]),
        ("yynn", [(0, 1.5)]),
        ("nnyy", [(1.5, 3)]),
        ("nyynnyyn", [(0.5, 2.5), (4.5, 7)]),
    ],
)
def test_boundaries_lie_between_frames_or_at_the_edges(text, spans) -> None:
    assert _spans(text) == spans


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("nnynnn", []),
        ("nnyynyynn", [(1.5, 6.5)]),
        ("nnynyynn", [(3.5, 5.5)]),
        ("nyynynn", [(0.5, 4.5)]),
        ("nyyn", [(0.5, 3)]),
    ],
)
def test_one_flickering_frame_neither_begins_nor_ends_an_interval(text, spans) -> None:
    assert _spans(text) == spans


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("n?yy", [(1.5, 3)]),
        ("ny?ynn", [(0.5, 3.5)]),
        ("nyyn?n", [(0.5, 2.5)]),
        ("nyy?nn", [(0.5, 3.5)]),
        ("nyy??", [(0.5, 4)]),
        ("??yy", [(1.5, 3)]),
    ],
)
def test_a_frame_that_does_not_tell_belongs_to_what_stood_before_it(text, spans) -> None:
    assert _spans(text) == spans


def test_enter_and_leave_count_the_frames_that_are_needed() -> None:
    assert _spans("nynyynyyynn", enter=1, leave=1) == [(0.5, 1.5), (2.5, 4.5), (5.5, 8.5)]
    assert _spans("nynyynyyynn", enter=3) == [(5.5, 8.5)]
    assert _spans("nyynnyynnn", enter=2, leave=3) == [(0.5, 6.5)]


def test_all_frames_are_enough_where_there_are_fewer_than_enter() -> None:
    assert _spans("y", enter=5) == [(0, 0)]
    assert _spans("yyy", enter=5) == [(0, 2)]
    assert _spans("yyn", enter=5) == []


def test_times_need_not_be_evenly_spaced() -> None:
    found = intervals([0.0, 10.0, 11.0, 13.0, 20.0], _evidence("nyynn"))
    assert found == [Interval(5.0, 12.0)]


_LENGTHS = st.lists(st.integers(2, 9), min_size=1, max_size=12)
_ANY = st.lists(st.sampled_from([True, False, None]), max_size=60)


@given(_LENGTHS, st.booleans())
def test_clean_runs_come_out_as_they_are(lengths, begins_with_yes) -> None:
    text, spans = "", []
    for number, length in enumerate(lengths):
        is_yes = (number % 2 == 0) is begins_with_yes
        if is_yes:
            spans.append((len(text), len(text) + length))
        text += ("y" if is_yes else "n") * length
    last = len(text) - 1
    assert _spans(text) == [(max(0, a - 0.5), last if b > last else b - 0.5) for a, b in spans]


@given(_ANY, st.integers(1, 5), st.integers(1, 5))
def test_intervals_are_in_order_apart_and_within_the_sequence(evidence, enter, leave) -> None:
    found = intervals([float(number) for number in range(len(evidence))], evidence, enter, leave)
    bounds = [bound for interval in found for bound in (interval.start, interval.end)]
    assert bounds == sorted(bounds)
    assert all(before.end < after.start for before, after in pairwise(found))
    assert all(0 <= bound <= len(evidence) - 1 for bound in bounds)


@given(_ANY, st.integers(1, 5))
def test_a_task_that_is_never_seen_has_no_interval_and_one_that_is_always_seen_has_one(
    evidence, enter
) -> None:
    times = [float(number) for number in range(len(evidence))]
    assert intervals(times, [False if says else says for says in evidence], enter) == []
    always = intervals(times, [True] * len(evidence), enter)
    assert always == ([Interval(0.0, times[-1])] if times else [])


def _overlap(a: tuple[float, float], b: tuple[float, float]) -> float:
    """Intersection over union."""
    common = min(a[1], b[1]) - max(a[0], b[0])
    return max(0.0, common) / (max(a[1], b[1]) - min(a[0], b[0]))


def _disturbed(text: str, chance: random.Random) -> str:
    """Of every 20 frames one says the opposite, or nothing."""
    flipped = {"y": "n", "n": "y"}
    return "".join(
        chance.choice((flipped[letter], "?")) if chance.random() < 0.05 else letter
        for letter in text
    )


def test_intervals_survive_noise_in_one_frame_of_twenty() -> None:
    chance = random.Random(7)
    overlaps = []
    for _ in range(200):
        lengths = [chance.randint(15, 50) for _ in range(7)]
        text = "".join("ny"[number % 2] * length for number, length in enumerate(lengths))
        found = _spans(_disturbed(text, chance))
        overlaps += [
            max((_overlap(true, span) for span in found), default=0.0) for true in _spans(text)
        ]
    assert fmean(overlaps) >= 0.9
