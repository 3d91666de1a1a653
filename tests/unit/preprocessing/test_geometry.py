"""Points and boxes map back to the original, whatever EXIF, crops and resizing did."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from preprocessing.geometry import ORIENTATIONS, Geometry, compose
from preprocessing.header import PictureLimits
from preprocessing.pipeline import run
from raylens.core.recipe import Recipe
from testing.pictures import encode_picture

LIMITS = PictureLimits(max_bytes=10**7, max_pixels=10**7, min_side=4, max_side=4000)
matrices = st.tuples(*[st.floats(-2, 2)] * 6)
orientations = st.integers(1, 8)
sides = st.integers(64, 300)
coordinates = st.floats(0.1, 0.9)


@given(matrices, matrices, st.floats(0, 1), st.floats(0, 1))
def test_compose_applies_the_inner_map_first(outer, inner, x, y) -> None:
    def apply(m, x, y):
        return m[0] * x + m[1] * y + m[2], m[3] * x + m[4] * y + m[5]

    assert apply(compose(outer, inner), x, y) == pytest.approx(
        apply(outer, *apply(inner, x, y)), abs=1e-9
    )


@given(orientations, coordinates, coordinates)
def test_the_inverse_maps_back(orientation, x, y) -> None:
    geometry = Geometry(
        (40, 30), (30, 40), compose(ORIENTATIONS[orientation], (0.5, 0, 0.2, 0, 0.8, 0.1))
    )
    inverse = geometry.inverse()
    assert inverse.point(*geometry.point(x, y)) == pytest.approx((x, y))
    assert (inverse.original, inverse.processed) == (geometry.processed, geometry.original)


def test_boxes_stay_ordered_and_inside() -> None:
    mirrored = Geometry((10, 10), (10, 10), (-1, 0, 1, 0, 1, 0))
    assert mirrored.box(-0.5, 0.25, 0.5, 1.5) == (0.5, 0.25, 1.0, 1.0)


def photograph(width: int, height: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Dark and busy pixels without any flat line, so that bars beside them are found."""
    return np.random.default_rng(5).integers(60, 130, (height, width, 3), dtype=np.uint8)


def oriented(
    stored: np.ndarray[Any, Any], orientation: int, file_format: str = "PNG", **options: Any
) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode_picture(stored, file_format, exif=exif, **options)


def upright(stored: np.ndarray[Any, Any], orientation: int) -> np.ndarray[Any, Any]:
    """Return the picture as Pillow shows it, losslessly."""
    picture = Image.open(io.BytesIO(oriented(stored, orientation)))
    return np.asarray(ImageOps.exif_transpose(picture))


def with_spot(pixels: np.ndarray[Any, Any], column: int, row: int) -> np.ndarray[Any, Any]:
    marked = pixels.copy()
    marked[row - 4 : row + 5, column - 4 : column + 5] = 255
    return marked


def spot_center(
    marked: np.ndarray[Any, Any], unmarked: np.ndarray[Any, Any]
) -> tuple[float, float]:
    """Return the center of the difference between two pictures, normalized to [0, 1]."""
    light = marked.astype(float).mean(-1) - unmarked.astype(float).mean(-1)
    light[np.abs(light) < 3] = 0
    rows, columns = np.indices(light.shape)
    x = (light * (columns + 0.5)).sum() / light.sum() / light.shape[1]
    y = (light * (rows + 0.5)).sum() / light.sum() / light.shape[0]
    return x, y


