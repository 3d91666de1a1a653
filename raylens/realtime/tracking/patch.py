"""A part of the picture that is followed: a box, with features in and around it.

Its motion is measured since its *key frame*, in which the features were found, and not from frame
to frame, so that errors don't add up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from raylens.realtime.tracking.flow import Pixels, find_features, no_points
from raylens.realtime.tracking.motion import Floats, Mask, Motion, fit_motion
from raylens.realtime.tracking.templates import Template, take_template

_MIN_FEATURES = 3
"""Fewest features that tell a patch's motion."""
_MIN_AGREEING = 0.4
"""If a smaller share of the features agrees on a motion, it is not believed."""
_MIN_FOUND = 0.15
"""If a smaller share of the features is found again after a step, the others are not believed."""
_FEW_LEFT = 0.5
"""If a smaller share of the features is left, new ones are sought."""
_APART = 4.0
"""Least distance between old and new features, in pixels."""
_MOVES = 1.2
"""From this distance on, a feature has moved against the ground, in pixels."""
_MIN_MOVING = 4
"""If so many features move against the ground together, the others belong to the ground."""
_SLIPPED = 1.0
"""After a larger correction than this, new features are sought, in pixels."""
_RESIZED = 0.5
"""A larger change of a side in one step is compared with no change, in pixels."""
_STEADY, _STEADY_SHARE = 1.0, 0.3
"""Largest change of a steady velocity, in pixels a frame, and as a share of it."""
_DECAY = 0.9
"""What is left of a velocity after each frame in which nothing confirms it."""


@dataclass
class _Features:
    """Places of the same features: now, one step ago, in the key frame, and where they would be if
    they belonged to the ground."""

    now: Floats
    before: Floats
    key: Floats
    as_ground: Floats

    @classmethod
    def at(cls, places: Floats) -> _Features:
        return cls(places, places, places, places)

    def keep(self, is_kept: Mask) -> None:
        self.now, self.before = self.now[is_kept], self.before[is_kept]
        self.key, self.as_ground = self.key[is_kept], self.as_ground[is_kept]

    def add(self, places: Floats, key: Floats) -> None:
        self.now = np.concatenate((self.now, places))
        self.before = np.concatenate((self.before, places))
        self.key = np.concatenate((self.key, key))
        self.as_ground = np.concatenate((self.as_ground, places))


