"""The map from coordinates of a processed picture to coordinates of the original.

Both are normalized to [0, 1], x to the right, y down. The original is the upright picture, after
any EXIF rotation, as viewers, browsers and OpenCV show it.
"""

from __future__ import annotations

from dataclasses import dataclass

Matrix = tuple[float, float, float, float, float, float]
"""An affine map (a, b, c, d, e, f): x' = a·x + b·y + c and y' = d·x + e·y + f."""

IDENTITY: Matrix = (1, 0, 0, 0, 1, 0)

ORIENTATIONS: dict[int, Matrix] = {
    1: IDENTITY,
    2: (-1, 0, 1, 0, 1, 0),
    3: (-1, 0, 1, 0, -1, 1),
    4: (1, 0, 0, 0, -1, 1),
    5: (0, 1, 0, 1, 0, 0),
    6: (0, 1, 0, -1, 0, 1),
    7: (0, -1, 1, -1, 0, 1),
    8: (0, -1, 1, 1, 0, 0),
}
"""Maps from the upright to the stored picture, by EXIF orientation (EXIF 2.32, tag 0x0112)."""


def compose(outer: Matrix, inner: Matrix) -> Matrix:
    """Return the map that applies ``inner`` and then ``outer``."""
    a, b, c, d, e, f = outer
    g, h, i, j, k, m = inner
    return (
        a * g + b * j,
        a * h + b * k,
        a * i + b * m + c,
        d * g + e * j,
        d * h + e * k,
        d * i + e * m + f,
    )


def invert(matrix: Matrix) -> Matrix:
    """Return the inverse of a map that has one."""
    a, b, c, d, e, f = matrix
    determinant = a * e - b * d
    g = e / determinant
    h = -b / determinant
    j = -d / determinant
    k = a / determinant
    return (g, h, -(g * c + h * f), j, k, -(j * c + k * f))


@dataclass(frozen=True)
class Geometry:
    """The sizes of the original and the processed picture, and the map between them."""

    original: tuple[int, int]
    """(width, height) in pixels."""
    processed: tuple[int, int]
    """(width, height) in pixels."""
    to_original: Matrix = IDENTITY
    """Map from normalized coordinates of the processed picture to those of the original."""

    def then(self, size: tuple[int, int], to_previous: Matrix = IDENTITY) -> Geometry:
        """Return the geometry after one more step.

        ``size`` is the (width, height) of the step's result in pixels; ``to_previous`` maps its
        coordinates to those of the picture before the step.
        """
        return Geometry(self.original, size, compose(self.to_original, to_previous))

    def point(self, x: float, y: float) -> tuple[float, float]:
        """Map a point of the processed picture to the original, clipped to [0, 1]."""
        a, b, c, d, e, f = self.to_original
        return _clip(a * x + b * y + c), _clip(d * x + e * y + f)

    def inverse(self) -> Geometry:
        """Return the geometry that maps from the original to the processed picture."""
        return Geometry(self.processed, self.original, invert(self.to_original))

    def box(
        self, x_min: float, y_min: float, x_max: float, y_max: float
    ) -> tuple[float, float, float, float]:
        """Map a box of the processed picture to (x_min, y_min, x_max, y_max) in the original."""
        x1, y1 = self.point(x_min, y_min)
        x2, y2 = self.point(x_max, y_max)
        return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def _clip(value: float) -> float:
    return min(1.0, max(0.0, value))
