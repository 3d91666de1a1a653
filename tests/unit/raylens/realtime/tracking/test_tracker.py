from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from raylens.core.types import Location, Region
from raylens.realtime.tracking.track import MAX_AWAY, MAX_MISSED
from raylens.realtime.tracking.tracker import Tracker
from testing.moving_shapes import Ground, MovingShape, Place, ShapeVideo, line, stay
from testing.shape_videos import FRAMES, VIDEOS
from testing.tracking import Model, RecordedVideo, Score, overlap, play

FLAT = (
    "still",
    "moving",
    "moving, 128×96",
    "moving, as bright as the ground",
    "fast",
    "going round",
)
DIFFICULT = (
    "growing",
    "entering and leaving",
    "textured ground",
    "all textured",
    "panning camera",
    "panning camera, moving",
)
CROSSING = ("crossing", "crossing, one color", "crossing, one color, hidden")


@cache
def recorded(name: str) -> RecordedVideo:
    video = VIDEOS[name]
    if video.width == 640:  # a quarter of the time
        video = replace(video, width=320, height=240)
    return RecordedVideo(video, FRAMES)


def check(score: Score, least: float, mean: float) -> None:
    assert min(score.followed) >= least, score.worst_at
    assert np.mean(score.followed) >= mean
    assert not score.has_swapped
    assert score.renumbered == 0


@pytest.mark.parametrize(("interval", "delay"), [(1, 10), (5, 0), (10, 3), (30, 10)])
@pytest.mark.parametrize("name", FLAT)
def test_flat_shapes_are_followed_whatever_the_interval_and_the_delay(
    name, interval, delay
) -> None:
    score = play(recorded(name), FRAMES, interval, delay)
    check(score, least=0.95, mean=0.98)
    assert name == "still" or np.mean(score.fixed) < 0.8


@pytest.mark.parametrize(("interval", "delay"), [(5, 0), (5, 10), (30, 3)])
@pytest.mark.parametrize("name", DIFFICULT)
def test_texture_growth_edges_and_a_panning_camera_are_no_obstacle(name, interval, delay) -> None:
    check(play(recorded(name), FRAMES, interval, delay), least=0.8, mean=0.95)


@pytest.mark.parametrize(("interval", "delay"), [(1, 0), (5, 0), (5, 10), (10, 3), (30, 10)])
@pytest.mark.parametrize("name", CROSSING)
def test_numbers_stay_with_objects_that_cross(name, interval, delay) -> None:
    check(play(recorded(name), FRAMES, interval, delay), least=0.9, mean=0.98)


def test_boxes_that_are_a_little_wrong_stay_as_good_as_they_are() -> None:
    score = play(recorded("moving"), FRAMES, 5, 3, Model(jitter=0.05))
    truth, seen = VIDEOS["moving"].boxes(0), Model(jitter=0.05).look(VIDEOS["moving"], 0, 0)
    assert np.mean(score.followed) >= 0.87
    assert min(score.followed) >= 0.8
    assert min(overlap(truth[name], seen[name]) for name in truth) < 0.95
    assert not score.has_swapped


@pytest.mark.parametrize("name", ["moving", "crossing, one color", "all textured"])
def test_numbers_survive_results_that_miss_an_object(name) -> None:
    names = list(VIDEOS[name].shapes)
    misses = {names[0]: frozenset({2, 3, 8}), names[1]: frozenset({5, 6, 9})}
    score = play(recorded(name), FRAMES, 5, 3, Model(misses=misses))
    assert not score.has_swapped
    assert score.renumbered == 0


Boxes = Mapping[int, list[Region]]
BOX = Region(0.3, 0.3, 0.5, 0.5)
OTHER = Region(0.7, 0.6, 0.9, 0.8)


def square(region: Region, color: str = "blue") -> MovingShape:
    """Return a still square with a box, in a square picture."""
    radius = (region.x_max - region.x_min) / 2
    return MovingShape(
        "square", color, stay(Place(region.x_min + radius, region.y_min + radius, radius))
    )


def picture(*regions: Region, contrast: int = 0, seed: int = 0, side: int = 320):
    shapes = {str(number): square(region) for number, region in enumerate(regions)}
    return ShapeVideo(shapes, Ground(contrast=contrast), side, side, seed=seed).draw(0)


def feed(tracker: Tracker, frames: range, pixels) -> None:
    for number in frames:
        tracker.add(number, pixels)


