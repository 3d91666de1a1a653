"""Drawn videos by name, of :data:`FRAMES` frames each."""

from __future__ import annotations

import math
from dataclasses import replace

from testing.moving_shapes import (
    Ground,
    MovingShape,
    Path,
    Place,
    ShapeVideo,
    line,
    stay,
    to_and_fro,
)

FRAMES = 90
_CUT = 47
_TEXTURE = Ground(contrast=50)
_PANNING = Ground(contrast=50, pan=lambda number: 0.006 * number)


def _circle(color: str, path: Path) -> MovingShape:
    return MovingShape("circle", color, path)


def _square(color: str, path: Path) -> MovingShape:
    return MovingShape("square", color, path)


def _triangle(color: str, path: Path) -> MovingShape:
    return MovingShape("triangle", color, path)


def _orbit(reach: float, frames: int) -> Path:
    def path(number: int) -> Place:
        angle = 2 * math.pi * number / frames
        return Place(0.5 + reach * math.cos(angle), 0.37 + reach * math.sin(angle), 0.08)

    return path


def _jump(first: Place, then: Place) -> Path:
    return lambda number: first if number < _CUT else then


def _meet(color: str, other: str, apart: float = 0.0) -> dict[str, MovingShape]:
    """Return two circles that meet in the middle; the second one is in front."""
    left, right = Place(0.15, 0.35, 0.08), Place(0.85, 0.35, 0.08)
    below_left, below_right = (replace(place, y=place.y + apart) for place in (left, right))
    return {
        "left": _circle(color, line(left, right, 88)),
        "right": _circle(other, line(below_right, below_left, 88)),
    }


def _with_pattern(shapes: dict[str, MovingShape]) -> dict[str, MovingShape]:
    return {name: replace(shape, is_textured=True) for name, shape in shapes.items()}


def _in_the_world(shapes: dict[str, MovingShape]) -> dict[str, MovingShape]:
    """Return shapes that move with the panning ground, besides their own motion."""

    def moved(shape: MovingShape) -> MovingShape:
        def path(number: int) -> Place | None:
            place = shape.path(number)
            return place and replace(place, x=place.x - _PANNING.pan(number))

        return replace(shape, path=path)

    return {name: moved(shape) for name, shape in shapes.items()}


_MOVING = {
    "circle": _circle("red", to_and_fro(Place(0.2, 0.15, 0.1), Place(0.8, 0.15, 0.1), 45)),
    "square": _square("blue", to_and_fro(Place(0.8, 0.4, 0.09), Place(0.2, 0.4, 0.09), 60)),
    "triangle": _triangle("yellow", to_and_fro(Place(0.2, 0.62, 0.1), Place(0.7, 0.62, 0.1), 40)),
}
_STILL = {
    "circle": _circle("red", stay(Place(0.7, 0.2, 0.1))),
    "square": _square("green", stay(Place(0.9, 0.5, 0.09))),
}
_ROUND = {
    "square": _square("orange", _orbit(0.2, 60)),
    "triangle": _triangle("purple", _orbit(-0.25, 50)),
}
_GROWING = {
    "circle": _circle("red", to_and_fro(Place(0.25, 0.35, 0.06), Place(0.25, 0.35, 0.18), 45)),
    "square": _square("white", to_and_fro(Place(0.75, 0.35, 0.18), Place(0.7, 0.4, 0.06), 60)),
}
_AT_THE_EDGE = {
    "in": _circle("red", line(Place(-0.1, 0.25, 0.1), Place(0.5, 0.25, 0.1), 60)),
    "out": _square("blue", line(Place(0.5, 0.55, 0.08), Place(1.2, 0.55, 0.08), 80)),
}
_JUMPING = {
    "circle": _circle("red", _jump(Place(0.2, 0.2, 0.1), Place(0.6, 0.2, 0.1))),
    "square": _square("blue", _jump(Place(0.7, 0.5, 0.1), Place(0.3, 0.55, 0.1))),
}
_FAST = to_and_fro(Place(0.15, 0.35, 0.1), Place(0.85, 0.35, 0.1), 14)
"""5% of the width a frame."""
VIDEOS = {
    "still": ShapeVideo(_STILL),
    "moving": ShapeVideo(_MOVING),
    "moving, 128×96": ShapeVideo(_MOVING, width=128, height=96),
    "moving, 1280×720": ShapeVideo(_MOVING, width=1280, height=720),
    # Red has the brightness of this gray.
    "moving, as bright as the ground": ShapeVideo({"circle": _MOVING["circle"]}, Ground(level=95)),
    "fast": ShapeVideo({"circle": _circle("blue", _FAST)}),
    "going round": ShapeVideo(_ROUND),
    "growing": ShapeVideo(_GROWING),
    "crossing": ShapeVideo(_meet("red", "blue")),
    "crossing, one color": ShapeVideo(_meet("red", "red", apart=0.06)),
    "crossing, one color, hidden": ShapeVideo(_meet("green", "green")),
    "entering and leaving": ShapeVideo(_AT_THE_EDGE),
    "textured ground": ShapeVideo(_MOVING, _TEXTURE),
    "textured shapes": ShapeVideo(_with_pattern(_MOVING)),
    "all textured": ShapeVideo(_with_pattern(_MOVING), _TEXTURE),
    "panning camera": ShapeVideo(_in_the_world(_STILL), _PANNING),
    "panning camera, moving": ShapeVideo(_in_the_world(_MOVING), _PANNING),
    "cut": ShapeVideo(_JUMPING, _TEXTURE, cut_at=_CUT),
}
