from __future__ import annotations

import os
from pathlib import Path

import pytest

from raylens.cli.errors import UsageError
from raylens.cli.pictures import find_pictures
from testing.pictures import encode_picture, gradient
from tests.unit.cli.fake_server import write_pictures

PICTURE = encode_picture(gradient(8, 8))


def names(folder: Path, *paths: Path, recursive: bool = True) -> list[str]:
    found = find_pictures(paths or [folder], recursive).pictures
    return [str(picture.relative_to(folder)) for picture in found]


def test_pictures_are_found_once_each_and_in_natural_order(tmp_path: Path) -> None:
    files = ["10.jpg", "2.jpg", "A3.gif", "a20.avif", "b/1.tif", "b/.hidden.jpg", ".thumbs/1.jpg"]
    folder = write_pictures(tmp_path, *files)
    (folder / "2.jpg").write_bytes(PICTURE)
    found = names(folder, folder / "2.jpg", folder, folder / "b")
    assert found == ["2.jpg", "10.jpg", "A3.gif", "a20.avif", "b/1.tif"]


def test_a_picture_is_known_by_its_suffix_or_its_first_bytes(tmp_path: Path) -> None:
    for name in ("a.jfif", "b.heic", "c.HEIF", "d.jpe"):
        (tmp_path / name).write_bytes(b"")
    for name in ("e", "f.data"):
        (tmp_path / name).write_bytes(PICTURE)
    (tmp_path / "raw.nef").write_bytes(encode_picture(gradient(8, 8), "TIFF"))
    for name in ("notes.txt", "more.txt", "video.mp4", "empty", ".hidden.png"):
        (tmp_path / name).write_bytes(b"words")
    (tmp_path / ".folder").mkdir()
    found = find_pictures([tmp_path])
    assert [path.name for path in found.pictures] == [
        "a.jfif",
        "b.heic",
        "c.HEIF",
        "d.jpe",
        "e",
        "f.data",
    ]
    assert found.passed_over == {
        ".txt": 2,
        "hidden": 2,
        ".mp4": 1,
        ".nef": 1,
        "without a suffix": 1,
    }
    assert found.describe_passed_over().startswith("passed over 7 files: 2 ")


def test_nothing_is_said_if_nothing_was_passed_over(tmp_path: Path) -> None:
    write_pictures(tmp_path, "1.jpg")
    assert find_pictures([tmp_path]).describe_passed_over() == ""


def test_links_to_folders_are_followed_and_end(tmp_path: Path) -> None:
    write_pictures(tmp_path, "in/1.jpg", "other/2.jpg")
    os.symlink(tmp_path / "other", tmp_path / "in" / "linked")
    os.symlink(tmp_path / "in", tmp_path / "other" / "back")
    os.symlink(tmp_path / "in", tmp_path / "in" / "self")
    os.symlink(tmp_path / "missing", tmp_path / "in" / "broken")
    assert names(tmp_path, tmp_path / "in") == ["in/1.jpg", "in/linked/2.jpg"]
    assert find_pictures([tmp_path / "in"]).passed_over == {"unreadable": 1}


def test_a_folder_that_is_also_linked_keeps_its_own_name(tmp_path: Path) -> None:
    write_pictures(tmp_path, "in/b/1.jpg", "in/c/2.jpg")
    os.symlink(tmp_path / "in" / "b", tmp_path / "in" / "a")
    os.symlink(tmp_path / "in" / "c", tmp_path / "in" / "b" / "link")
    assert names(tmp_path, tmp_path / "in") == ["in/b/1.jpg", "in/c/2.jpg"]


def test_a_file_that_is_named_outright_must_be_a_picture(tmp_path: Path) -> None:
    (tmp_path / "a.dat").write_bytes(PICTURE)
    (tmp_path / "a.jpg").write_bytes(b"%PDF-1.7")
    (tmp_path / "b.jpg").write_bytes(b"words")
    (tmp_path / "d.jpg").touch()
    assert names(tmp_path, tmp_path / "a.dat") == ["a.dat"]
    for name, message in (
        ("a.jpg", "a.jpg: not a picture, but a PDF document"),
        ("b.jpg", "b.jpg: not a picture"),
        ("c.jpg", "c.jpg: no such file or folder"),
        ("d.jpg", "d.jpg: the file is empty"),
    ):
        with pytest.raises(UsageError, match=message):
            find_pictures([tmp_path / name])


def test_a_pipe_or_a_broken_link_can_not_be_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    os.symlink(tmp_path / "missing", tmp_path / "link.jpg")
    with pytest.raises(UsageError, match=r"pipe\.jpg: not a regular file"):
        find_pictures([tmp_path / "pipe.jpg"])
    with pytest.raises(UsageError, match=r"link\.jpg: No such file"):
        find_pictures([tmp_path / "link.jpg"])


def test_without_recursion_subfolders_are_left_out(tmp_path: Path) -> None:
    write_pictures(tmp_path, "1.jpg", "b/2.jpg")
    assert names(tmp_path, tmp_path, recursive=False) == ["1.jpg"]