def numbers(tracker: Tracker) -> tuple[int, ...]:
    return tracker.shown().region_numbers


def is_near(region: Region, other: Region, within: float = 0.02) -> bool:
    return overlap(region, other) > 1 - 5 * within


def test_objects_are_numbered_in_the_order_in_which_they_are_found() -> None:
    tracker = Tracker()
    tracker.add(0, picture(BOX, OTHER))
    tracker.observe(0, [BOX], [])
    assert numbers(tracker) == (1,)
    tracker.add(1, picture(BOX, OTHER))
    tracker.observe(1, [OTHER, BOX], [])
    shown = tracker.shown()
    assert shown.region_numbers == (1, 2)
    assert is_near(shown.regions[0], BOX)
    assert is_near(shown.regions[1], OTHER)


def test_what_a_result_does_not_contain_is_not_shown_but_keeps_its_number_for_a_while() -> None:
    tracker = Tracker()
    pixels = picture(BOX, OTHER)
    for number in range(MAX_MISSED + 1):
        feed(tracker, range(10 * number, 10 * number + 10), pixels)
        tracker.observe(10 * number, [BOX] if number == 0 else [], [])
        assert numbers(tracker) == ((1,) if number == 0 else ())
    feed(tracker, range(100, 101), pixels)
    tracker.observe(100, [BOX], [])
    assert numbers(tracker) == (1,)


def test_a_number_that_was_away_for_too_long_is_not_given_again() -> None:
    tracker = Tracker()
    pixels = picture(BOX)
    for number in range(MAX_MISSED + 2):
        tracker.add(10 * number, pixels)
        tracker.observe(10 * number, [BOX] if number == 0 else [], [])
    tracker.add(100, pixels)
    tracker.observe(100, [BOX], [])
    assert numbers(tracker) == (2,)


def test_many_results_in_a_short_time_do_not_use_up_a_number() -> None:
    tracker = Tracker()
    pixels = picture(BOX)
    for number in range(MAX_AWAY):
        tracker.add(number, pixels)
        tracker.observe(number, [BOX] if number in (0, MAX_AWAY - 1) else [], [])
    assert numbers(tracker) == (1,)


def test_another_color_at_the_place_of_a_lost_object_is_another_object() -> None:
    tracker = Tracker()
    for number, color in enumerate(("red", "green", "blue")):
        tracker.add(number, ShapeVideo({"a": square(BOX, color)}, width=320, height=320).draw(0))
        tracker.observe(number, [] if number == 1 else [BOX], [])
    assert numbers(tracker) == (2,)


def test_of_two_objects_that_have_changed_places_the_color_tells_which_is_which() -> None:
    left, right = Region(0.3, 0.3, 0.5, 0.5), Region(0.45, 0.3, 0.65, 0.5)
    tracker = Tracker()
    for number, colors in enumerate((("red", "blue"), ("blue", "red"))):
        shapes = {name: square(box, name) for name, box in zip(colors, (left, right), strict=True)}
        tracker.add(number, ShapeVideo(shapes, width=320, height=320).draw(0))
        tracker.observe(number, [left, right], [])
    shown = tracker.shown()
    assert shown.region_numbers == (1, 2)
    assert overlap(shown.regions[0], right) > 0.99
    assert overlap(shown.regions[1], left) > 0.99


def test_a_result_for_a_frame_that_was_forgotten_is_shown_where_it_was() -> None:
    tracker = Tracker(memory=5)
    feed(tracker, range(20), picture(BOX))
    tracker.observe(3, [OTHER], [])
    (region,) = tracker.shown().regions
    assert overlap(region, OTHER) > 0.999


def test_a_result_that_is_older_than_the_last_one_is_ignored() -> None:
    tracker = Tracker()
    feed(tracker, range(10), picture(BOX, OTHER))
    tracker.observe(6, [BOX], [])
    tracker.observe(5, [OTHER], [])
    tracker.observe(6, [], [])
    assert is_near(tracker.shown().regions[0], BOX)
    assert numbers(tracker) == (1,)


def test_after_a_reset_nothing_is_shown_and_numbers_begin_anew() -> None:
    tracker = Tracker()
    feed(tracker, range(3), picture(BOX))
    tracker.observe(2, [BOX, OTHER], [])
    tracker.reset()
    assert tracker.shown().regions == ()
    tracker.add(3, picture(BOX))
    tracker.observe(3, [OTHER], [])
    assert numbers(tracker) == (1,)


