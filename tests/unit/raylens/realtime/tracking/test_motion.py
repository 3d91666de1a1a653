from __future__ import annotations

import numpy as np
import pytest

from raylens.realtime.tracking.motion import Floats, Motion, fit_motion


def some_points(count: int, seed: int) -> Floats:
    return np.random.default_rng(seed).uniform(0, 80, (count, 2)).astype(np.float32)


@pytest.mark.parametrize("scale", [0.7, 1.0, 1.4])
@pytest.mark.parametrize("wrong_share", [0.0, 0.2, 0.4])
def test_most_points_tell_the_motion_although_others_move_otherwise(scale, wrong_share) -> None:
    truth = Motion(scale, 12.5, -7.25)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        before = some_points(20, seed)
        after = truth.move(before) + rng.normal(0, 0.2, before.shape).astype(np.float32)
        wrong = rng.permutation(20)[: round(20 * wrong_share)]
        after[wrong] = rng.uniform(-40, 120, (len(wrong), 2))
        motion, agrees = fit_motion(before, after)
        corners = np.array(((0, 0), (80, 80)), np.float32)
        assert np.abs(motion.move(corners) - truth.move(corners)).max() < 1.0
        assert np.count_nonzero(agrees[wrong]) <= 1
        assert np.count_nonzero(agrees) >= 20 - len(wrong) - 1


def test_an_object_of_which_one_side_sticks_to_the_ground_is_not_taken_to_shrink() -> None:
    # The box moved by 5; three of its features on the trailing side stayed.
    before = np.array([(0, 0), (0, 20), (0, 40), (40, 0), (40, 20), (40, 40), (20, 40)], np.float32)
    after = before + np.array((5, 0), np.float32)
    after[:3] = before[:3]
    motion, _ = fit_motion(before, after)
    assert motion.scale == pytest.approx(1.0, abs=0.01)
    assert motion.dx == pytest.approx(5, abs=0.1)


def test_a_single_point_shifts() -> None:
    motion, agrees = fit_motion(np.zeros((1, 2), np.float32), np.full((1, 2), 3, np.float32))
    assert motion == Motion(1.0, 3.0, 3.0)
    assert agrees.tolist() == [True]


def test_undoing_a_motion_leads_back() -> None:
    motion = Motion(1.5, 4.0, -2.0)
    points = some_points(9, 0)
    assert np.allclose(motion.undo(motion.move(points)), points, atol=1e-4)
    box = np.array((1, 2, 3, 4), np.float32)
    assert motion.move(box).tolist() == [5.5, 1.0, 8.5, 4.0]
