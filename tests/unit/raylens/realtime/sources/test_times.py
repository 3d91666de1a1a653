from __future__ import annotations

import pytest

from raylens.realtime.sources.times import Timeline


@pytest.mark.parametrize(
    ("given", "placed"),
    [
        ([5.0, 5.5, 6.25], [0, 0.5, 1.25]),
        ([None, None, None], [0, 0.1, 0.2]),
        ([0.0, None, 0.2, None], [0, 0.1, 0.2, 0.3]),
        ([0.0, 0.1, 0.1, 0.2], [0, 0.1, 0.101, 0.2]),
        ([0.0, 0.1, 0.05, 0.2], [0, 0.1, 0.101, 0.2]),
        ([0.0, 2.0, 0.0, 0.1, 0.2], [0, 2.0, 2.1, 2.2, 2.3]),
        ([0.0, 8.0, 3.9, 8.1, 8.3], [0, 8.0, 8.1, 8.101, 8.3]),
    ],
)
def test_times_increase_from_zero(given: list[float | None], placed: list[float]) -> None:
    timeline = Timeline(0.1)
    assert [timeline.place(time) for time in given] == pytest.approx(placed)
