"""Frames to pixels and back, and their times."""

from __future__ import annotations

import numpy as np
import pytest

from raylens.realtime.webrtc.pictures import (
    CLOCK_RATE,
    FrameRateLimit,
    FrameRateMeter,
    Timeline,
    fit,
    to_picture,
    to_pixels,
)
from testing.webrtc_client import draw_number, read_number


@pytest.mark.parametrize("size", [(320, 240), (321, 241), (64, 64), (1279, 719)])
def test_pixels_survive_the_way_there_and_back(size: tuple[int, int]) -> None:
    pixels = draw_number(1234, *size)
    picture = to_picture(pixels, 90)
    back = to_pixels(picture, 10_000_000)
    assert back.shape == pixels.shape
    assert back.dtype == np.uint8
    assert read_number(back) == 1234
    assert np.abs(back[-8:, :8].astype(int) - pixels[-8:, :8]).max() <= 3
    assert float(picture.time) == pytest.approx(0.001)


def test_a_large_frame_is_scaled_down_in_its_shape() -> None:
    pixels = to_pixels(to_picture(draw_number(77, 640, 480), 0), 320 * 240)
    assert pixels.shape == (240, 320, 3)
    assert read_number(pixels) == 77


@pytest.mark.parametrize(
    ("size", "max_pixels", "fitted"),
    [
        ((1920, 1080), 1920 * 1080, (1920, 1080)),
        ((3840, 2160), 1920 * 1080, (1920, 1080)),
        ((641, 481), 641 * 481, (641, 481)),
        ((10_000, 10), 4096, (2022, 2)),
    ],
)
def test_the_size_fits(size: tuple[int, int], max_pixels: int, fitted: tuple[int, int]) -> None:
    assert fit(*size, max_pixels) == fitted


def test_times_begin_at_zero_and_keep_their_distances() -> None:
    timeline = Timeline()
    assert [timeline.map(5000 + pts, 7.0 + pts / CLOCK_RATE) for pts in (0, 3000, 9000)] == [
        0,
        3000,
        9000,
    ]


def test_a_burst_after_a_gap_in_the_network_keeps_its_distances() -> None:
    timeline = Timeline()
    timeline.map(0, 0.0)
    assert [timeline.map(pts, 2.0) for pts in (3000, 6000, 180_000)] == [3000, 6000, 180_000]


@pytest.mark.parametrize("leap", [-500_000, 2**32, 0])
def test_times_rise_if_the_sender_begins_anew(leap: int) -> None:
    timeline = Timeline()
    timeline.map(0, 0.0)
    last = timeline.map(600_000, 6.7)
    after = timeline.map(600_000 + leap, 7.7)
    assert after == last + CLOCK_RATE
    assert timeline.map(603_000 + leap, 7.73) == after + 3000


def test_a_pause_of_the_camera_is_no_leap() -> None:
    timeline = Timeline()
    timeline.map(0, 0.0)
    assert timeline.map(600 * CLOCK_RATE, 600.0) == 600 * CLOCK_RATE


@pytest.mark.parametrize(
    ("fps", "taken"), [(15, 15), (30, 30), (29.97, 29.97), (45, 30), (60, 30), (240, 30)]
)
def test_frames_that_come_too_fast_are_left_out(fps: float, taken: float) -> None:
    limit = FrameRateLimit(30)
    rng = np.random.default_rng(0)
    times = [round((n + rng.uniform(-0.1, 0.1)) * CLOCK_RATE / fps) for n in range(round(20 * fps))]
    assert sum(map(limit.takes, times)) / 20 == pytest.approx(taken, rel=0.05)


def test_the_measured_rate_is_that_of_the_last_frames() -> None:
    meter = FrameRateMeter(frames=10)
    meter.add(0.0)
    assert meter.fps is None
    for number in range(20):
        meter.add(100 + number / 25)
    assert meter.fps == pytest.approx(25)
