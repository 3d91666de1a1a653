"""Drawn videos of moving shapes, whose boxes are known at every frame."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from models.pocket.scenes import COLORS
from raylens.core.types import Location, Region

Pixels = NDArray[np.uint8]
"""A frame as (height, width, 3) RGB."""
_SUBPIXEL_BITS = 4


@dataclass(frozen=True)
class Place:
    """Center and radius (or half side) of a shape, in frame widths."""

    x: float
    y: float
    radius: float


Path = Callable[[int], Place | None]
"""Maps a frame's number to a place; None if the shape isn't there."""


@dataclass(frozen=True)
class MovingShape:
    """A circle, square or triangle. ``is_textured`` puts a pattern on it, which moves with it."""

    kind: str
    color: str
    path: Path
    is_textured: bool = False


@dataclass(frozen=True)
class Ground:
    """What is behind the shapes: gray of a ``level``, with a texture of ``contrast`` levels.

    ``pan`` maps a frame's number to the ground's shift to the left, in frame widths.
    """

    level: int = 128
    contrast: int = 0
    pan: Callable[[int], float] = field(default=lambda number: 0.0)


@dataclass(frozen=True)
class ShapeVideo:
    """A video. Later shapes hide earlier ones."""

    shapes: Mapping[str, MovingShape]
    ground: Ground = field(default_factory=Ground)
    width: int = 640
    height: int = 480
    noise: int = 8
    """Largest noise, in levels."""
    cut_at: int | None = None
    """From this frame on, the ground is another one."""
    seed: int = 0

    def draw(self, number: int) -> Pixels:
        """Return a frame."""
        canvas = self._draw_ground(number)
        for name, shape in self.shapes.items():
            place = shape.path(number)
            if place is not None:
                _paint(canvas, self._fill(name, shape, place), self._mask(shape, place))
        if self.noise:
            rng = np.random.default_rng((self.seed, number))
            noise = rng.integers(-self.noise, self.noise + 1, canvas.shape, np.int16)
            canvas = np.clip(canvas + noise, 0, 255).astype(np.uint8)
        return canvas

    def boxes(self, number: int, min_visible: float = 0.5) -> dict[str, Region]:
        """Return the boxes of the shapes of which at least a share can be seen.

        A box ends at the picture's edges. What other shapes hide belongs to it.
        """
        boxes = {}
        for name, shape in self.shapes.items():
            place = shape.path(number)
            if place is None:
                continue
            region = self._clip(place)
            if region is not None and self._visible_share(name, number) >= min_visible:
                boxes[name] = region
        return boxes

    def centers(self, number: int, min_visible: float = 0.5) -> dict[str, Location]:
        """Return the centers of the shapes of which at least a share can be seen."""
        return {
            name: Location((box.x_min + box.x_max) / 2, (box.y_min + box.y_max) / 2)
            for name, box in self.boxes(number, min_visible).items()
        }

    def _clip(self, place: Place) -> Region | None:
        aspect = self.width / self.height
        x_min, x_max = max(0.0, place.x - place.radius), min(1.0, place.x + place.radius)
        y_min = max(0.0, (place.y - place.radius) * aspect)
        y_max = min(1.0, (place.y + place.radius) * aspect)
        return Region(x_min, y_min, x_max, y_max) if x_min < x_max and y_min < y_max else None

    def _visible_share(self, name: str, number: int) -> float:
        """Return the share of a shape that is in the picture and not hidden by later ones."""
        shape = self.shapes[name]
        place = shape.path(number)
        assert place is not None, "a shape that isn't there has no share"
        mask = self._mask(shape, place)
        full = np.count_nonzero(mask)
        names = list(self.shapes)
        for other in names[names.index(name) + 1 :]:
            other_place = self.shapes[other].path(number)
            if other_place is not None:
                mask[self._mask(self.shapes[other], other_place) > 0] = 0
        area = {"circle": math.pi, "square": 4.0, "triangle": 2.0}[shape.kind]
        return min(full, np.count_nonzero(mask)) / (area * (place.radius * self.width) ** 2)

    def _mask(self, shape: MovingShape, place: Place) -> Pixels:
        """Return a shape's coverage of each pixel, 0 to 255."""
        mask = np.zeros((self.height, self.width), np.uint8)
        scale = self.width * 2**_SUBPIXEL_BITS
        x, y, radius = (value * scale for value in (place.x, place.y, place.radius))
        if shape.kind == "circle":
            center = round(x), round(y)
            cv2.circle(mask, center, round(radius), 255, -1, cv2.LINE_AA, _SUBPIXEL_BITS)
            return mask
        corners = [(x - radius, y + radius), (x + radius, y + radius)]
        if shape.kind == "square":
            corners += [(x + radius, y - radius), (x - radius, y - radius)]
        else:
            corners += [(x, y - radius)]
        points = np.rint(np.array(corners)).astype(np.int32)
        cv2.fillConvexPoly(mask, points, 255, cv2.LINE_AA, _SUBPIXEL_BITS)
        return mask

    def _fill(self, name: str, shape: MovingShape, place: Place) -> NDArray[np.float32]:
        color = np.asarray(COLORS[shape.color], np.float32)
        if not shape.is_textured:
            return np.broadcast_to(color, (self.height, self.width, 3))
        pattern = _texture(64, 64, sum(map(ord, name)) + self.seed)
        scale = 2 * place.radius * self.width / 64
        left, top = (place.x - place.radius) * self.width, (place.y - place.radius) * self.width
        matrix = np.array([[scale, 0, left], [0, scale, top]])
        size = self.width, self.height
        moved = cv2.warpAffine(pattern, matrix, size, borderMode=cv2.BORDER_REFLECT)
        return np.asarray(np.clip(color + 60 * moved[..., None], 0, 255), np.float32)

    def _draw_ground(self, number: int) -> Pixels:
        flat = np.full((self.height, self.width, 3), self.ground.level, np.float32)
        if self.ground.contrast:
            is_cut = self.cut_at is not None and number >= self.cut_at
            texture = _texture(self.height, 3 * self.width, self.seed + 1000 * is_cut)
            shift = -self.ground.pan(number) * self.width - self.width
            matrix = np.array([[1.0, 0, shift], [0, 1.0, 0]])
            size = self.width, self.height
            moved = cv2.warpAffine(texture, matrix, size, borderMode=cv2.BORDER_REFLECT)
            flat += self.ground.contrast * moved[..., None]
        return np.clip(flat, 0, 255).astype(np.uint8)


