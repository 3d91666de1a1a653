from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from raylens.cli.errors import UsageError
from raylens.cli.watch.video import MAX_SIDE, Mp4File


def write(path: Path, times: list[float], sides: tuple[int, int] = (64, 48)) -> None:
    file = Mp4File(path)
    for number, time in enumerate(times):
        file.write(np.full((sides[1], sides[0], 3), 5 * number, np.uint8), time)
    file.finish()


def read(path: Path) -> tuple[list[float], float]:
    """Return the times of the frames, and the length of the video."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        length = float((stream.duration or 0) * (stream.time_base or 0))
        return [float(frame.time or 0) for frame in container.decode(stream)], length


@pytest.mark.parametrize(
    ("times", "length"),
    [
        ([number / 30 for number in range(40)], 40 / 30),
        ([number * 1001 / 30000 for number in range(40)], 40 * 1001 / 30000),
        ([0.0, 0.1, 0.5, 2.0, 7.0], 12.0),
        ([0.0], 0.04),
    ],
)
def test_times_and_length_are_kept(tmp_path: Path, times: list[float], length: float) -> None:
    write(tmp_path / "a.mp4", times)
    read_times, read_length = read(tmp_path / "a.mp4")
    assert read_times == pytest.approx(times, abs=2e-5)
    assert read_length == pytest.approx(length, abs=0.001)


def test_times_that_repeat_are_moved_apart(tmp_path: Path) -> None:
    write(tmp_path / "a.mp4", [0.0, 0.0, 0.0, 1.0])
    times, _ = read(tmp_path / "a.mp4")
    assert times == sorted(set(times))


def test_a_frame_of_another_size_is_scaled(tmp_path: Path) -> None:
    file = Mp4File(tmp_path / "a.mp4")
    file.write(np.zeros((48, 64, 3), np.uint8), 0.0)
    file.write(np.full((96, 128, 3), 255, np.uint8), 0.1)
    file.finish()
    with av.open(str(tmp_path / "a.mp4")) as container:
        *_, last = container.decode(video=0)
        assert (last.width, last.height) == (64, 48)
        assert last.to_ndarray(format="rgb24").mean() > 250


def test_an_unfinished_file_has_another_name_and_goes(tmp_path: Path) -> None:
    file = Mp4File(tmp_path / "a.mp4")
    file.write(np.zeros((48, 64, 3), np.uint8), 0.0)
    assert [path.name for path in tmp_path.iterdir()] == [".a.mp4.part"]
    file.discard()
    assert list(tmp_path.iterdir()) == []
    file.discard()


def test_a_file_without_frames_is_none(tmp_path: Path) -> None:
    Mp4File(tmp_path / "a.mp4").finish()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_known_at_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--out: .*a\.mp4: No such file"):
        Mp4File(tmp_path / "no" / "a.mp4")


@pytest.mark.parametrize("sides", [(MAX_SIDE + 2, 40), (40, MAX_SIDE + 2)])
def test_a_picture_that_is_too_large_is_known_at_once(
    tmp_path: Path, sides: tuple[int, int]
) -> None:
    with pytest.raises(UsageError, match=f"--out: {sides[0]}×{sides[1]} pixels; H.264 takes"):
        write(tmp_path / "a.mp4", [0.0], sides)
    Mp4File(tmp_path / "a.mp4").finish()
    assert list(tmp_path.iterdir()) == []


def test_the_largest_picture(tmp_path: Path) -> None:
    write(tmp_path / "a.mp4", [0.0], (MAX_SIDE, 40))
    assert read(tmp_path / "a.mp4")[0] == [0.0]
