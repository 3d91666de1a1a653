from __future__ import annotations

import numpy as np
import pytest

from models.pocket.scenes import COLORS
from raylens.realtime.tracking.frames import FrameRing, SmallFrame, shrink


def plain(height: int, width: int, rgb: tuple[int, int, int] = (128, 128, 128)):
    return np.full((height, width, 3), rgb, np.uint8)


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [
        (480, 640, (320, 240)),
        (2160, 3840, (320, 180)),
        (1920, 1080, (180, 320)),
        (64, 64, (320, 320)),
        (65, 97, (320, 214)),
        (64, 4096, (4096, 64)),
        (4096, 64, (64, 4096)),
    ],
)
def test_the_longest_side_is_320_unless_the_other_one_would_vanish(height, width, size) -> None:
    frame = shrink(7, plain(height, width))
    assert frame.size == size
    assert frame.id == 7
    assert frame.colors.shape == (round(size[1] / 4), round(size[0] / 4), 3)


def test_a_color_that_is_as_bright_as_the_ground_is_seen() -> None:
    for color in COLORS.values():
        for level in range(90, 166, 5):
            ground = int(shrink(0, plain(64, 64, (level,) * 3)).gray.mean())
            assert abs(int(shrink(0, plain(64, 64, color)).gray.mean()) - ground) >= 25


def test_places_stay_where_they_are() -> None:
    pixels = plain(2160, 3840)
    pixels[540:1080, 1920:2880] = 255
    gray = shrink(0, pixels).gray
    rows, columns = np.nonzero(gray > gray.min() + 20)
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (160, 239, 45, 89)


def frame(number: int) -> SmallFrame:
    return shrink(number, plain(64, 64))


def test_the_ring_keeps_the_last_frames() -> None:
    ring = FrameRing(3)
    assert ring.newest is None
    assert ring.since(0) == []
    for number in (0, 2, 4, 6):
        ring.append(frame(number))
    assert ring.newest is not None
    assert ring.newest.id == 6
    assert [kept.id for kept in ring.since(2)] == [2, 4, 6]
    assert [kept.id for kept in ring.since(6)] == [6]


def test_instead_of_a_frame_that_was_never_added_the_one_before_it_counts() -> None:
    ring = FrameRing(3)
    for number in (2, 4, 6):
        ring.append(frame(number))
    assert [kept.id for kept in ring.since(5)] == [4, 6]
    assert ring.since(1) == []
