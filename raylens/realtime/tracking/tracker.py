"""Boxes and points that follow the picture, and keep their numbers.

A model sees one frame of several, and its result is old when it arrives. The tracker carries the
result to the newest frame, and follows the picture until the next one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from raylens.core.types import Location, Region
from raylens.realtime.tracking.flow import Pixels
from raylens.realtime.tracking.frames import FrameRing, SmallFrame, shrink
from raylens.realtime.tracking.matching import (
    FORBIDDEN,
    Costs,
    assign,
    intersection_over_union,
)
from raylens.realtime.tracking.motion import Floats
from raylens.realtime.tracking.patch import Patch
from raylens.realtime.tracking.steps import Ground, find_contended, find_rivals, step

DEFAULT_MEMORY = 90
"""Number of frames that are kept: 3 s at 30 frames a second, 9 MB."""
MAX_MISSED = 3
"""After more results without an object than this, its number is forgotten."""
MAX_AWAY = 15
"""But not before it was away for more frames than this."""
MAX_STEP = 4
"""Most frames that a result is carried at once."""
_FEATURE_BUDGET = 160
_MIN_FEATURES, _MAX_FEATURES = 8, 20
_POINT_SHARE = 0.12
"""What is around a point belongs to it up to this share of the picture's longest side."""
_MIN_OVERLAP = 0.05
"""Smallest IoU of a box and its track, unless they are near."""
_NEAR = 0.75
"""Largest distance between a box and its track, in the size of the larger of them."""
_NEAR_HIDDEN = 1.5
"""The same for a track that the last results didn't contain."""
_MAX_RECOLOR = 0.35
"""A box that differs more than this in color is not a track that comes back."""
_COLOR_WEIGHT = 2.0
_MAX_HIDDEN = 50
_EDGE = 0.015
"""A box that comes so close to the picture's edge ends there, as a share of the picture."""
_MIN_VISIBLE = 0.02
"""A box of which less than this share is in the picture has left it."""


@dataclass(frozen=True)
class Shown:
    """What is shown on the newest frame, with the numbers of the objects."""

    regions: tuple[Region, ...] = ()
    region_numbers: tuple[int, ...] = ()
    locations: tuple[Location, ...] = ()
    location_numbers: tuple[int, ...] = ()


@dataclass
class _Track:
    """An object. ``color`` is the mean of its inside."""

    patch: Patch
    color: Floats
    is_cut_off: tuple[bool, ...] = (False,) * 4
    """At which of the picture's edges its box ended, in the order of a box."""
    number: int = 0
    missed: int = 0
    """Number of results in a row that don't contain it."""
    trail: deque[tuple[int, Floats]] = field(default_factory=deque)
    """Frame ids, and the boxes at them, normalized."""

    last_seen: int = 0
    """Id of the last frame whose result contains it."""

    @property
    def is_shown(self) -> bool:
        return self.missed == 0

    def is_forgotten(self, frame_id: int) -> bool:
        return self.missed > MAX_MISSED and frame_id - self.last_seen > MAX_AWAY

    def record(self, frame: SmallFrame) -> None:
        self.trail.append((frame.id, self.seen_box(frame)))

    def seen_box(self, frame: SmallFrame) -> Floats:
        """Return the box, normalized, with what has come in from beyond the picture's edges.

        An object that was cut off by an edge is taken to reach there still, until it is as wide as
        high.
        """
        box: Floats = self.patch.box.copy()
        longest = float((box[2:] - box[:2]).max())
        for axis, size in enumerate(frame.size):
            low, high = box[axis], box[axis + 2]
            if self.is_cut_off[axis]:
                box[axis] = min(low, max(0.0, high - longest))
            if self.is_cut_off[axis + 2]:
                box[axis + 2] = max(high, min(size, low + longest))
        return np.asarray(box / _scale(frame), np.float32)

    def box_at(self, frame_id: int) -> Floats:
        """Return the normalized box at a frame, interpolated between those that are known."""
        ids = [known for known, _ in self.trail]
        later = bisect_left(ids, frame_id)
        if later in (0, len(ids)):
            return self.trail[min(later, len(ids) - 1)][1]
        (first, box), (last, next_box) = self.trail[later - 1], self.trail[later]
        share = np.float32((frame_id - first) / (last - first))
        between: Floats = box + share * (next_box - box)
        return between

    def continue_as(self, found: _Track) -> None:
        """Take the place of what a result contains, from its frame on."""
        first_id = found.trail[0][0]
        earlier = [entry for entry in self.trail if entry[0] < first_id]
        self.trail = deque((*earlier, *found.trail))
        self.patch = found.patch
        self.color = (self.color + found.color) / 2
        self.is_cut_off = found.is_cut_off
        self.missed = 0
        self.last_seen = found.last_seen

    def has_left(self, frame: SmallFrame) -> bool:
        """Return whether it is out of the picture."""
        size = np.array(frame.size, np.float32)
        if self.patch.is_point:
            return bool(((self.patch.center < 0) | (self.patch.center > size)).any())
        inside = np.clip(self.patch.box, 0, np.tile(size, 2))
        area = float((self.patch.box[2:] - self.patch.box[:2]).prod())
        return float((inside[2:] - inside[:2]).prod()) <= _MIN_VISIBLE * area