@dataclass
class Patch:
    """``box`` may reach beyond the picture. The box of a point is what surrounds it, and keeps its
    size. All coordinates are pixels of a small frame."""

    box: Floats
    wanted: int
    """Number of features that are sought."""
    is_point: bool = False
    velocity: Floats | None = None
    """Against the ground, in pixels a frame; None if unknown."""
    is_lost: bool = False
    """Whether its features were gone all at once."""
    is_stuck: bool = False
    """Whether the ground was gone with them, so that it says nothing any more."""
    is_behind: bool = False
    """Whether it was lost because another patch is in front of it."""
    _features: _Features = field(default_factory=lambda: _Features.at(no_points()))
    _found_count: int = 0
    """Number of features when they were last sought."""
    _has_slipped: bool = False
    """Whether the features no longer fit the key frame."""
    _key_box: Floats = field(default_factory=lambda: np.zeros(4, np.float32))
    _motion: Motion = field(default_factory=Motion)
    """Motion since the key frame."""
    _template: Template | None = None

    @property
    def features(self) -> Floats:
        return self._features.now

    @property
    def center(self) -> Floats:
        return _center(self.box)

    @property
    def has_features(self) -> bool:
        """Whether there are enough features to tell its motion."""
        return not self.is_lost and len(self.features) >= _MIN_FEATURES

    @property
    def likely_velocity(self) -> Floats:
        return np.zeros(2, np.float32) if self.velocity is None else self.velocity

    def copy(self) -> Patch:
        """Return a patch that moves on its own."""
        return replace(self, _features=replace(self._features))

    def is_inside(self, gray: Pixels) -> bool:
        """Return whether the whole box is in the picture."""
        return _is_inside(self.box, gray)

    def inherit(self, earlier: Patch) -> None:
        """Take over what is known of the object from an earlier result."""
        self.velocity = earlier.velocity
        self._template = earlier._template

    def look(self, gray: Pixels, rivals: Sequence[Patch], is_contended: bool) -> None:
        """Remember what the object looks like, unless others are in the box, and find features."""
        if not self.is_point and not is_contended:
            self._template = take_template(gray, self.box)
        self.find_features(gray, rivals)

    def find_features(self, gray: Pixels, rivals: Sequence[Patch]) -> None:
        """Make this frame the key frame. ``rivals`` keep their features."""
        features = self._sought(gray, rivals)
        self._features = _Features.at(features)
        self._found_count = len(features)
        self._key_box = self.box
        self._motion = Motion()
        self.is_lost = self.is_stuck = self.is_behind = self._has_slipped = False

    def refresh(self, gray: Pixels, rivals: Sequence[Patch]) -> None:
        """Find more features if few are left, or others if these have slipped."""
        if self._has_slipped:
            self.find_features(gray, rivals)
        elif len(self.features) < _FEW_LEFT * self._found_count:
            more = self._sought(gray, rivals)
            distances = np.abs(more[:, None] - self.features).max(axis=2)
            more = more[(distances > _APART).all(axis=1)]
            self._features.add(more, self._motion.undo(more))
            self._found_count = len(self.features)

    def resize(self, factors: Floats) -> None:
        """Change all coordinates, because the frames' size has changed. The features are lost."""
        self.box = self.box * np.tile(factors, 2)
        self._features = _Features.at(no_points())
        self._template = None
        self.is_lost = True
        if self.velocity is not None:
            self.velocity = (self.velocity * factors).astype(np.float32)

    def take(self, found: Floats, is_good: Mask, rivals: Sequence[Patch]) -> None:
        """Take the features' new places. Drop those that were not found again, or are rivals'."""
        had_enough = len(is_good) >= _MIN_FEATURES
        if had_enough and np.count_nonzero(is_good) < _MIN_FOUND * len(is_good):
            self.is_lost = True
        self._features.before, self._features.now = self._features.now, found
        self._features.keep(is_good & self._owns(found, rivals))

    def follow(self, gray: Pixels, ground: Motion | None, frames: int, is_contended: bool) -> bool:
        """Move the box as its features have moved; return whether they tell its motion.

        ``ground`` is the ground's motion since the last step, ``frames`` ago. A patch for which
        others contend keeps its size and its velocity: another motion would be theirs.
        """
        if ground is not None:
            self._features.as_ground = ground.move(self._features.as_ground)
        if is_contended and self.velocity is not None:
            self._features.keep(self._is_steady(ground, frames))
        box = self._measure(ground) if self.has_features else None
        if box is None:
            return False
        has_own_size = self.is_point or is_contended
        box = self._at_same_size(box) if has_own_size else self._correct(gray, box)
        self._go_to(box, ground, frames, learns=self.velocity is None or not is_contended)
        self.is_behind = False
        return True

    def find_again(
        self, gray: Pixels, ground: Motion | None, frames: int, rivals: Sequence[Patch]
    ) -> bool:
        """Look for the whole object near where it would be; return whether it is there."""
        if self._template is None:
            return False
        expected = self._coasted(ground, frames)
        box = self._template.find(gray, expected) if _is_inside(expected, gray) else None
        if box is None:
            return False
        self._go_to(box, ground, frames)
        self.find_features(gray, rivals)
        return True

    def move(self, ground: Motion) -> None:
        """Move the box with the ground."""
        self.box = ground.move(self.box)

    def coast(self, ground: Motion | None, frames: int) -> None:
        """Move the box as it has moved against the ground before."""
        self.box = self._coasted(ground, frames)

    def slow_down(self, frames: int) -> None:
        self.velocity = self.likely_velocity * np.float32(_DECAY) ** frames

    def _coasted(self, ground: Motion | None, frames: int) -> Floats:
        box = self.box if ground is None else ground.move(self.box)
        return box + np.tile(self.likely_velocity, 2) * np.float32(frames)

    def _go_to(self, box: Floats, ground: Motion | None, frames: int, learns: bool = True) -> None:
        if learns:
            shift = _center(box) - self.center - self._ground_shift(ground)
            velocity = shift / np.float32(frames)
            known = velocity if self.velocity is None else self.velocity
            self.velocity = _mean(velocity, known)
        self.box = box

    def _ground_shift(self, ground: Motion | None) -> Floats:
        """Return how far the ground has moved where the patch is."""
        if ground is None:
            return np.zeros(2, np.float32)
        return ground.move(self.center) - self.center

    def _correct(self, gray: Pixels, box: Floats) -> Floats:
        """Return the box, moved to where the object looks as it did when the model saw it."""
        if self._template is None or not _is_inside(box, gray):
            return box
        candidates = [box]
        sides, old_sides = box[2:] - box[:2], self.box[2:] - self.box[:2]
        if np.abs(sides - old_sides).max() > _RESIZED:
            candidates.append(self._at_same_size(box))
        corrected = self._template.correct(gray, candidates)
        self._has_slipped |= bool(np.abs(corrected - box).max() > _SLIPPED)
        return corrected

    def _measure(self, ground: Motion | None) -> Floats | None:
        """Return the box as moved by the features, or None if too few agree.

        If they no longer agree on a motion since the key frame, they may on one since the last
        step.
        """
        features = self._features
        as_ground = None if ground is None else features.as_ground
        motion = self._fit(features.key, as_ground, self._motion.scale)
        if motion is not None:
            self._motion = motion
            return motion.move(self._key_box)
        self._has_slipped = True
        as_ground = None if ground is None else ground.move(features.before)
        step = self._fit(features.before, as_ground, 1.0)
        return None if step is None else step.move(self.box)

    def _fit(self, before: Floats, as_ground: Floats | None, usual_scale: float) -> Motion | None:
        """Return the motion of the features, or None if too few agree on one.

        If some move against the ground, the others belong to the ground, and are dropped.
        """
        now = self.features
        if as_ground is not None:
            is_moving = np.hypot(*(now - as_ground).T) > _MOVES
            if np.count_nonzero(is_moving) >= _MIN_MOVING:
                motion, agrees = fit_motion(before[is_moving], now[is_moving], usual_scale)
                if _is_enough(agrees, _MIN_MOVING):
                    self._features.keep(is_moving)
                    return motion
        motion, agrees = fit_motion(before, now, usual_scale)
        return motion if _is_enough(agrees, _MIN_FEATURES) else None

    def _at_same_size(self, box: Floats) -> Floats:
        """Return a box of the present size with the center of another one."""
        half = (self.box[2:] - self.box[:2]) / np.float32(2)
        center = _center(box)
        return np.concatenate((center - half, center + half))

    def _is_steady(self, ground: Motion | None, frames: int) -> Mask:
        """Return which features go on as the patch did before."""
        velocity = self.likely_velocity + self._ground_shift(ground) / np.float32(frames)
        moved = (self._features.now - self._features.before) / np.float32(frames)
        largest = _STEADY + _STEADY_SHARE * float(np.hypot(*velocity))
        is_steady: Mask = np.hypot(*(moved - velocity).T) < largest
        return is_steady

    def _sought(self, gray: Pixels, rivals: Sequence[Patch]) -> Floats:
        features = find_features(gray, self.box, self.wanted)
        return features[self._owns(features, rivals)]

    def _owns(self, points: Floats, rivals: Sequence[Patch]) -> Mask:
        """Return which points no rival claims.

        A box claims what is in it. Of two points, the nearer one claims it.
        """
        is_own = np.ones(len(points), bool)
        for rival in rivals:
            if self.is_point:
                is_own &= _distances(points, self.center) <= _distances(points, rival.center)
            else:
                is_own &= ~((points >= rival.box[:2]) & (points <= rival.box[2:])).all(axis=1)
        return is_own


def _center(box: Floats) -> Floats:
    return _mean(box[:2], box[2:])


def _mean(one: Floats, other: Floats) -> Floats:
    return np.asarray((one + other) / 2, np.float32)


def _is_inside(box: Floats, gray: Pixels) -> bool:
    height, width = gray.shape
    return bool((box >= 0).all() and (box[2:] <= (width, height)).all())


def _is_enough(agrees: Mask, least: int) -> bool:
    return bool(np.count_nonzero(agrees) >= max(least, _MIN_AGREEING * len(agrees)))


def _distances(points: Floats, center: Floats) -> Floats:
    distances: Floats = np.hypot(*(points - center).T)
    return distances
