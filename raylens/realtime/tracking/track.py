"""An object that is followed, and what tells whether another result's object is the same."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from raylens.core.types import Location, Region
from raylens.realtime.tracking.frames import SmallFrame
from raylens.realtime.tracking.matching import FORBIDDEN, Costs, intersection_over_union
from raylens.realtime.tracking.motion import Floats
from raylens.realtime.tracking.patch import Patch

MAX_MISSED = 3
"""After more results without an object than this, its number is forgotten."""
MAX_AWAY = 15
"""But not before it was away for more frames than this."""
_FEATURE_BUDGET = 160
"""Number of features of all objects together."""
_MIN_FEATURES, _MAX_FEATURES = 8, 20
"""Number of features of one."""
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
_EDGE = 0.015
"""A box that comes so close to the picture's edge ends there, as a share of the picture."""
_MIN_VISIBLE = 0.02
"""A box of which less than this share is in the picture has left it."""


@dataclass
class Track:
    """An object. ``color`` is the mean of its inside."""

    patch: Patch
    color: Floats
    is_cut_off: tuple[bool, ...] = (False,) * 4
    """At which of the picture's edges its box ended, in the order of a box."""
    number: int = 0
    last_seen: int = 0
    """Id of the last frame whose result contains it."""
    missed: int = 0
    """Number of results in a row that don't contain it."""
    trail: deque[tuple[int, Floats]] = field(default_factory=deque)
    """Frame ids, and the boxes at them, normalized."""

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
        return np.asarray(box / scale_of(frame), np.float32)

    def box_at(self, frame_id: int) -> Floats:
        """Return the normalized box at a frame, interpolated between those that are known."""
        ids = [known for known, _ in self.trail]
        later = bisect_left(ids, frame_id)
        if later in (0, len(ids)):
            return self.trail[min(later, len(ids) - 1)][1]
        (first, box), (last, next_box) = self.trail[later - 1], self.trail[later]
        share = np.float32((frame_id - first) / (last - first))
        return np.asarray(box + share * (next_box - box), np.float32)

    def continue_as(self, found: Track) -> None:
        """Take the place of what a result contains, from its frame on."""
        first_id = found.trail[0][0]
        earlier = [entry for entry in self.trail if entry[0] < first_id]
        self.trail = deque((*earlier, *found.trail))
        self.patch = found.patch
        self.color = np.asarray((self.color + found.color) / 2, np.float32)
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

    @property
    def region(self) -> Region:
        """The box at the newest frame, clipped to the picture."""
        return Region(*(float(value) for value in np.clip(self.trail[-1][1], 0, 1)))

    @property
    def location(self) -> Location:
        """The point at the newest frame."""
        box = self.trail[-1][1]
        return Location(*(float(value) for value in np.clip((box[:2] + box[2:]) / 2, 0, 1)))


def read_result(
    frame: SmallFrame, regions: Sequence[Region], locations: Sequence[Location]
) -> list[Track]:
    """Return the objects of a result, at its frame."""
    count = max(1, len(regions) + len(locations))
    wanted = min(_MAX_FEATURES, max(_MIN_FEATURES, _FEATURE_BUDGET // count))
    reach = np.float32(_POINT_SHARE * max(frame.size))
    patches = [Patch(_as_box(region) * scale_of(frame), wanted) for region in regions]
    for location in locations:
        center = np.array((location.x, location.y), np.float32) * scale_of(frame)[:2]
        box = np.concatenate((center - reach, center + reach))
        patches.append(Patch(box, wanted, is_point=True))
    found = [
        Track(patch, _mean_color(frame, patch), _is_cut_off(frame, patch), last_seen=frame.id)
        for patch in patches
    ]
    for track in found:
        track.record(frame)
    return found


def matching_costs(
    found: Sequence[Track], tracks: Sequence[Track], frame_id: int, frame: SmallFrame
) -> Costs:
    """Return the cost of each pair of an object of a result and a track.

    It grows with the distance between their boxes at the result's frame, and between their colors.
    """
    costs = np.full((len(found), len(tracks)), FORBIDDEN)
    if not found or not tracks:
        return costs
    scale = scale_of(frame)
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


def scale_of(frame: SmallFrame) -> Floats:
    """Return what a normalized box is multiplied by to get pixels of a small frame."""
    return np.array((*frame.size, *frame.size), np.float32)


def _as_box(region: Region) -> Floats:
    x_min, x_max = sorted((region.x_min, region.x_max))
    y_min, y_max = sorted((region.y_min, region.y_max))
    return np.array((x_min, y_min, x_max, y_max), np.float32)


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
