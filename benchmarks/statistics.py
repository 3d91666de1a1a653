"""Confidence intervals of shares."""

from __future__ import annotations

from math import sqrt


def wilson_interval(count: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """Return the 95% confidence interval of a share (Wilson 1927)."""
    share = count / total
    middle = share + z * z / (2 * total)
    spread = z * sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return max(0.0, middle - spread) / scale, (middle + spread) / scale
