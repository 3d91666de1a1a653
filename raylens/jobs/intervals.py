"""Intervals of an activity, from frames that each show it, don't show it, or are unclear.

Pure functions: no I/O, no clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Verdict = bool | None
"""Whether a frame shows the activity; None if unclear."""


@dataclass(frozen=True)
class Interval:
    """A span of time from ``start`` to ``end``, in the unit of the frames' times."""

    start: float
    end: float


def find_intervals(
    times: Sequence[float], verdicts: Sequence[Verdict], enter: int = 2, leave: int = 2
) -> list[Interval]:
    """Return the intervals of the activity, in order.

    An interval begins at the first of ``enter`` consecutive frames that show the activity, and ends
    before the first of ``leave`` consecutive frames that don't. Unclear frames are skipped when
    counting; each belongs with the frame before it. Hysteresis: shorter runs are ignored as noise.

    A boundary is the midpoint between the frames on its two sides. At either end of the sequence,
    it is the time of the first or last frame.

    ``times`` must ascend. If there are fewer than ``enter`` frames, all of them must show the
    activity. A single frame that shows it gives an interval of length 0.
    """
    ranges = _find_ranges(verdicts, min(enter, len(verdicts)), leave)
    return [Interval(_boundary(times, start), _boundary(times, end)) for start, end in ranges]


def _find_ranges(verdicts: Sequence[Verdict], enter: int, leave: int) -> list[tuple[int, int]]:
    """Return each interval as a half-open range of frame indexes."""
    edges: list[int] = []
    run_start = 0
    run_length = 0
    for index, verdict in enumerate(verdicts):
        if verdict is None:
            continue
        is_inside = len(edges) % 2 == 1
        if verdict is is_inside:
            run_length = 0
            continue
        if run_length == 0:
            run_start = index
        run_length += 1
        if run_length == (leave if is_inside else enter):
            edges.append(run_start)
            run_length = 0
    if len(edges) % 2 == 1:
        edges.append(len(verdicts))
    return list(zip(edges[::2], edges[1::2], strict=True))


def _boundary(times: Sequence[float], index: int) -> float:
    """Return the time of the boundary before a frame."""
    if index == 0:
        return times[0]
    if index == len(times):
        return times[-1]
    return (times[index - 1] + times[index]) / 2
