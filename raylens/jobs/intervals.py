"""Intervals of an activity, from frames that each show it, don't show it, or are unclear.

Pure functions: no I/O, no clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Evidence = bool | None
"""Whether a frame shows the activity; None if it is unclear."""


@dataclass(frozen=True)
class Interval:
    """A span of time from ``start`` to ``end``, in the unit of the frames' times."""

    start: float
    end: float


def intervals(
    times: Sequence[float], evidence: Sequence[Evidence], enter: int = 2, leave: int = 2
) -> list[Interval]:
    """Return the intervals of the activity, in order.

    Hysteresis ignores single wrong frames. An interval begins at the first of ``enter`` frames that
    show the activity, with none between them that doesn't show it. It ends at the first of
    ``leave`` frames that don't show it, with none between them that does. An unclear frame is not
    counted, and belongs to the same span as the frame before it.

    A boundary is the midpoint between the frames on its two sides. At either end of the sequence,
    it is the time of the first or last frame.

    ``times`` must ascend. In a sequence of fewer than ``enter`` frames, an interval needs all of
    them: one frame that shows the activity is an interval of length 0.
    """
    spans = _find_spans(evidence, min(enter, len(evidence)), leave)
    return [Interval(_boundary(times, first), _boundary(times, end)) for first, end in spans]


def _find_spans(evidence: Sequence[Evidence], enter: int, leave: int) -> list[tuple[int, int]]:
    """Return the first frame of each interval, and the first frame after it."""
    switches: list[int] = []
    first_opposite = 0
    opposites = 0
    for frame, is_active in enumerate(evidence):
        if is_active is None:
            continue
        is_inside = len(switches) % 2 == 1
        if is_active is is_inside:
            opposites = 0
            continue
        if opposites == 0:
            first_opposite = frame
        opposites += 1
        if opposites == (leave if is_inside else enter):
            switches.append(first_opposite)
            opposites = 0
    if len(switches) % 2 == 1:
        switches.append(len(evidence))
    return list(zip(switches[::2], switches[1::2], strict=True))


def _boundary(times: Sequence[float], frame: int) -> float:
    """Return the time of the boundary before a frame."""
    if frame == 0:
        return times[0]
    if frame == len(times):
        return times[-1]
    return (times[frame - 1] + times[frame]) / 2
