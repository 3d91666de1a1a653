from __future__ import annotations

import numpy as np
import pytest

from preprocessing.resize import resize, target_size
from raylens.core.recipe import Recipe
from testing.pictures import gradient


@pytest.mark.parametrize(
    ("size", "changes", "expected"),
    [
        ((40, 30), {}, (40, 30)),
        ((400, 300), {"size": (200, 200)}, (200, 150)),
        ((300, 400), {"size": (200, 200)}, (150, 200)),
        ((400, 300), {"size": (500, 100)}, (133, 100)),
        ((2000, 2), {"size": (100, 100)}, (100, 1)),
        ((400, 300), {"size": (1024, 1024), "min_size": 512}, (683, 512)),
        ((400, 30), {"size": (1024, 1024), "min_size": 512}, (1024, 77)),
        ((4000, 1000), {"size": (1024, 1024), "min_size": 512}, (1024, 256)),
        ((700, 600), {"size": (1024, 1024), "min_size": 512}, (700, 600)),
        ((40, 30), {"size": (200, 100), "preserve_aspect_ratio": False}, (200, 100)),
    ],
)
def test_the_target_size_follows_the_recipe(size, changes, expected) -> None:
    assert target_size(size, Recipe(**changes)) == expected


@pytest.mark.parametrize("size", [(20, 15), (80, 60), (80, 15)])
def test_resizing_keeps_the_center_at_the_center(size) -> None:
    pixels = resize(gradient(40, 30), size)
    assert pixels.shape == (size[1], size[0], 3)
    assert pixels.dtype == np.uint8
    center = pixels[size[1] // 2, size[0] // 2, :2]
    assert np.abs(center.astype(int) - 128).max() <= 12