def test_frames_and_results_that_cannot_be_are_refused() -> None:
    tracker = Tracker()
    assert tracker.shown().regions == ()
    with pytest.raises(ValueError, match="was not added"):
        tracker.observe(0, [BOX], [])
    tracker.add(5, picture(BOX))
    with pytest.raises(ValueError, match="frame 5 comes after frame 5"):
        tracker.add(5, picture(BOX))
    with pytest.raises(ValueError, match="frame 6 was not added"):
        tracker.observe(6, [BOX], [])


def test_after_a_cut_boxes_stay_until_the_next_result() -> None:
    # What follows the cut moves, and must not take the boxes with it.
    tracker = Tracker()
    before = picture(BOX, OTHER, contrast=50)
    feed(tracker, range(5), before)
    tracker.observe(0, [BOX, OTHER], [])
    after = ShapeVideo({}, Ground(contrast=50, pan=lambda number: 0.01 * number), 320, 320, seed=9)
    for number in range(5, 15):
        tracker.add(number, after.draw(number))
    shown = tracker.shown()
    assert shown.region_numbers == (1, 2)
    assert is_near(shown.regions[0], BOX)
    assert is_near(shown.regions[1], OTHER)
    tracker.observe(14, [], [])
    assert tracker.shown().regions == ()


def test_a_box_is_clipped_at_the_edge_and_gone_behind_it() -> None:
    path = line(Place(0.7, 0.5, 0.1), Place(1.3, 0.5, 0.1), 30)
    video = ShapeVideo({"a": MovingShape("square", "red", path)}, width=320, height=320)
    tracker = Tracker()
    tracker.add(0, video.draw(0))
    tracker.observe(0, list(video.boxes(0).values()), [])
    for number in range(1, 15):
        tracker.add(number, video.draw(number))
    (region,) = tracker.shown().regions
    assert region.x_max == 1.0
    assert overlap(region, video.boxes(14, 0.0)["a"]) > 0.9
    for number in range(15, 30):
        tracker.add(number, video.draw(number))
    assert tracker.shown().regions == ()


@pytest.mark.parametrize("size", [(160, 120), (1280, 960)])
def test_the_size_of_the_picture_may_change(size) -> None:
    path = line(Place(0.2, 0.35, 0.1), Place(0.8, 0.35, 0.1), 40)
    shapes = {"a": MovingShape("circle", "red", path)}
    videos = [ShapeVideo(shapes), ShapeVideo(shapes, width=size[0], height=size[1])]
    tracker = Tracker()
    for number in range(40):
        video = videos[number >= 15]
        tracker.add(number, video.draw(number))
        if number == 10:
            tracker.observe(0, list(video.boxes(0).values()), [])
        if number >= 10:
            assert overlap(tracker.shown().regions[0], video.boxes(number)["a"]) > 0.9
    assert numbers(tracker) == (1,)


def test_if_the_shape_of_the_picture_changes_boxes_stay_until_the_next_result() -> None:
    tracker = Tracker()
    feed(tracker, range(3), picture(BOX))
    tracker.observe(2, [BOX], [])
    wide = ShapeVideo({"a": square(BOX)}, width=640, height=320)
    for number in range(3, 6):
        tracker.add(number, wide.draw(0))
    assert is_near(tracker.shown().regions[0], BOX)
    tracker.observe(5, [Region(0.3, 0.6, 0.5, 0.99)], [])
    assert len(tracker.shown().regions) == 1


def test_a_small_object_on_a_large_one_moves_on_its_own() -> None:
    still = MovingShape("square", "white", stay(Place(0.5, 0.5, 0.4)))
    path = line(Place(0.3, 0.5, 0.06), Place(0.7, 0.5, 0.06), 40)
    shapes = {"large": still, "small": MovingShape("circle", "red", path)}
    score = play(ShapeVideo(shapes, width=320, height=320), 40, 20, 3)
    check(score, least=0.9, mean=0.95)


def center_distance(tracker: Tracker, truth: Mapping[str, Location]) -> float:
    shown = tracker.shown().locations
    assert len(shown) == len(truth)
    return max(
        min(float(np.hypot(place.x - other.x, place.y - other.y)) for other in shown)
        for place in truth.values()
    )


