"""The objects of a result, which follow the picture until there is a newer one."""

from __future__ import annotations

from dataclasses import replace

from raylens.realtime.frames import Frame
from raylens.realtime.pipeline import FrameResult
from raylens.realtime.tracking.tracker import Tracker


class FollowedObjects:
    """Numbers the objects of results, and moves them with the picture. Not thread-safe."""

    def __init__(self) -> None:
        self._tracker = Tracker()

    def add(self, frame: Frame) -> None:
        """Take the newest frame."""
        self._tracker.add(frame.id, frame.pixels)

    def observe(self, frame: Frame, result: FrameResult) -> FrameResult:
        """Take a frame's result, and return it with the numbers of its objects."""
        numbers = self._tracker.observe(frame.id, result.regions, result.locations)
        count = len(result.regions)
        return replace(
            result, region_numbers=tuple(numbers[:count]), location_numbers=tuple(numbers[count:])
        )

    def move(self, result: FrameResult) -> FrameResult:
        """Return the last result with its objects where they are on the newest frame."""
        shown = self._tracker.shown()
        return replace(
            result,
            regions=shown.regions,
            region_numbers=shown.region_numbers,
            locations=shown.locations,
            location_numbers=shown.location_numbers,
        )
