from __future__ import annotations

import pytest

from raylens.cli.errors import UsageError
from raylens.cli.watch.plan import FILE_FPS, Outputs, Plan, check_plan, choose_fps
from raylens.realtime.settings import MoondreamConfig
from raylens.realtime.sources.base import SourceAddress, SourceKind

FILE = SourceAddress(SourceKind.FILE, "a.mp4")
FOLDER = SourceAddress(SourceKind.FOLDER, ".")
CAMERA = SourceAddress(SourceKind.CAMERA, "/dev/video0")


@pytest.mark.parametrize(
    ("address", "is_followed", "frames", "every", "fps", "chosen"),
    [
        (FILE, False, 1, None, None, FILE_FPS),
        (FILE, False, 1, 5, None, None),
        (FILE, False, 1, None, 7.0, 7.0),
        (FOLDER, False, 3, None, None, None),
        (FOLDER, True, 1, None, None, None),
        (FOLDER, True, 3, None, None, FILE_FPS),
        (CAMERA, False, 1, None, None, None),
        (CAMERA, False, 3, None, None, FILE_FPS),
        (CAMERA, False, 3, 2, None, None),
    ],
)
def test_the_pace_depends_on_the_source(
    address: SourceAddress,
    is_followed: bool,
    frames: int,
    every: int | None,
    fps: float | None,
    chosen: float | None,
) -> None:
    assert choose_fps(address, is_followed, frames, every, fps) == chosen


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("inf"), float("nan")])
def test_a_time_is_positive_and_has_an_end(seconds: float) -> None:
    with pytest.raises(UsageError, match="--seconds: expected more than 0"):
        check_plan(Plan(CAMERA, MoondreamConfig(), Outputs(), seconds=seconds))
    with pytest.raises(UsageError, match="--fps: expected more than 0"):
        choose_fps(CAMERA, False, 1, None, seconds)