@pytest.mark.parametrize("name", ["moving", "fast", "going round", "all textured", "growing"])
def test_points_are_followed(name) -> None:
    video = VIDEOS[name]
    tracker = Tracker()
    distances = []
    for number in range(45):
        tracker.add(number, recorded(name).draw(number))
        if number >= 3 and (number - 3) % 10 == 0:
            tracker.observe(number - 3, [], list(video.centers(number - 3).values()))
        if number >= 3:
            distances.append(center_distance(tracker, video.centers(number)))
    assert max(distances) < 0.04
    assert np.mean(distances) < 0.015
    assert len(tracker.shown().location_numbers) == len(video.shapes)
    assert max(tracker.shown().location_numbers) == len(video.shapes)


def test_a_point_does_not_take_the_number_of_a_box() -> None:
    tracker = Tracker()
    tracker.add(0, picture(BOX))
    tracker.observe(0, [BOX], [])
    tracker.add(1, picture(BOX))
    tracker.observe(1, [], [Location(0.4, 0.4)])
    shown = tracker.shown()
    assert (shown.region_numbers, shown.location_numbers) == ((), (2,))


def test_memory_is_bounded_however_long_it_runs() -> None:
    rng = np.random.default_rng(0)
    tracker = Tracker(memory=10)
    pixels = picture(BOX, contrast=50)
    sizes: list[int] = []
    for number in range(120):
        tracker.add(number, pixels)
        # A model that finds something else each time.
        corners = rng.uniform(0, 0.9, (20, 2))
        tracker.observe(number, [Region(x, y, x + 0.02, y + 0.02) for x, y in corners], [])
        sizes.append(count_arrays(tracker))
    assert max(sizes[60:]) <= 1.2 * max(sizes[20:60])


def count_arrays(thing: object, seen: set[int] | None = None) -> int:
    """Return the number of bytes of all arrays in an object."""
    seen = set() if seen is None else seen
    if id(thing) in seen:
        return 0
    seen.add(id(thing))
    if isinstance(thing, np.ndarray):
        return thing.nbytes
    parts: list[object] = []
    if hasattr(thing, "__dict__"):
        parts = list(vars(thing).values())
    elif isinstance(thing, dict):
        parts = list(thing.values())
    elif hasattr(thing, "__iter__") and not isinstance(thing, str):
        parts = list(thing)
    return sum(count_arrays(part, seen) for part in parts)


def flat_frame(rng: np.random.Generator, size: tuple[int, int]):
    return np.full((*size, 3), rng.integers(256), np.uint8)


def noisy_frame(rng: np.random.Generator, size: tuple[int, int]):
    return rng.integers(0, 256, (*size, 3), np.uint8)


def smooth_frame(rng: np.random.Generator, size: tuple[int, int]):
    return ShapeVideo({}, Ground(contrast=50), size[1], size[0]).draw(0)


MAKERS: tuple[Callable[..., np.ndarray], ...] = (flat_frame, noisy_frame, smooth_frame)


@pytest.mark.parametrize("seed", range(12))
def test_whatever_comes_what_is_shown_is_in_the_picture(seed) -> None:
    rng = np.random.default_rng(seed)
    tracker = Tracker(int(rng.choice([1, 3, 90])))
    number = 0
    for _ in range(25):
        number += int(rng.choice([1, 1, 1, 7]))
        height, width = rng.choice([64, 65, 101, 240, 640], 2)
        size = (int(height), int(width)) if rng.random() < 0.2 else (120, 160)
        tracker.add(number, MAKERS[rng.integers(3)](rng, size))
        if rng.random() < 0.5:
            # Also boxes that are empty, inside out, or beyond the edges.
            corners = rng.uniform(-0.2, 1.2, (rng.integers(0, 12), 4)).round(1)
            regions = [Region(*(float(value) for value in box)) for box in corners]
            places = [Location(*map(float, point)) for point in rng.uniform(0, 1, (3, 2))]
            tracker.observe(max(0, number - int(rng.integers(9))), regions, places)
        shown = tracker.shown()
        for box in shown.regions:
            assert 0 <= box.x_min <= box.x_max <= 1
            assert 0 <= box.y_min <= box.y_max <= 1
        given = shown.region_numbers + shown.location_numbers
        assert len(set(given)) == len(given) == len(shown.regions) + len(shown.locations)
