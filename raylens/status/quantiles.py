"""Quantiles and means of histograms."""

from __future__ import annotations

import math
from collections.abc import Mapping


def quantile(q: float, buckets: Mapping[str, float]) -> float | None:
    """Return the ``q``-quantile of a histogram; None if it has counted nothing.

    ``buckets`` has for each upper bound, as Prometheus writes it in the label ``le``, how many
    values were at or below it. Values are taken to lie evenly within their bucket, and those beyond
    the last bound at it, as in Prometheus's ``histogram_quantile``.
    """
    ordered = sorted((float(bound), count) for bound, count in buckets.items())
    if not ordered or ordered[-1][1] <= 0:
        return None
    rank = q * ordered[-1][1]
    lower, below = 0.0, 0.0
    for bound, count in ordered:
        if count >= rank and count > below and not math.isinf(bound):
            return lower + (bound - lower) * (rank - below) / (count - below)
        if not math.isinf(bound):
            lower, below = bound, count
    return lower


def mean_of_integers(buckets: Mapping[str, float]) -> float | None:
    """Return the mean of a histogram of positive integers; None if it has counted nothing.

    Ray's own sum takes each value for the middle of its bucket, such as 0.5 for the only integer
    between 0 and 1. Here the middle is that of the bucket's integers.
    """
    ordered = sorted((float(bound), count) for bound, count in buckets.items())
    total, lower, below = 0.0, 0.0, 0.0
    for bound, count in ordered:
        middle = lower + 1 if math.isinf(bound) else (lower + 1 + bound) / 2
        total += middle * (count - below)
        lower, below = bound, count
    return total / below if below else None
