from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.pocket.drawing import BRUSHES, draw, encode
from models.pocket.scenes import COLORS, Scene, Shape, questions, random_scene
from training.rows import IGNORED, Row, Segment, pack


def make_shape(kind: str, color: str, cell: int) -> Shape:
    x, y = 50 + 100 * (cell % 3), 50 + 100 * (cell // 3)
    return Shape(kind, color, cell, x, y, 30, COLORS[color])


SCENE = Scene(
    300,
    300,
    120,
    (
        make_shape("circle", "orange", 0),
        make_shape("square", "blue", 4),
        make_shape("triangle", "red", 8),
    ),
)


@pytest.mark.parametrize(
    ("count", "length", "caption"),
    [
        (1, "short", "an orange circle"),
        (2, "short", "an orange circle and a blue square"),
        (
            3,
            "normal",
            "an orange circle at the top left, a blue square at the center and a red triangle at"
            " the bottom right",
        ),
        (1, "long", "One shape on a gray background: an orange circle at the top left"),
        (
            2,
            "long",
            "Two shapes on a gray background: an orange circle at the top left and a blue square at"
            " the center",
        ),
    ],
)
def test_captions_follow_the_grammar(count, length, caption) -> None:
    assert Scene(300, 300, 120, SCENE.shapes[:count]).caption(length) == caption


def test_boxes_and_points_are_normalized_and_ordered() -> None:
    assert SCENE.boxes("blue square") == [
        pytest.approx((120 / 300, 120 / 300, 180 / 300, 180 / 300))
    ]
    assert len(SCENE.points("shape")) == 3
    assert SCENE.boxes("circle") == SCENE.boxes("orange circle")
    assert SCENE.boxes("red circle") == []


@given(st.integers(0, 10**6))
def test_a_random_scene_is_within_its_bounds(seed) -> None:
    rng = random.Random(seed)
    scene = random_scene(rng)
    assert min(scene.width, scene.height) >= 96
    assert max(scene.width, scene.height) <= 1024
    assert 0.49 <= scene.width / scene.height <= 2.05
    cells = [shape.cell for shape in scene.shapes]
    assert cells == sorted(set(cells))
    cell_width, cell_height = scene.width / 3, scene.height / 3
    for shape in scene.shapes:
        x_min, y_min, x_max, y_max = shape.box
        row, column = divmod(shape.cell, 3)
        assert column * cell_width - 1e-6 <= x_min < x_max <= (column + 1) * cell_width + 1e-6
        assert row * cell_height - 1e-6 <= y_min < y_max <= (row + 1) * cell_height + 1e-6
    for question in questions(scene, rng):
        if question.category == "presence":
            name = question.text.split(maxsplit=3)[3].rstrip("?")
            is_present = name in [shape.name for shape in scene.shapes]
            assert (question.answer == "yes") == is_present


@pytest.mark.parametrize("brush", BRUSHES)
@pytest.mark.parametrize("kind", ["circle", "square", "triangle"])
def test_every_brush_covers_the_same_area(brush, kind) -> None:
    shape = make_shape(kind, "red", 0)
    coverage = brush(shape, 0, 0, 100, 100)
    area = {"circle": np.pi * 30**2, "square": 60**2, "triangle": 60 * 60 / 2}[kind]
    assert coverage.min() >= 0
    assert coverage.max() <= 1
    assert coverage.sum() == pytest.approx(area, rel=0.1)
    ys, xs = np.nonzero(coverage > 0.5)
    assert np.allclose([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], shape.box, atol=2)


def test_colors_of_a_picture_differ_from_the_scene_by_noise_only() -> None:
    rng = random.Random(3)
    for _ in range(20):
        pixels = draw(SCENE, rng)
        for shape in SCENE.shapes:
            x, y = int(shape.x), int(shape.y)
            center = pixels[y - 3 : y + 3, x - 3 : x + 3]
            assert np.abs(center.astype(int) - shape.rgb).max() <= 9
        assert np.abs(pixels[100, 200].astype(int) - 120).max() <= 9
        assert len(encode(pixels, rng)[0]) > 500


def test_packed_segments_attend_to_the_prefix_and_themselves_only() -> None:
    rows = [
        Row(
            [1, 2],
            [0],
            [Segment("a", [3, 4, 5], [False, True, True]), Segment("b", [6, 7], [False, True])],
        )
    ]
    batch = pack(rows, pad_id=0, device=torch.device("cpu"))
    assert batch.ids.tolist() == [[1, 2, 3, 4, 5, 6, 7]]
    assert batch.positions.tolist() == [[[0, 1, 2, 3, 4, 2, 3]]]
    assert batch.labels.tolist() == [[IGNORED, IGNORED, 4, 5, IGNORED, 7, IGNORED]]
    mask = batch.mask[0, 0].int().tolist()
    assert mask[4] == [1, 1, 1, 1, 1, 0, 0]
    assert mask[6] == [1, 1, 0, 0, 0, 1, 1]
    assert mask[1] == [1, 1, 0, 0, 0, 0, 0]