class Tracker:
    """Follows the objects of one session. Not thread-safe.

    ``memory`` is the number of frames that are kept, and so the largest age of a result that can be
    carried to the newest frame. An older one is shown where it was.
    """

    def __init__(self, memory: int = DEFAULT_MEMORY) -> None:
        self._ring = FrameRing(memory)
        self._memory = memory
        self._ground = Ground()
        self._tracks: list[_Track] = []
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
            if len(track.trail) > self._memory:
                track.trail.popleft()
        self._tracks = [track for track in self._tracks if not track.has_left(frame)]

    def observe(
        self, frame_id: int, regions: Sequence[Region], locations: Sequence[Location]
    ) -> None:
        """Take the result for a frame, and show it at the newest one.

        A result for an older frame than the last result is ignored. Raises ``ValueError`` if no
        frame was added, or if none so new was.
        """
        newest = self._ring.newest
        if newest is None or frame_id > newest.id:
            raise ValueError(f"frame {frame_id} was not added")
        if self._last_observed is not None and frame_id <= self._last_observed:
            return
        self._last_observed = frame_id
        frames = self._ring.since(frame_id) or [newest]
        found = self._read(frames[0], regions, locations)
        matches = assign(_costs(found, self._tracks, frame_id, frames[0]))
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
        self._tracks = [
            track
            for track in self._tracks
            if not track.has_left(newest) and not track.is_forgotten(frame_id)
        ]
        self._bound_hidden()

    def _read(
        self, frame: SmallFrame, regions: Sequence[Region], locations: Sequence[Location]
    ) -> list[_Track]:
        """Return the objects of a result, at its frame."""
        count = max(1, len(regions) + len(locations))
        wanted = min(_MAX_FEATURES, max(_MIN_FEATURES, _FEATURE_BUDGET // count))
        reach = np.float32(_POINT_SHARE * max(frame.size))
        patches = [Patch(_as_box(region) * _scale(frame), wanted) for region in regions]
        for location in locations:
            center = np.array((location.x, location.y), np.float32) * _scale(frame)[:2]
            box = np.concatenate((center - reach, center + reach))
            patches.append(Patch(box, wanted, is_point=True))
        found = [
            _Track(patch, _mean_color(frame, patch), _is_cut_off(frame, patch), last_seen=frame.id)
            for patch in patches
        ]
        for track in found:
            track.record(frame)
        return found

    def _carry(
        self, found: Sequence[_Track], frames: Sequence[SmallFrame], others: Sequence[_Track]
    ) -> None:
        """Move objects from the first frame to the last one."""
        if not found:
            return
        patches = [track.patch for track in found]
        visible = [True] * len(found)
        all_rivals = find_rivals(patches, visible)
        ghosts = [track.box_at(frames[0].id) * _scale(frames[0]) for track in others]
        contended = find_contended(patches, visible, all_rivals, ghosts)
        for patch, rivals, is_contended in zip(patches, all_rivals, contended, strict=True):
            patch.look(frames[0].gray, rivals, is_contended)
        self._ground.look(frames[0].gray, patches)
        stops = [*range(0, len(frames) - 1, MAX_STEP), len(frames) - 1]
        for start, end in pairwise(stops):
            self._carry_part(found, frames[start : end + 1], others)

    def _carry_part(
        self, found: Sequence[_Track], frames: Sequence[SmallFrame], others: Sequence[_Track]
    ) -> None:
        """Move objects from the first frame to the last one, by way of others if need be."""
        saved = [track.patch.copy() for track in found], copy(self._ground)
        had_features = [track.patch.has_features for track in found]
        visible = [True] * len(found)
        patches = [track.patch for track in found]
        scale = _scale(frames[-1])
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

    def _begin(self, track: _Track) -> None:
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
        newest = self._ring.newest
        if newest is None:
            return Shown()
        tracks = sorted(
            (track for track in self._tracks if track.is_shown), key=lambda track: track.number
        )
        boxes = [track for track in tracks if not track.patch.is_point]
        points = [track for track in tracks if track.patch.is_point]
        scale = _scale(newest)
        return Shown(
            tuple(_as_region(track.seen_box(newest)) for track in boxes),
            tuple(track.number for track in boxes),
            tuple(_as_location(track.patch.center / scale[:2]) for track in points),
            tuple(track.number for track in points),
        )

    def reset(self) -> None:
        """Forget all objects, because the question has changed. Numbers begin at 1 again.

        A result that is on its way still belongs to the old question: don't observe it.
        """
        self._tracks = []
        self._next_number = 1


def _costs(
    found: Sequence[_Track], tracks: Sequence[_Track], frame_id: int, frame: SmallFrame
) -> Costs:
    """Return the cost of each pair of an object of a result and a track.

    It grows with the distance between their boxes at the result's frame, and between their colors.
    """
    costs = np.full((len(found), len(tracks)), FORBIDDEN)
    if not found or not tracks:
        return costs
    scale = _scale(frame)
    boxes = np.stack([track.patch.box for track in found])
    others = np.stack([track.box_at(frame_id) * scale for track in tracks])
    overlaps = intersection_over_union(boxes, others)
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    other_centers = (others[:, :2] + others[:, 2:]) / 2
    sizes = np.sqrt(np.maximum(1.0, (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)))
    other_sizes = np.sqrt(np.maximum(1.0, (others[:, 2:] - others[:, :2]).prod(axis=1)))
    distances = np.linalg.norm(centers[:, None] - other_centers[None], axis=2)
    distances /= np.maximum(sizes[:, None], other_sizes[None])
    colors = np.stack([track.color for track in found])
    other_colors = np.stack([track.color for track in tracks])
    recolors = np.linalg.norm(colors[:, None] - other_colors[None], axis=2)
    is_shown = np.array([track.is_shown for track in tracks])
    may_match = np.where(
        is_shown, (overlaps > _MIN_OVERLAP) | (distances < _NEAR), distances < _NEAR_HIDDEN
    )
    may_match &= is_shown | (recolors < _MAX_RECOLOR)
    may_match &= np.equal.outer(
        [track.patch.is_point for track in found], [track.patch.is_point for track in tracks]
    )
    sums = 1 - overlaps + distances + _COLOR_WEIGHT * recolors
    return np.where(may_match, sums, costs)


def _scale(frame: SmallFrame) -> Floats:
    return np.array((*frame.size, *frame.size), np.float32)


def _as_box(region: Region) -> Floats:
    x_min, x_max = sorted((region.x_min, region.x_max))
    y_min, y_max = sorted((region.y_min, region.y_max))
    return np.array((x_min, y_min, x_max, y_max), np.float32)


def _as_region(box: Floats) -> Region:
    return Region(*(float(value) for value in np.clip(box, 0, 1)))


def _as_location(center: Floats) -> Location:
    return Location(*(float(value) for value in np.clip(center, 0, 1)))


def _is_cut_off(frame: SmallFrame, patch: Patch) -> tuple[bool, ...]:
    if patch.is_point:
        return (False,) * 4
    low = patch.box[:2] < _EDGE * np.array(frame.size)
    high = patch.box[2:] > (1 - _EDGE) * np.array(frame.size)
    return (*(bool(value) for value in low), *(bool(value) for value in high))


def _mean_color(frame: SmallFrame, patch: Patch) -> Floats:
    """Return the mean color, 0 to 1, of the middle of a box, or of what is close to a point."""
    height, width = frame.colors.shape[:2]
    ratio = np.array((width, height), np.float32) / np.array(frame.size, np.float32)
    half = (patch.box[2:] - patch.box[:2]) / (12 if patch.is_point else 4)
    low = np.clip(np.floor((patch.center - half) * ratio), 0, (width - 1, height - 1)).astype(int)
    high = np.maximum(low + 1, np.ceil((patch.center + half) * ratio).astype(int))
    inside = frame.colors[low[1] : high[1], low[0] : high[0]]
    color: Floats = inside.mean(axis=(0, 1), dtype=np.float32) / 255
    return color
