from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raylens.core.errors import InvalidRequest
from raylens.realtime.sources.base import (
    SourceAddress,
    SourceFrame,
    SourceKind,
    SourceOptions,
    SourceUnavailable,
)
from raylens.realtime.sources.folder import FollowedFolder
from raylens.realtime.sources.opening import open_source
from testing.pictures import TURNS, encode_picture, png_header, random_pixels
from tests.unit.raylens.realtime.sources.drawn import jpeg, number_of


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def address(folder: Path) -> SourceAddress:
    return SourceAddress(SourceKind.FOLDER, str(folder))


def test_a_folder_is_a_video_in_natural_order(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        (tmp_path / f"cam{number}.jpg").write_bytes(jpeg(number))
    (tmp_path / "cam3.png").write_bytes(b"no picture")
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / ".cam0.jpg").write_bytes(jpeg(0))
    (tmp_path / "cam4.jpg").mkdir()
    problems: list[str] = []
    options = SourceOptions(picture_interval_s=0.5)
    source = open_source(address(tmp_path), options, problems.append)
    frames = [source.read() for _ in range(3)]
    assert [(number_of(f.pixels), f.time_s) for f in frames if f] == [(1, 0), (2, 0.5), (10, 1.5)]
    assert source.read() is None
    assert problems == [f"{tmp_path}/cam3.png: not a picture that can be read"]
    assert not source.is_live


