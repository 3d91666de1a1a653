from __future__ import annotations

import random
from itertools import pairwise
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylens.core.verdict import Verdict
from raylens.jobs.intervals import Interval, find_intervals

VERDICTS = {"y": True, "n": False, "?": None}


def parse(text: str) -> list[Verdict]:
    return [VERDICTS[letter] for letter in text]


def one_per_second(count: int) -> list[float]:
    return [float(number) for number in range(count)]


def find_spans(text: str, enter: int = 2, leave: int = 2) -> list[tuple[float, float]]:
    """Return the intervals of frames at 0, 1, 2 … seconds."""
    result = find_intervals(one_per_second(len(text)), parse(text), enter, leave)
    return [(interval.start, interval.end) for interval in result]


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
def test_boundaries_are_midpoints_or_the_ends_of_the_sequence(text, spans) -> None:
    assert find_spans(text) == spans


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
def test_a_single_wrong_frame_neither_begins_nor_ends_an_interval(text, spans) -> None:
    assert find_spans(text) == spans


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
def test_an_unclear_frame_belongs_with_the_frame_before_it(text, spans) -> None:
    assert find_spans(text) == spans


def test_enter_and_leave_are_the_number_of_frames_that_switch() -> None:
    assert find_spans("nynyynyyynn", enter=1, leave=1) == [(0.5, 1.5), (2.5, 4.5), (5.5, 8.5)]
    assert find_spans("nynyynyyynn", enter=3) == [(5.5, 8.5)]
    assert find_spans("nyynnyynnn", enter=2, leave=3) == [(0.5, 6.5)]


def test_in_a_sequence_shorter_than_enter_all_frames_suffice() -> None:
    assert find_spans("y", enter=5) == [(0, 0)]
    assert find_spans("yyy", enter=5) == [(0, 2)]
    assert find_spans("yyn", enter=5) == []


def test_times_need_not_be_evenly_spaced() -> None:
    result = find_intervals([0.0, 10.0, 11.0, 13.0, 20.0], parse("nyynn"))
    assert result == [Interval(5.0, 12.0)]


_RUN_LENGTHS = st.lists(st.integers(2, 9), min_size=1, max_size=12)
_ANY_VERDICTS = st.lists(st.sampled_from([True, False, None]), max_size=60)


@given(_RUN_LENGTHS, st.booleans())
def test_intervals_equal_the_runs_if_there_are_no_errors(lengths, begins_with_yes) -> None:
    text = ""
    runs = []
    for number, length in enumerate(lengths):
        is_yes = (number % 2 == 0) is begins_with_yes
        if is_yes:
            runs.append((len(text), len(text) + length))
        text += ("y" if is_yes else "n") * length
    last = len(text) - 1
    expected = [(max(0, first - 0.5), last if end > last else end - 0.5) for first, end in runs]
    assert find_spans(text) == expected


@given(_ANY_VERDICTS, st.integers(1, 5), st.integers(1, 5))
def test_intervals_are_ordered_disjoint_and_within_the_sequence(verdicts, enter, leave) -> None:
    result = find_intervals(one_per_second(len(verdicts)), verdicts, enter, leave)
    bounds = [bound for interval in result for bound in (interval.start, interval.end)]
    assert bounds == sorted(bounds)
    assert all(before.end < after.start for before, after in pairwise(result))
    assert all(0 <= bound <= len(verdicts) - 1 for bound in bounds)


@given(_ANY_VERDICTS, st.integers(1, 5))
def test_an_activity_never_shown_has_no_interval_and_one_always_shown_has_one(
    verdicts, enter
) -> None:
    times = one_per_second(len(verdicts))
    never = [False if verdict else verdict for verdict in verdicts]
    assert find_intervals(times, never, enter) == []
    always = find_intervals(times, [True] * len(verdicts), enter)
    assert always == ([Interval(0.0, times[-1])] if times else [])


def intersection_over_union(a: tuple[float, float], b: tuple[float, float]) -> float:
    intersection = min(a[1], b[1]) - max(a[0], b[0])
    return max(0.0, intersection) / (max(a[1], b[1]) - min(a[0], b[0]))


def add_noise(text: str, rng: random.Random) -> str:
    """Replace one frame of twenty by its opposite or by an unclear one."""
    opposites = {"y": "n", "n": "y"}
    return "".join(
        rng.choice((opposites[letter], "?")) if rng.random() < 0.05 else letter for letter in text
    )


def test_intervals_survive_noise_in_one_frame_of_twenty() -> None:
    rng = random.Random(7)
    overlaps = []
    for _ in range(200):
        lengths = [rng.randint(15, 50) for _ in range(7)]
        text = "".join("ny"[number % 2] * length for number, length in enumerate(lengths))
        noisy_spans = find_spans(add_noise(text, rng))
        for true_span in find_spans(text):
            overlap = (intersection_over_union(true_span, span) for span in noisy_spans)
            overlaps.append(max(overlap, default=0.0))
    assert fmean(overlaps) >= 0.9
