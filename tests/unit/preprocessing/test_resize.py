from __future__ import annotations

import pytest

from preprocessing.resize import fit
from tests.pictures import gradient


@pytest.mark.parametrize(
    ("size", "max_side", "expected"),
    [
        ((40, 30), 64, (40, 30)),
        ((400, 300), 200, (200, 150)),
        ((300, 400), 200, (150, 200)),
        ((2000, 2), 100, (100, 1)),
    ],
)
def test_a_picture_is_brought_down_and_never_enlarged(size, max_side, expected) -> None:
    height, width = fit(gradient(*size), max_side).shape[:2]
    assert (width, height) == expected