@pytest.mark.parametrize("orientation", TURNS)
def test_pictures_are_upright(tmp_path: Path, orientation: int) -> None:
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[:24, :32] = 255
    stored = Image.fromarray(pixels).transpose(TURNS[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    (tmp_path / "a.jpg").write_bytes(encode_picture(stored, "JPEG", exif=exif))
    frame = open_source(address(tmp_path)).read()
    assert frame is not None
    assert np.abs(frame.pixels.astype(int) - pixels).mean() < 3


def test_transparency_and_sixteen_bits(tmp_path: Path) -> None:
    clear = np.zeros((8, 8, 4), np.uint8)
    (tmp_path / "a.png").write_bytes(encode_picture(clear))
    (tmp_path / "b.png").write_bytes(encode_picture(np.full((8, 8), 40_000, np.uint16)))
    source = open_source(address(tmp_path))
    levels = [int(frame.pixels[0, 0, 0]) for frame in (source.read(), source.read()) if frame]
    assert levels == [255, 40_000 >> 8]


def test_large_pictures_are_skipped_before_they_are_decoded(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png_header(7000, 5000))
    (tmp_path / "b.jpg").write_bytes(jpeg(1) + bytes(3000))
    problems: list[str] = []
    options = SourceOptions(max_picture_bytes=2000)
    source = open_source(address(tmp_path), options, problems.append)
    assert source.read() is None
    assert problems == [
        f"{tmp_path}/a.png: 7000×5000 pixels; the limit is 33000000 pixels",
        f"{tmp_path}/b.jpg: 2001 bytes; the limit is 2000",
    ]


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="no pictures in this folder"):
        open_source(address(tmp_path)).read()


class Follower:
    """A followed folder that is read without waiting."""

    def __init__(self, folder: Path, follows_links: bool = True) -> None:
        self.problems: list[str] = []
        self.clock = Clock()
        options = SourceOptions(follows_links=follows_links)
        self.source = FollowedFolder(address(folder), options, self.problems.append, self.clock)
        self.source._open()

    def take(self) -> int | None:
        """Return the number of the next picture of those that were found."""
        frame = self.source._take()
        return None if frame is None else number_of(frame.pixels)

    def look(self) -> int | None:
        """Look at the folder, and return the number of the first picture."""
        assert self.take() is None
        self.source._find()
        return self.take()


def test_a_followed_folder_shows_what_comes(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_bytes(jpeg(1))
    follower = Follower(tmp_path)
    assert follower.look() is None
    (tmp_path / "3.jpg").write_bytes(jpeg(3))
    assert follower.look() == 3
    (tmp_path / "2.jpg").write_bytes(jpeg(2))
    assert follower.look() == 2
    assert follower.look() is None
    (tmp_path / "1.jpg").write_bytes(jpeg(9, comment="again"))  # overwritten
    assert follower.look() == 9
    assert follower.look() is None


def test_all_new_pictures_come_before_the_next_look(tmp_path: Path) -> None:
    follower = Follower(tmp_path)
    for number in (1, 2, 3, 4):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(number))
        os.utime(tmp_path / f"{number}.jpg", (1000 + number, 1000 + number))
    assert follower.look() == 1
    (tmp_path / "0.jpg").write_bytes(jpeg(0))
    os.utime(tmp_path / "0.jpg", (1000, 1000))
    (tmp_path / "2.jpg").write_bytes(jpeg(9, comment="again"))
    (tmp_path / "3.jpg").unlink()
    assert [follower.take() for _ in range(3)] == [9, 4, None]
    assert follower.look() == 0
    assert follower.look() is None


def test_looking_takes_a_small_share_of_the_time(tmp_path: Path) -> None:
    """Each look at very many files takes 3 s here."""

    class SlowFolder(FollowedFolder):
        def _wait(self, seconds: float) -> bool:
            waits.append(seconds)
            return len(waits) == 4

    class SlowClock(Clock):
        def __call__(self) -> float:
            self.now += 3
            return self.now

    waits: list[float] = []
    source = SlowFolder(address(tmp_path), SourceOptions(), print, SlowClock())
    with pytest.raises(SourceUnavailable):
        source.read()
    assert min(waits) >= 10 * 3 - 3  # the clock goes on before the wait begins


@pytest.mark.parametrize("follows_links", [True, False])
def test_links_may_be_skipped(tmp_path: Path, follows_links: bool) -> None:
    folder, outside = tmp_path / "folder", tmp_path / "outside.jpg"
    folder.mkdir()
    outside.write_bytes(jpeg(5))
    follower = Follower(folder, follows_links)
    (folder / "link.jpg").symlink_to(outside)
    assert follower.look() == (5 if follows_links else None)
    options = SourceOptions(follows_links=follows_links)
    (folder / "1.jpg").write_bytes(jpeg(1))
    source = open_source(address(folder), options)
    assert [number_of(frame.pixels) for frame in iter(source.read, None)] == [1, 5][
        : 1 + follows_links
    ]


def test_a_file_that_becomes_a_link_after_the_look_is_not_read(tmp_path: Path) -> None:
    folder, outside = tmp_path / "folder", tmp_path / "outside.jpg"
    folder.mkdir()
    outside.write_bytes(jpeg(5))
    follower = Follower(folder, follows_links=False)
    for number in (1, 2):
        (folder / f"{number}.jpg").write_bytes(jpeg(number))
    assert follower.look() == 1
    (folder / "2.jpg").unlink()
    (folder / "2.jpg").symlink_to(outside)
    assert follower.take() is None


def test_files_that_are_being_written_are_tried_again(tmp_path: Path) -> None:
    follower = Follower(tmp_path)
    slow, data = tmp_path / "slow.jpg", encode_picture(random_pixels(64, 48), "JPEG")
    slow.write_bytes(b"")
    assert follower.look() is None
    for part in (10, len(data) // 2, len(data) - 100):
        slow.write_bytes(data[:part])
        follower.clock.now += 1.5
        assert follower.look() is None
    (tmp_path / "fast.jpg").write_bytes(jpeg(6))
    assert follower.look() == 6
    slow.write_bytes(data)
    assert follower.look() is not None
    assert follower.problems == []


def test_a_file_that_stays_broken_is_reported_once(tmp_path: Path) -> None:
    follower = Follower(tmp_path)
    (tmp_path / "bad.jpg").write_bytes(jpeg(5)[:100])
    for _ in range(5):
        assert follower.look() is None
        follower.clock.now += 1.5
    assert len(follower.problems) == 1
    assert "bad.jpg: damaged" in follower.problems[0]
    (tmp_path / "bad.jpg").write_bytes(jpeg(5))
    assert follower.look() == 5


def in_thread(read: Callable[[], SourceFrame | None]) -> tuple[threading.Thread, list[object]]:
    results: list[object] = []

    def run() -> None:
        try:
            results.append(read())
        except SourceUnavailable as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, results


def test_close_ends_the_waiting_for_files(tmp_path: Path) -> None:
    source = open_source(address(tmp_path), SourceOptions(is_followed=True))
    assert source.is_live
    thread, results = in_thread(source.read)
    source.close()
    thread.join(2)
    assert not thread.is_alive()
    assert isinstance(results[0], SourceUnavailable)


def test_a_folder_that_vanishes_is_unavailable(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    follower = Follower(folder)
    folder.rmdir()
    with pytest.raises(SourceUnavailable, match="No such file"):
        follower.look()
