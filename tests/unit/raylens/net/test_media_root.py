from __future__ import annotations

import os
from pathlib import Path

import pytest

from raylens.core.errors import InvalidRequest, PayloadTooLarge
from raylens.net.media_root import MediaRoot

MESSAGE = "image_url: not a file in the folder media_root"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "media"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "a b.png").write_bytes(b"inside")
    (tmp_path / "media-secret.png").write_bytes(b"outside")
    return folder


@pytest.mark.parametrize("path", ["sub/a b.png", "./sub/../sub/a b.png", "{root}/sub/a b.png"])
def test_files_below_the_folder_are_read(root: Path, path: str) -> None:
    media = MediaRoot(root)
    path = path.format(root=root)
    assert media.has_file(path)
    assert media.read(path, 6, "image_url") == b"inside"


@pytest.mark.parametrize(
    "path",
    [
        *("../media-secret.png", "{root}/../media-secret.png", "{root}-secret.png", "/etc/passwd"),
        *("link.png", "folder/media-secret.png", "missing.png", "sub", "", ".", "pipe", "a\0b"),
        *("a" * 5000, "/proc/self/environ"),
    ],
)
def test_everything_else_gives_the_same_error(root: Path, path: str) -> None:
    (root / "link.png").symlink_to(root.parent / "media-secret.png")
    (root / "folder").symlink_to(root.parent)
    os.mkfifo(root / "pipe")
    media = MediaRoot(root)
    path = path.format(root=root)
    assert not media.has_file(path)
    with pytest.raises(InvalidRequest) as caught:
        media.read(path, 100, "image_url")
    assert caught.value.message == MESSAGE


def test_a_circle_of_links_is_no_file(root: Path) -> None:
    (root / "one").symlink_to(root / "two")
    (root / "two").symlink_to(root / "one")
    media_root = MediaRoot(root)
    assert not media_root.has_file("one")
    with pytest.raises(InvalidRequest, match="not a file in the folder media_root"):
        media_root.read("one", 100, "image")


def test_links_within_the_folder_and_to_it_are_followed(root: Path) -> None:
    (root / "link.png").symlink_to(root / "sub" / "a b.png")
    (root.parent / "other-name").symlink_to(root)
    assert MediaRoot(root.parent / "other-name").read("link.png", 10, "image_url") == b"inside"


def test_a_file_over_the_limit_is_refused_unread(root: Path) -> None:
    with pytest.raises(PayloadTooLarge, match="a file of 6 bytes; the limit is 5 bytes"):
        MediaRoot(root).read("sub/a b.png", 5, "image_url")
