"""When something goes on, from pictures of which each says yes, no or nothing. Pure: no IO, and no
clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Evidence = bool | None
"""Whether it goes on in a frame; None: the frame doesn't tell."""


@dataclass(frozen=True)
class Interval:
    """From ``start`` to ``end``, in the frames' unit of time."""

    start: float
    end: float


def intervals(
    times: Sequence[float], evidence: Sequence[Evidence], enter: int = 2, leave: int = 2
) -> list[Interval]:
    """The intervals of yes, in order, smoothed by hysteresis: a frame that flickers neither begins
    nor ends one.

    An interval begins once ``enter`` frames have said yes without a no between them, and ends once
    ``leave`` frames have said no without a yes between them; either is dated back to the first of
    those frames. Frames that don't tell neither count nor break, and belong to what stood before
    them. A boundary lies in the middle between the frames on its two sides; at the edges of the
    sequence it is the first or the last frame's own time.

    ``times`` ascend. Where there are fewer frames than ``enter``, all of them are enough: a
    sequence of one yes is an interval of no length.
    """
    spans = _spans(evidence, min(enter, len(evidence)), leave)
    return [Interval(_boundary(times, first), _boundary(times, after)) for first, after in spans]


def _spans(evidence: Sequence[Evidence], enter: int, leave: int) -> list[tuple[int, int]]:
    """Each interval's first frame, and the first frame after it."""
    turns: list[int] = []
    first = count = 0
    for number, says in enumerate(evidence):
        is_inside = len(turns) % 2 == 1
        if says is None:
            continue
        if says is is_inside:
            count = 0
            continue
        first = number if count == 0 else first
        count += 1
        if count == (leave if is_inside else enter):
            turns.append(first)
            count = 0
    if len(turns) % 2 == 1:
        turns.append(len(evidence))
    return list(zip(turns[::2], turns[1::2], strict=True))


def _boundary(times: Sequence[float], number: int) -> float:
    """The time before frame ``number``; the edge's where there is no frame on one side."""
    if number == 0:
        return times[0]
    if number == len(times):
        return times[-1]
    return (times[number - 1] + times[number]) / 2
