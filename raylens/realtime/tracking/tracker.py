"""Boxes and points that follow the picture, and keep their numbers.

A model sees one frame of several, and its result is old when it arrives. The tracker carries the
result to the newest frame, and follows the picture until the next one.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from itertools import pairwise

from raylens.core.types import Location, Region
from raylens.realtime.tracking.flow import Pixels
from raylens.realtime.tracking.frames import FrameRing, SmallFrame, shrink
from raylens.realtime.tracking.matching import assign
from raylens.realtime.tracking.steps import Ground, find_contended, find_rivals, step
from raylens.realtime.tracking.track import Track, matching_costs, read_result, scale_of

DEFAULT_MEMORY = 90
"""Number of frames that are kept: 3 s at 30 frames a second, 9 MB."""
_MAX_STEP = 4
"""Most frames that a result is carried at once."""
_MAX_HIDDEN = 50
"""Most objects that are remembered without being shown."""


@dataclass(frozen=True)
class Shown:
    """What is shown on the newest frame, with the numbers of the objects."""

    regions: tuple[Region, ...] = ()
    region_numbers: tuple[int, ...] = ()
    locations: tuple[Location, ...] = ()
    location_numbers: tuple[int, ...] = ()


class Tracker:
    """Follows the objects of one session. Not thread-safe.

    ``memory`` is the number of frames that are kept, and so the largest age of a result that can be
    carried to the newest frame. An older one is shown where it was.
    """

    def __init__(self, memory: int = DEFAULT_MEMORY) -> None:
        self._ring = FrameRing(memory)
        self._memory = memory
        self._ground = Ground()
        self._tracks: list[Track] = []
        self._next_number = 1
        self._last_observed: int | None = None

    def add(self, frame_id: int, pixels: Pixels) -> None:
        """Take the newest frame, RGB (H, W, 3), and move what is shown to it.

        Raises ``ValueError`` if its id is not larger than the last one's.
        """
        before = self._ring.newest
        if before is not None and frame_id <= before.id:
            raise ValueError(f"frame {frame_id} comes after frame {before.id}")
        frame = shrink(frame_id, pixels)
        self._ring.append(frame)
        if before is None or not self._tracks:
            return
        patches = [track.patch for track in self._tracks]
        step(patches, [track.is_shown for track in self._tracks], self._ground, before, frame)
        self._ground.refresh(frame.gray, patches)
        for track in self._tracks:
            track.record(frame)
            while len(track.trail) > self._memory:
                track.trail.popleft()
        self._tracks = [track for track in self._tracks if not track.has_left(frame)]

    def observe(
        self, frame_id: int, regions: Sequence[Region], locations: Sequence[Location]
    ) -> list[int]:
        """Take the result for a frame, and show it at the newest one.

        Returns the numbers of the regions, and then of the locations. A result for an older frame
        than the last result is ignored, and gets none. Raises ``ValueError`` if no frame was added,
        or if none so new was.
        """
        newest = self._ring.newest
        if newest is None or frame_id > newest.id:
            raise ValueError(f"frame {frame_id} was not added")
        if self._last_observed is not None and frame_id <= self._last_observed:
            return []
        self._last_observed = frame_id
        frames = self._ring.since(frame_id) or [newest]
        found = read_result(frames[0], regions, locations)
        matches = assign(matching_costs(found, self._tracks, frame_id, frames[0]))
        track_of = {row: self._tracks[column] for row, column in matches}
        for row, track in track_of.items():
            found[row].patch.inherit(track.patch)
        matched = {id(track) for track in track_of.values()}
        others = [track for track in self._tracks if id(track) not in matched]
        self._carry(found, frames, others)
        for track in self._tracks:
            track.missed += 1
        for row, candidate in enumerate(found):
            if row in track_of:
                track_of[row].continue_as(candidate)
            else:
                self._begin(candidate)
        numbers = [track_of.get(row, candidate).number for row, candidate in enumerate(found)]
        self._tracks = [
            track
            for track in self._tracks
            if not track.has_left(newest) and not track.is_forgotten(frame_id)
        ]
        self._bound_hidden()
        return numbers

    def _carry(
        self, found: Sequence[Track], frames: Sequence[SmallFrame], others: Sequence[Track]
    ) -> None:
        """Move objects from the first frame to the last one."""
        if not found:
            return
        patches = [track.patch for track in found]
        visible = [True] * len(found)
        all_rivals = find_rivals(patches, visible)
        ghosts = [track.box_at(frames[0].id) * scale_of(frames[0]) for track in others]
        contended = find_contended(patches, visible, all_rivals, ghosts)
        for patch, rivals, is_contended in zip(patches, all_rivals, contended, strict=True):
            patch.look(frames[0].gray, rivals, is_contended)
        self._ground.look(frames[0].gray, patches)
        stops = [*range(0, len(frames) - 1, _MAX_STEP), len(frames) - 1]
        for start, end in pairwise(stops):
            self._carry_part(found, frames[start : end + 1], others)

    def _carry_part(
        self, found: Sequence[Track], frames: Sequence[SmallFrame], others: Sequence[Track]
    ) -> None:
        """Move objects from the first frame to the last one, by way of others if need be."""
        saved = [track.patch.copy() for track in found], copy(self._ground)
        had_features = [track.patch.has_features for track in found]
        visible = [True] * len(found)
        patches = [track.patch for track in found]
        scale = scale_of(frames[-1])
        ghosts = [track.box_at(frames[-1].id) * scale for track in others]
        is_found = step(patches, visible, self._ground, frames[0], frames[-1], ghosts)
        has_failed = any(
            could_be and not is_it for could_be, is_it in zip(had_features, is_found, strict=True)
        )
        if has_failed and len(frames) > 2:
            patches, self._ground = saved
            for track, patch in zip(found, patches, strict=True):
                track.patch = patch
            middle = len(frames) // 2
            self._carry_part(found, frames[: middle + 1], others)
            self._carry_part(found, frames[middle:], others)
            return
        for track in found:
            track.record(frames[-1])

    def _begin(self, track: Track) -> None:
        track.number = self._next_number
        self._next_number += 1
        self._tracks.append(track)

    def _bound_hidden(self) -> None:
        """Forget those that were missed first, if there are too many."""
        hidden = sorted(
            (track for track in self._tracks if not track.is_shown), key=lambda track: track.missed
        )
        forgotten = {track.number for track in hidden[_MAX_HIDDEN:]}
        self._tracks = [track for track in self._tracks if track.number not in forgotten]

    def shown(self) -> Shown:
        """Return what is shown on the newest frame, clipped to the picture."""
        tracks = sorted(
            (track for track in self._tracks if track.is_shown), key=lambda track: track.number
        )
        boxes = [track for track in tracks if not track.patch.is_point]
        points = [track for track in tracks if track.patch.is_point]
        return Shown(
            tuple(track.region for track in boxes),
            tuple(track.number for track in boxes),
            tuple(track.location for track in points),
            tuple(track.number for track in points),
        )

    def reset(self) -> None:
        """Forget all objects, because the question has changed. Numbers begin at 1 again.

        A result that is on its way still belongs to the old question: don't observe it.
        """
        self._tracks = []
        self._next_number = 1