@settings(deadline=None)
@given(
    orientation=orientations,
    width=sides,
    height=sides,
    size=st.tuples(st.integers(40, 200), st.integers(40, 200)),
    min_size=st.sampled_from([0, 60, 150]),
    preserve=st.booleans(),
    file_format=st.sampled_from(["PNG", "JPEG", "TIFF"]),
    x=coordinates,
    y=coordinates,
)
def test_a_point_maps_back_within_one_pixel(
    orientation, width, height, size, min_size, preserve, file_format, x, y
) -> None:
    """A bright spot maps from the processed picture to where Pillow shows it."""
    stored = np.full((height, width, 3), 40, np.uint8)
    column = int(x * width)
    row = int(y * height)
    spotted = with_spot(stored, column, row)
    options = {"quality": 98, "subsampling": 0} if file_format == "JPEG" else {}
    recipe = Recipe(size=size, min_size=min_size, preserve_aspect_ratio=preserve)
    unmarked = run(oriented(stored, orientation, file_format, **options), recipe, LIMITS)
    marked = run(oriented(spotted, orientation, file_format, **options), recipe, LIMITS)
    original_x, original_y = marked.geometry.point(*spot_center(marked.pixels, unmarked.pixels))
    shown = upright(stored, orientation)
    expected_x, expected_y = spot_center(upright(spotted, orientation), shown)
    assert abs(original_x - expected_x) * shown.shape[1] <= 1.0
    assert abs(original_y - expected_y) * shown.shape[0] <= 1.0
    assert marked.geometry.original == shown.shape[1::-1]
    assert marked.stored_size == (width, height)
    assert marked.geometry.processed == marked.pixels.shape[1::-1]


@settings(deadline=None)
@given(
    orientation=orientations,
    width=sides,
    height=sides,
    bar=st.integers(6, 30),
    across=st.booleans(),
    size=st.sampled_from([(400, 400), (100, 100), (120, 60)]),
    preserve=st.booleans(),
    x=coordinates,
    y=coordinates,
)
def test_a_point_of_a_cropped_picture_maps_back(
    orientation, width, height, bar, across, size, preserve, x, y
) -> None:
    bars = ((0, 0), (bar, bar)) if across else ((bar, bar), (0, 0))
    column = bars[1][0] + int(x * width)
    row = bars[0][0] + int(y * height)
    barred = np.pad(photograph(width, height), (*bars, (0, 0)))
    recipe = Recipe(smart_crop=True, size=size, preserve_aspect_ratio=preserve)
    spotted = with_spot(barred, column, row)
    unmarked = run(oriented(barred, orientation), recipe, LIMITS)
    marked = run(oriented(spotted, orientation), recipe, LIMITS)
    assert any("cut" in step.did for step in marked.steps)
    x_min, y_min, x_max, y_max = marked.geometry.box(0, 0, 1, 1)
    shown = upright(barred, orientation)
    spot_x, spot_y = spot_center(upright(spotted, orientation), shown)
    margin = 6 / min(barred.shape[:2])
    is_inside_x = x_min + margin < spot_x < x_max - margin
    is_inside_y = y_min + margin < spot_y < y_max - margin
    if marked.geometry != unmarked.geometry or not (is_inside_x and is_inside_y):
        return  # the most salient window moved with the spot, or cuts it
    original_x, original_y = marked.geometry.point(*spot_center(marked.pixels, unmarked.pixels))
    assert abs(original_x - spot_x) * shown.shape[1] <= 1.0
    assert abs(original_y - spot_y) * shown.shape[0] <= 1.0


@settings(deadline=None)
@given(
    orientation=orientations,
    width=sides,
    height=sides,
    bar=st.integers(6, 30),
    size=st.integers(40, 400),
)
def test_a_cropped_picture_maps_to_the_box_inside_its_bars(
    orientation, width, height, bar, size
) -> None:
    barred = np.pad(photograph(width, height), ((bar, bar), (0, 0), (0, 0)))
    processed = run(
        oriented(barred, orientation), Recipe(smart_crop=True, size=(size, size)), LIMITS
    )
    x_min, y_min, x_max, y_max = processed.geometry.box(0, 0, 1, 1)
    if orientation >= 5:  # the bars are at the left and the right
        x_min, y_min, x_max, y_max = y_min, x_min, y_max, x_max
    assert (x_min, x_max) == pytest.approx((0, 1))
    assert abs(y_min * barred.shape[0] - bar) <= 1.0
    assert abs(y_max * barred.shape[0] - (bar + height)) <= 1.0
