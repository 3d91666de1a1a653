from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from raylens.realtime.overlay.blending import Rectangle, blend, fill, make_patch, outline

COLOR = (0, 220, 100)


def noise(height: int, width: int) -> Any:
    return np.random.default_rng(height * 1000 + width).integers(
        0, 256, (height, width, 3), np.uint8
    )


@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (4, 1), (2, 3), (4, 4), (31, 17)])
@pytest.mark.parametrize("opacity", [0.0, 0.12, 0.8, 1.0])
def test_a_fill_mixes_the_color_with_the_ground(shape: tuple[int, int], opacity: float) -> None:
    ground = noise(*shape)
    drawn = ground.copy()
    fill(drawn, Rectangle(-5, -5, 50, 50), COLOR, opacity)
    expected = ground * (1 - opacity) + np.array(COLOR) * opacity
    assert np.abs(drawn - expected).max() <= 1
    if opacity == 1:
        assert (drawn == COLOR).all()


def test_a_fill_changes_its_area_only() -> None:
    drawn = np.zeros((20, 30, 3), np.uint8)
    fill(drawn, Rectangle(3, 4, 10, 9), COLOR, 1.0)
    inside = np.zeros((20, 30), bool)
    inside[4:9, 3:10] = True
    assert ((drawn == COLOR).all(axis=2) == inside).all()
    assert not drawn[~inside].any()


@pytest.mark.parametrize(
    "area",
    [
        Rectangle(40, 0, 50, 10),
        Rectangle(0, -9, 9, 0),
        Rectangle(5, 5, 5, 9),
        Rectangle(9, 9, 2, 2),
    ],
)
def test_nothing_is_drawn_outside_the_frame_or_in_an_empty_area(area: Rectangle) -> None:
    drawn = np.zeros((20, 30, 3), np.uint8)
    fill(drawn, area, COLOR, 1.0)
    assert not drawn.any()


def test_an_outline_blends_each_pixel_once() -> None:
    drawn = np.zeros((40, 60, 3), np.uint8)
    outline(drawn, Rectangle(5, 6, 50, 30), 3, (200, 200, 200), 0.5)
    assert set(np.unique(drawn)) == {0, 100}
    is_line = np.zeros((40, 60), bool)
    is_line[6:30, 5:50] = True
    is_line[9:27, 8:47] = False
    assert (drawn.any(axis=2) == is_line).all()


@pytest.mark.parametrize("size", [1, 2, 5, 6])
def test_an_outline_fills_a_rectangle_that_is_no_wider_than_its_lines(size: int) -> None:
    drawn = np.zeros((40, 60, 3), np.uint8)
    outline(drawn, Rectangle(5, 6, 5 + size, 20), 3, COLOR, 1.0)
    assert (drawn.any(axis=2).sum()) == size * 14


@pytest.mark.parametrize(
    ("left", "top"), [(3, 4), (-4, 2), (25, 15), (0, -6), (-50, 0), (100, 100)]
)
def test_a_patch_is_blended_by_its_alpha_and_cut_off_at_the_frame(left: int, top: int) -> None:
    rng = np.random.default_rng(1)
    alpha = rng.random((8, 9)).astype(np.float32)
    color = (rng.random((8, 9, 3)) * 255).astype(np.float32) * alpha[..., None]
    ground = noise(20, 30)
    expected = ground.astype(float)
    for y in range(8):
        for x in range(9):
            if 0 <= top + y < 20 and 0 <= left + x < 30:
                place = expected[top + y, left + x]
                place[:] = place * (1 - 0.7 * alpha[y, x]) + 0.7 * color[y, x]
    drawn = ground.copy()
    blend(drawn, make_patch(color, alpha, 0.7), left, top)
    assert np.abs(drawn - expected).max() <= 1.5


def test_drawing_works_on_a_part_of_a_frame() -> None:
    whole = np.zeros((40, 60, 3), np.uint8)
    fill(whole[10:20, 20:40], Rectangle(0, 0, 100, 3), COLOR, 1.0)
    assert (whole[10:13, 20:40] == COLOR).all()
    assert whole.any(axis=2).sum() == 60
