from __future__ import annotations

import random
from itertools import combinations

import pytest

from raylens.realtime.overlay.blending import Rectangle
from raylens.realtime.overlay.labels import LabelSpace

WIDTH, HEIGHT = 320, 240
SIZE = (30, 16)


def overlaps(one: Rectangle, other: Rectangle) -> bool:
    return (
        one.left < other.right
        and other.left < one.right
        and one.top < other.bottom
        and other.top < one.bottom
    )


def is_within(place: Rectangle) -> bool:
    return place.left >= 0 and place.top >= 0 and place.right <= WIDTH and place.bottom <= HEIGHT


def test_a_label_is_above_its_box_and_starts_with_it() -> None:
    place = LabelSpace(WIDTH, HEIGHT).place_beside_box(Rectangle(50, 60, 150, 200), *SIZE)
    assert place == Rectangle(50, 44, 80, 60)


def test_at_the_top_edge_it_is_below() -> None:
    place = LabelSpace(WIDTH, HEIGHT).place_beside_box(Rectangle(50, 15, 150, 200), *SIZE)
    assert place == Rectangle(50, 200, 80, 216)


def test_in_a_box_that_is_as_high_as_the_frame_it_is_inside() -> None:
    for box in (Rectangle(50, 0, 150, 240), Rectangle(50, -1, 150, 241)):
        place = LabelSpace(WIDTH, HEIGHT).place_beside_box(box, *SIZE)
        assert place == Rectangle(50, 0, 80, 16)


@pytest.mark.parametrize("left", [-20, 0, 315, 319])
@pytest.mark.parametrize("top", [-20, 0, 120, 239])
def test_labels_never_leave_the_frame(left: int, top: int) -> None:
    mark = Rectangle(left, top, left + 5, top + 5)
    assert is_within(LabelSpace(WIDTH, HEIGHT).place_beside_box(mark, *SIZE))
    assert is_within(LabelSpace(WIDTH, HEIGHT).place_beside_dot(mark, *SIZE))


def test_a_label_that_is_larger_than_the_frame_starts_at_its_corner() -> None:
    place = LabelSpace(20, 10).place_beside_box(Rectangle(3, 3, 9, 9), *SIZE)
    assert (place.left, place.top) == (0, 0)


@pytest.mark.parametrize("count", [2, 5, 8])
def test_labels_of_equal_boxes_do_not_hide_each_other(count: int) -> None:
    space = LabelSpace(WIDTH, HEIGHT)
    places = [space.place_beside_box(Rectangle(100, 90, 180, 140), *SIZE) for _ in range(count)]
    assert not any(overlaps(one, other) for one, other in combinations(places, 2))


def test_labels_of_many_boxes_close_together_do_not_hide_each_other() -> None:
    rng = random.Random(1)
    space = LabelSpace(WIDTH, HEIGHT)
    places = []
    for _ in range(20):
        left, top = rng.randint(40, 200), rng.randint(30, 150)
        places.append(space.place_beside_box(Rectangle(left, top, left + 60, top + 40), *SIZE))
    assert all(map(is_within, places))
    assert not any(overlaps(one, other) for one, other in combinations(places, 2))


def test_a_label_is_beside_its_dot_and_covers_no_other() -> None:
    space = LabelSpace(WIDTH, HEIGHT)
    dots = [Rectangle(x, 100, x + 9, 109) for x in (100, 115, 130)]
    for dot in dots:
        space.add_mark(dot)
    places = [space.place_beside_dot(dot, *SIZE) for dot in dots]
    assert not any(overlaps(place, dot) for place in places for dot in dots)
    assert not any(overlaps(one, other) for one, other in combinations(places, 2))
    alone = LabelSpace(WIDTH, HEIGHT)
    alone.add_mark(dots[0])
    assert alone.place_beside_dot(dots[0], *SIZE).left == dots[0].right


def test_labels_keep_clear_of_blocked_areas() -> None:
    space = LabelSpace(WIDTH, HEIGHT)
    bar = Rectangle(0, 200, WIDTH, HEIGHT)
    space.block(bar)
    assert not overlaps(space.place_beside_box(Rectangle(50, -1, 150, 199), *SIZE), bar)
