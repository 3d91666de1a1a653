"""Intervals of an activity, from frames that each show it, don't show it, or are unclear.

Pure functions: no I/O, no clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raylens.core.hysteresis import Hysteresis
from raylens.core.verdict import Verdict


@dataclass(frozen=True)
class Interval:
    """A span of time from ``start`` to ``end``, in the unit of the frames' times."""

    start: float
    end: float


def find_intervals(
    times: Sequence[float], verdicts: Sequence[Verdict], enter: int = 2, leave: int = 2
) -> list[Interval]:
    """Return the intervals of the activity, in order.

    :class:`raylens.core.hysteresis.Hysteresis` says where they begin and end. ``times`` must
    ascend. A single frame that shows the activity gives an interval of length 0.
    """
    hysteresis = Hysteresis[None](enter, leave)
    bounds: list[float] = []
    for time, verdict in zip(times, verdicts, strict=True):
        bounds.extend(transition.time for transition in hysteresis.add(time, verdict, None))
    bounds.extend(transition.time for transition in hysteresis.finish())
    return [Interval(start, end) for start, end in zip(bounds[::2], bounds[1::2], strict=True)]
