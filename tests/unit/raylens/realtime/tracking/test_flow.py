from __future__ import annotations

import numpy as np

from raylens.realtime.tracking.flow import find_again, find_features, find_ground
from raylens.realtime.tracking.frames import shrink
from raylens.realtime.tracking.templates import take_template
from testing.moving_shapes import Ground, MovingShape, Place, ShapeVideo, line

STEP = 0.0125
"""Four pixels of a small frame."""


def two_frames(contrast: int = 0):
    """Return frames in which a square moves by 4 pixels to the right, and the square's box."""
    path = line(Place(0.4, 0.35, 0.1), Place(0.4 + STEP, 0.35, 0.1), 1)
    video = ShapeVideo({"a": MovingShape("square", "blue", path)}, Ground(contrast=contrast))
    box = np.array((96, 80, 160, 144), np.float32)
    return [shrink(number, video.draw(number)).gray for number in (0, 1)], box


def test_features_of_a_flat_shape_lie_at_its_corners() -> None:
    (gray, _), box = two_frames()
    corners = np.array([(96, 80), (160, 80), (96, 144), (160, 144)])
    features = find_features(gray, box, 20)
    distances = np.linalg.norm(features[:, None] - corners, axis=2)
    assert len(features) >= 4
    assert distances.min(axis=1).max() < 4
    assert distances.min(axis=0).max() < 4


def test_the_grounds_features_lie_outside_the_boxes() -> None:
    (gray, _), box = two_frames(contrast=50)
    features = find_ground(gray, [box])
    inside = ((features > box[:2] - 6) & (features < box[2:] + 6)).all(axis=1)
    assert len(features) >= 12
    assert not inside.any()


def test_features_are_found_again_where_the_shape_has_moved() -> None:
    (before, after), box = two_frames()
    features = find_features(before, box, 20)
    found, is_good = find_again(before, after, features, np.zeros_like(features))
    assert np.count_nonzero(is_good) >= 4
    assert np.abs(found[is_good] - features[is_good] - (4, 0)).max() < 0.5


def test_after_a_cut_hardly_any_feature_is_consistent() -> None:
    (before, _), _ = two_frames(contrast=50)
    features = find_ground(before, [])
    other = ShapeVideo({}, Ground(contrast=50), seed=1)
    after = shrink(1, other.draw(0)).gray
    _, is_good = find_again(before, after, features, np.zeros_like(features))
    assert np.count_nonzero(is_good) <= 0.2 * len(features)


def test_a_template_is_found_where_the_object_has_moved_and_nowhere_else() -> None:
    (before, after), box = two_frames()
    template = take_template(before, box)
    assert template is not None
    found = template.find(after, box)
    assert found is not None
    assert np.abs(found - box - (4, 0, 4, 0)).max() < 0.5
    assert np.abs(template.correct(after, [box]) - box - (4, 0, 4, 0)).max() < 0.5
    assert template.correct(before, [box]) is box
    assert template.find(np.full_like(after, 100), box) is None


def test_of_two_sizes_the_template_prefers_the_right_one() -> None:
    (before, after), box = two_frames()
    template = take_template(before, box)
    assert template is not None
    too_small = box + np.array((12, 12, -12, -12), np.float32)
    corrected = template.correct(after, [too_small, box])
    assert np.abs(corrected - box - (4, 0, 4, 0)).max() < 0.5


def test_a_box_of_a_few_pixels_has_no_template_and_no_features() -> None:
    (gray, _), _ = two_frames(contrast=50)
    dot = np.array((50, 50, 50, 50), np.float32)
    outside = np.array((400, 300, 500, 400), np.float32)
    assert take_template(gray, dot) is None
    assert len(find_features(gray, outside, 20)) == 0
