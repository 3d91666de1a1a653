"""Which box of a result is which track."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Costs = NDArray[np.float64]
FORBIDDEN = 1e6
"""The cost of a pair that must not be."""


def assign(costs: Costs) -> list[tuple[int, int]]:
    """Return pairs of a row and a column, each at most once, with the least sum of costs.

    As many pairs as possible that are not forbidden. The Hungarian algorithm with potentials, by
    shortest augmenting paths: O(rows² · columns) (Jonker and Volgenant, 1987).
    """
    if costs.shape[0] > costs.shape[1]:
        return sorted((row, column) for column, row in assign(costs.T))
    row_of = _solve(costs)
    return sorted(
        (int(row), column)
        for column, row in enumerate(row_of)
        if row >= 0 and costs[row, column] < FORBIDDEN
    )


def _solve(costs: Costs) -> NDArray[np.intp]:
    """Return the row of each column, or -1. There are at least as many columns as rows."""
    rows, columns = costs.shape
    # Column 0 of these stands for no column: each row's search begins there.
    padded = np.hstack((np.zeros((rows, 1)), costs))
    row_potentials, column_potentials = np.zeros(rows), np.zeros(columns + 1)
    row_of = np.full(columns + 1, -1)
    for row in range(rows):
        row_of[0] = row
        column = 0
        least = np.full(columns + 1, np.inf)
        previous = np.zeros(columns + 1, np.intp)
        is_used = np.zeros(columns + 1, bool)
        while row_of[column] >= 0:
            is_used[column] = True
            current = row_of[column]
            reduced = padded[current] - row_potentials[current] - column_potentials
            is_better = ~is_used & (reduced < least)
            least[is_better] = reduced[is_better]
            previous[is_better] = column
            next_column = int(np.argmin(np.where(is_used, np.inf, least)))
            delta = least[next_column]
            row_potentials[row_of[is_used]] += delta
            column_potentials[is_used] -= delta
            least[~is_used] -= delta
            column = next_column
        while column:
            row_of[column] = row_of[previous[column]]
            column = int(previous[column])
    return row_of[1:]


def intersection_over_union(boxes: NDArray[np.float32], others: NDArray[np.float32]) -> Costs:
    """Return the IoU of each box (n, 4) with each other (m, 4)."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=2)
    areas = np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=1)
    other_areas = np.clip(others[:, 2:] - others[:, :2], 0, None).prod(axis=1)
    union = areas[:, None] + other_areas[None, :] - shared
    return np.asarray(shared / np.maximum(union, 1e-9), np.float64)
