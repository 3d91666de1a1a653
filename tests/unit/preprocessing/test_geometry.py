"""Points and boxes lead back to the original, whatever EXIF, crops and sizes did."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from preprocessing.decode import DecodeLimits
from preprocessing.geometry import ORIENTATIONS, Geometry, compose
from preprocessing.pipeline import run
from raylens.core.recipe import Recipe
from testing.pictures import encoded

LIMITS = DecodeLimits(max_bytes=10**7, max_pixels=10**7, min_side=4, max_side=4000)
matrices = st.tuples(*[st.floats(-2, 2)] * 6)
orientations = st.integers(1, 8)
sides = st.integers(64, 300)
places = st.floats(0.1, 0.9)


@given(matrices, matrices, st.floats(0, 1), st.floats(0, 1))
def test_compose_applies_the_inner_map_first(outer, inner, x, y) -> None:
    def apply(m, x, y):
        return m[0] * x + m[1] * y + m[2], m[3] * x + m[4] * y + m[5]

    assert apply(compose(outer, inner), x, y) == pytest.approx(
        apply(outer, *apply(inner, x, y)), abs=1e-9
    )


@given(orientations, places, places)
def test_the_inverse_leads_back(orientation, x, y) -> None:
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
    """Dark and busy, so that bars beside it are bars, with no flat line of its own."""
    return np.random.default_rng(5).integers(60, 130, (height, width, 3), dtype=np.uint8)


def oriented(
    stored: np.ndarray[Any, Any], orientation: int, kind: str = "PNG", **options: Any
) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(stored, kind, exif=exif, **options)


def with_spot(pixels: np.ndarray[Any, Any], column: int, row: int) -> np.ndarray[Any, Any]:
    marked = pixels.copy()
    marked[row - 4 : row + 5, column - 4 : column + 5] = 255
    return marked


def middle(marked: np.ndarray[Any, Any], plain: np.ndarray[Any, Any]) -> tuple[float, float]:
    """The middle of what ``marked`` has over ``plain``, normalized."""
    light = marked.astype(float).mean(-1) - plain.astype(float).mean(-1)
    light[np.abs(light) < 3] = 0
    rows, columns = np.indices(light.shape)
    x = (light * (columns + 0.5)).sum() / light.sum() / light.shape[1]
    return x, (light * (rows + 0.5)).sum() / light.sum() / light.shape[0]


@settings(deadline=None)
@given(
    orientation=orientations,
    width=sides,
    height=sides,
    size=st.tuples(st.integers(40, 200), st.integers(40, 200)),
    min_size=st.sampled_from([0, 60, 150]),
    preserve=st.booleans(),
    kind=st.sampled_from(["PNG", "JPEG", "TIFF"]),
    x=places,
    y=places,
)
def test_a_point_leads_back_within_one_pixel(
    orientation, width, height, size, min_size, preserve, kind, x, y
) -> None:
    """A bright spot in the stored pixels is seen in the processed picture, and leads back to
    itself."""
    stored = np.full((height, width, 3), 40, np.uint8)
    column, row = int(x * width), int(y * height)
    options = {"quality": 98, "subsampling": 0} if kind == "JPEG" else {}
    recipe = Recipe(size=size, min_size=min_size, preserve_aspect_ratio=preserve)
    plain = run(oriented(stored, orientation, kind, **options), recipe, LIMITS)
    marked = run(
        oriented(with_spot(stored, column, row), orientation, kind, **options), recipe, LIMITS
    )
    back_x, back_y = marked.geometry.point(*middle(marked.pixels, plain.pixels))
    assert abs(back_x * width - (column + 0.5)) <= 1.0
    assert abs(back_y * height - (row + 0.5)) <= 1.0
    assert marked.geometry.original == (width, height)
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
    x=places,
    y=places,
)
def test_a_point_of_a_cropped_picture_leads_back(
    orientation, width, height, bar, across, size, preserve, x, y
) -> None:
    bars = ((0, 0), (bar, bar)) if across else ((bar, bar), (0, 0))
    column, row = bars[1][0] + int(x * width), bars[0][0] + int(y * height)
    barred = np.pad(photograph(width, height), (*bars, (0, 0)))
    recipe = Recipe(smart_crop=True, size=size, preserve_aspect_ratio=preserve)
    plain = run(oriented(barred, orientation), recipe, LIMITS)
    marked = run(oriented(with_spot(barred, column, row), orientation), recipe, LIMITS)
    assert any("cut" in step.did for step in marked.steps)
    x_min, y_min, x_max, y_max = marked.geometry.box(0, 0, 1, 1)
    spot, margin = (
        ((column + 0.5) / barred.shape[1], (row + 0.5) / barred.shape[0]),
        6 / min(barred.shape[:2]),
    )
    inside = x_min + margin < spot[0] < x_max - margin and y_min + margin < spot[1] < y_max - margin
    if marked.geometry != plain.geometry or not inside:
        return  # the most salient window moved with the spot, or cuts it
    back_x, back_y = marked.geometry.point(*middle(marked.pixels, plain.pixels))
    assert abs(back_x - spot[0]) * barred.shape[1] <= 1.0
    assert abs(back_y - spot[1]) * barred.shape[0] <= 1.0


@settings(deadline=None)
@given(
    orientation=orientations,
    width=sides,
    height=sides,
    bar=st.integers(6, 30),
    size=st.integers(40, 400),
)
def test_the_whole_of_a_cropped_picture_is_the_box_inside_its_bars(
    orientation, width, height, bar, size
) -> None:
    barred = np.pad(photograph(width, height), ((bar, bar), (0, 0), (0, 0)))
    processed = run(
        oriented(barred, orientation), Recipe(smart_crop=True, size=(size, size)), LIMITS
    )
    x_min, y_min, x_max, y_max = processed.geometry.box(0, 0, 1, 1)
    assert (x_min, x_max) == pytest.approx((0, 1))
    assert abs(y_min * barred.shape[0] - bar) <= 1.0
    assert abs(y_max * barred.shape[0] - (bar + height)) <= 1.0
