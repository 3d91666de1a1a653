"""Quantiles and means of histograms."""

from __future__ import annotations

import pytest

from raylens.status.quantiles import mean_of_integers, quantile

BUCKETS = {"+Inf": 10.0, "0.5": 4.0, "1.0": 8.0}
"""Four values up to 0.5, four up to 1, and two beyond, in no order."""


@pytest.mark.parametrize(("q", "value"), [(0.2, 0.25), (0.4, 0.5), (0.6, 0.75), (0.95, 1.0)])
def test_values_lie_evenly_within_their_bucket_and_those_beyond_at_the_last_bound(
    q: float, value: float
) -> None:
    assert quantile(q, BUCKETS) == pytest.approx(value)


def test_a_histogram_that_counted_nothing_has_neither() -> None:
    for buckets in ({}, {"1.0": 0.0, "+Inf": 0.0}):
        assert quantile(0.5, buckets) is None
        assert mean_of_integers(buckets) is None


def test_a_mean_knows_that_the_values_are_integers() -> None:
    assert mean_of_integers({"1.0": 5, "2.0": 5, "+Inf": 5}) == 1
    assert mean_of_integers({"1.0": 2, "2.0": 4, "4.0": 8, "+Inf": 9}) == pytest.approx(
        (2 * 1 + 2 * 2 + 4 * 3.5 + 5) / 9
    )