def line(start: Place, end: Place, frames: int, first: int = 0) -> Path:
    """Return a path from one place to another, which begins at frame ``first`` and goes on."""

    def path(number: int) -> Place | None:
        if number < first:
            return None
        share = (number - first) / frames
        return Place(
            *(a + share * (b - a) for a, b in zip(_astuple(start), _astuple(end), strict=True))
        )

    return path


def to_and_fro(start: Place, end: Place, frames: int) -> Path:
    """Return a path that goes from one place to another in ``frames`` frames, and back."""
    forth = line(start, end, frames)

    def path(number: int) -> Place | None:
        phase = number % (2 * frames)
        return forth(min(phase, 2 * frames - phase))

    return path


def stay(place: Place) -> Path:
    """Return the path of a shape that doesn't move."""
    return lambda number: place


def _astuple(place: Place) -> tuple[float, float, float]:
    return place.x, place.y, place.radius


def _paint(canvas: Pixels, fill: NDArray[np.float32], mask: Pixels) -> None:
    coverage = mask[..., None].astype(np.float32) / 255
    canvas[:] = np.rint(canvas + coverage * (fill - canvas)).astype(np.uint8)


_textures: dict[tuple[int, int, int], NDArray[np.float32]] = {}


def _texture(height: int, width: int, seed: int) -> NDArray[np.float32]:
    """Return smooth noise of about -1 to 1, at three scales."""
    key = height, width, seed
    if key not in _textures:
        rng = np.random.default_rng(seed)
        total = np.zeros((height, width), np.float32)
        for sigma in (1.5, 4, 12):
            layer = rng.standard_normal((height, width)).astype(np.float32)
            layer = cv2.GaussianBlur(layer, (0, 0), min(sigma, height / 6))
            total += layer / layer.std()
        _textures[key] = np.clip(total / 4, -1, 1)
    return _textures[key]
