from __future__ import annotations

from pathlib import Path

from raylens.cli.pictures import find_pictures
from tests.unit.cli.fake_server import write_pictures


def test_pictures_are_found_once_each_and_in_natural_order(tmp_path: Path) -> None:
    names = ["10.jpg", "2.jpg", "A3.gif", "a20.avif", "b/1.tif", "b/.hidden.jpg", ".thumbs/1.jpg"]
    folder = write_pictures(tmp_path, *names)
    pictures = find_pictures([folder / "2.jpg", folder, folder / "b"])
    assert [str(picture.relative_to(folder)) for picture in pictures] == [
        "2.jpg",
        "10.jpg",
        "A3.gif",
        "a20.avif",
        "b/1.tif",
    ]
