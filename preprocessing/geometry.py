"""The map from a processed picture's coordinates back to the original's.

Both are normalized to [0, 1], x to the right, y down. The original is the picture as it is stored
in the file, before any EXIF rotation: the grid of pixels that the caller's own tools index.
"""

from __future__ import annotations

from dataclasses import dataclass

Matrix = tuple[float, float, float, float, float, float]
"""(a, b, c, d, e, f): x' = a·x + b·y + c and y' = d·x + e·y + f."""

IDENTITY: Matrix = (1, 0, 0, 0, 1, 0)

# EXIF 2.32, tag 0x0112: where a point of the upright picture lies in the stored one, by
# orientation.
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


def compose(outer: Matrix, inner: Matrix) -> Matrix:
    """The map that applies ``inner`` and then ``outer``."""
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


@dataclass(frozen=True)
class Geometry:
    """``original`` and ``processed`` are (width, height) in pixels; ``to_original`` maps normalized
    coordinates."""

    original: tuple[int, int]
    processed: tuple[int, int]
    to_original: Matrix = IDENTITY

    def then(self, size: tuple[int, int], back: Matrix = IDENTITY) -> Geometry:
        """After one more step that made a picture of ``size``; ``back`` leads from it to the
        picture before."""
        return Geometry(self.original, size, compose(self.to_original, back))

    def point(self, x: float, y: float) -> tuple[float, float]:
        """A point of the processed picture in the original's coordinates."""
        a, b, c, d, e, f = self.to_original
        return _clip(a * x + b * y + c), _clip(d * x + e * y + f)

    def inverse(self) -> Geometry:
        """The map from the original's coordinates to the processed picture's."""
        a, b, c, d, e, f = self.to_original
        scale = a * e - b * d
        g, h, j, k = e / scale, -b / scale, -d / scale, a / scale
        back = (g, h, -(g * c + h * f), j, k, -(j * c + k * f))
        return Geometry(self.processed, self.original, back)

    def box(
        self, x_min: float, y_min: float, x_max: float, y_max: float
    ) -> tuple[float, float, float, float]:
        """A box of the processed picture as (x_min, y_min, x_max, y_max) in the original's
        coordinates."""
        (x1, y1), (x2, y2) = self.point(x_min, y_min), self.point(x_max, y_max)
        return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def _clip(value: float) -> float:
    return min(1.0, max(0.0, value))
