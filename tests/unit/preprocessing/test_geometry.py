from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from preprocessing.decode import DecodeLimits
from preprocessing.geometry import Geometry, compose
from preprocessing.pipeline import run
from raylens.types import Recipe
from tests.pictures import encoded

LIMITS = DecodeLimits(max_bytes=10**7, max_pixels=10**7, min_side=4, max_side=4000)
matrices = st.tuples(*[st.floats(-2, 2)] * 6)


@given(matrices, matrices, st.floats(0, 1), st.floats(0, 1))
def test_compose_applies_the_inner_map_first(outer, inner, x, y) -> None:
    def apply(m, x, y):
        return m[0] * x + m[1] * y + m[2], m[3] * x + m[4] * y + m[5]

    assert apply(compose(outer, inner), x, y) == pytest.approx(apply(outer, *apply(inner, x, y)), abs=1e-9)


def test_boxes_stay_ordered_and_inside() -> None:
    mirrored = Geometry((10, 10), (10, 10), (-1, 0, 1, 0, 1, 0))
    assert mirrored.box(-0.5, 0.25, 0.5, 1.5) == (0.5, 0.25, 1.0, 1.0)


@given(
    orientation=st.integers(1, 8),
    width=st.integers(20, 200),
    height=st.integers(20, 200),
    max_side=st.integers(64, 256),
    x=st.floats(0.1, 0.9),
    y=st.floats(0.1, 0.9),
)
def test_a_spot_is_found_again_in_the_stored_picture(orientation, width, height, max_side, x, y) -> None:
    """A bright spot drawn into the stored pixels leads back to itself, whatever EXIF and resizing did."""
    stored = np.zeros((height, width, 3), np.uint8)
    column, row = int(x * width), int(y * height)
    stored[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    processed = run(encoded(stored, "PNG", exif=exif), Recipe(max_side=max_side), LIMITS)
    brightness = processed.pixels.astype(float).sum(-1)
    rows, columns = np.indices(brightness.shape)
    seen_x = (brightness * (columns + 0.5)).sum() / brightness.sum() / brightness.shape[1]
    seen_y = (brightness * (rows + 0.5)).sum() / brightness.sum() / brightness.shape[0]
    back_x, back_y = processed.geometry.point(seen_x, seen_y)
    assert abs(back_x * width - (column + 0.5)) <= 1.0
    assert abs(back_y * height - (row + 0.5)) <= 1.0
    assert processed.geometry.original == (width, height)
