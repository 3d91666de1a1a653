"""One step from a frame to a later one, for all patches together."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from raylens.realtime.tracking.flow import Pixels, find_again, find_ground, no_points
from raylens.realtime.tracking.frames import SmallFrame
from raylens.realtime.tracking.motion import Floats, Mask, Motion, fit_motion
from raylens.realtime.tracking.patch import Patch

_MIN_GROUND = 6
"""Fewest features that tell the ground's motion."""
_MIN_FOUND = 0.5
"""This share of its features must be found again."""
_MIN_AGREEING = 0.6
"""This share of those must agree."""
_MIN_SPREAD = 0.4
"""They must span this share of the picture's width or height."""
_FEW_LEFT = 0.5
"""If a smaller share of the features is left, new ones are sought."""
_MUCH_LARGER = 3.0
"""By this factor an area is much larger than another one."""


class Ground:
    """What is behind the patches. Its motion is that of the camera."""

    def __init__(self) -> None:
        self.features = no_points()
        self.velocity: Floats = np.zeros(2, np.float32)
        """The last motion of the picture's center, in pixels a frame."""
        self._found_count = 0

    def look(self, gray: Pixels, patches: Sequence[Patch]) -> None:
        """Find features outside the patches."""
        self.features = find_ground(gray, [patch.box for patch in patches])
        self._found_count = len(self.features)

    def refresh(self, gray: Pixels, patches: Sequence[Patch]) -> None:
        """Find other features if few are left."""
        if len(self.features) < _FEW_LEFT * self._found_count:
            self.look(gray, patches)

    def resize(self, factors: Floats) -> None:
        """Change all coordinates, because the frames' size has changed. The features are lost."""
        self.features = no_points()
        self.velocity = (self.velocity * factors).astype(np.float32)

    def follow(self, found: Floats, is_good: Mask, gray: Pixels, frames: int) -> Motion | None:
        """Take the features' new places, and return their common motion if they have one."""
        before, after = self.features[is_good], found[is_good]
        self.features = after
        self.velocity = np.zeros(2, np.float32)
        height, width = gray.shape
        size = np.array((width, height), np.float32)
        if len(after) < max(_MIN_GROUND, _MIN_FOUND * len(is_good)):
            return None
        if (np.ptp(after, axis=0) < _MIN_SPREAD * size).all():
            return None
        motion, agrees = fit_motion(before, after)
        if np.count_nonzero(agrees) < _MIN_AGREEING * len(after):
            return None
        center = size / np.float32(2)
        self.velocity = np.asarray((motion.move(center) - center) / frames, np.float32)
        return motion


def step(
    patches: Sequence[Patch],
    visible: Sequence[bool],
    ground: Ground,
    before: SmallFrame,
    after: SmallFrame,
    ghosts: Sequence[Floats] = (),
) -> list[bool]:
    """Move all patches from one frame to a later one; return which were found again.

    ``visible`` says which ones are shown. ``ghosts`` are boxes of others, which aren't shown and
    not moved here. What isn't shown is taken to be behind what is shown and overlaps with it.
    """
    frames = after.id - before.id
    gray = before.gray
    if before.size != after.size:
        ratios = [new / old for new, old in zip(after.size, before.size, strict=True)]
        factors = np.array(ratios, np.float32)
        gray = cv2.resize(gray, after.size, interpolation=cv2.INTER_AREA)
        ground.resize(factors)
        for patch in patches:
            patch.resize(factors)
    parts = [ground.features, *(patch.features for patch in patches)]
    velocities = [ground.velocity, *(ground.velocity + patch.likely_velocity for patch in patches)]
    lengths = [len(part) for part in parts]
    shifts = np.repeat(np.stack(velocities), lengths, axis=0) * np.float32(frames)
    found, is_good = find_again(gray, after.gray, np.concatenate(parts), shifts)
    bounds = np.cumsum(lengths)[:-1]
    ground_found, *all_found = np.split(found, bounds)
    ground_good, *all_good = np.split(is_good, bounds)
    motion = ground.follow(ground_found, ground_good, after.gray, frames)
    all_rivals = find_rivals(patches, visible)
    for patch, places, good, rivals in zip(patches, all_found, all_good, all_rivals, strict=True):
        patch.take(places, good, rivals)
    contended = find_contended(patches, visible, all_rivals, ghosts)
    return [
        _move(patch, after.gray, motion, frames, is_shown, rivals, is_contended)
        for patch, is_shown, rivals, is_contended in zip(
            patches, visible, all_rivals, contended, strict=True
        )
    ]


def find_rivals(patches: Sequence[Patch], visible: Sequence[bool]) -> list[list[Patch]]:
    """Return, for each patch, the shown ones that contend with it for its features.

    A much larger one doesn't: the small one is in front of it, or a part of it.
    """
    if not patches:
        return []
    boxes = np.stack([patch.box for patch in patches])
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    is_rival = _overlaps(boxes, boxes) & (areas[None] < _MUCH_LARGER * areas[:, None])
    is_rival &= np.array(visible, bool)[None]
    np.fill_diagonal(is_rival, False)
    return [[patches[int(index)] for index in np.flatnonzero(row)] for row in is_rival]


def find_contended(
    patches: Sequence[Patch],
    visible: Sequence[bool],
    all_rivals: Sequence[Sequence[Patch]],
    ghosts: Sequence[Floats],
) -> list[bool]:
    """Return which patches others contend for: rivals, or if they are shown, one behind them."""
    behind = [patch.box for patch, is_shown in zip(patches, visible, strict=True) if not is_shown]
    contended = [bool(rivals) for rivals in all_rivals]
    others = [*ghosts, *behind]
    if others:
        boxes = np.stack([patch.box for patch in patches])
        is_before = _overlaps(boxes, np.stack(others)).any(axis=1) & np.array(visible, bool)
        contended = [bool(value) for value in is_before | np.array(contended, bool)]
    return contended


def _overlaps(boxes: Floats, others: Floats) -> Mask:
    """Return which of some boxes (n, 4) overlap with which others (m, 4)."""
    mine, theirs = boxes[:, None], others[None]
    overlaps = (mine[..., :2] < theirs[..., 2:]) & (theirs[..., :2] < mine[..., 2:])
    return np.asarray(overlaps.all(axis=2), bool)


def _move(
    patch: Patch,
    gray: Pixels,
    ground: Motion | None,
    frames: int,
    is_shown: bool,
    rivals: Sequence[Patch],
    is_contended: bool,
) -> bool:
    """Move a patch; return whether it was found again."""
    can_be_seen = is_shown or not rivals
    if can_be_seen and patch.follow(gray, ground, frames, is_contended):
        patch.refresh(gray, rivals)
        return True
    if not is_contended and patch.find_again(gray, ground, frames, rivals):
        return True
    if is_contended:
        patch.coast(ground, frames)
        patch.is_behind = True
    elif patch.is_behind or not is_shown:
        patch.coast(ground, frames)
        patch.find_features(gray, rivals)
    elif not patch.is_lost:
        patch.coast(ground, frames)
        if patch.is_inside(gray):  # else it is leaving, and its features left first
            patch.slow_down(frames)
    elif ground is None:
        patch.is_stuck = True  # a cut
    elif not patch.is_stuck:
        patch.move(ground)
    return False
