from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from numpy.typing import NDArray

from raylens.realtime.tracking.matching import FORBIDDEN, assign, intersection_over_union


def cheapest(costs: NDArray[np.float64]) -> float:
    """Return the least sum, by trying everything."""
    if costs.shape[0] > costs.shape[1]:
        return cheapest(costs.T)
    columns = range(costs.shape[1])
    return min(
        sum(float(costs[row, column]) for row, column in enumerate(choice))
        for choice in permutations(columns, costs.shape[0])
    )


@pytest.mark.parametrize("shape", [(1, 1), (3, 3), (2, 6), (6, 2), (5, 5), (4, 6)])
def test_the_sum_of_costs_is_the_least_there_is(shape) -> None:
    rng = np.random.default_rng(shape)
    for _ in range(30):
        costs = rng.random(shape) - 0.2
        pairs = assign(costs)
        rows, columns = zip(*pairs, strict=True)
        assert len(pairs) == min(shape)
        assert len(set(rows)) == len(set(columns)) == len(pairs)
        assert sum(costs[pair] for pair in pairs) == pytest.approx(cheapest(costs))


def test_a_forbidden_pair_is_never_made_and_costs_no_other_pair() -> None:
    costs = np.array([[0.1, 0.2], [0.3, FORBIDDEN]])
    assert assign(costs) == [(0, 1), (1, 0)]
    assert assign(np.full((2, 3), FORBIDDEN)) == []
    assert assign(np.array([[FORBIDDEN, 5.0, FORBIDDEN]])) == [(0, 1)]


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0)])
def test_of_nothing_there_are_no_pairs(shape) -> None:
    assert assign(np.zeros(shape)) == []


def test_overlap_is_the_shared_area_over_the_area_of_both() -> None:
    boxes = np.array([[0, 0, 2, 2], [5, 5, 5, 5]], np.float32)
    others = np.array([[0, 0, 2, 2], [1, 0, 3, 2], [2, 2, 4, 4], [5, 5, 5, 5]], np.float32)
    assert intersection_over_union(boxes, others)[0] == pytest.approx([1, 1 / 3, 0, 0])
    assert intersection_over_union(boxes, others)[1] == pytest.approx([0, 0, 0, 0])
