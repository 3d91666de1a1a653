from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from raylens.core.config import PictureSourceConfig
from raylens.core.errors import InvalidRequest, PayloadTooLarge
from raylens.jobs.sources.base import PictureGone, SourcePicture, SourceUnavailable
from raylens.jobs.sources.files import FileSource

LIMIT = 1000


@pytest.fixture(params=["folder", "memory"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> FileSource:
    files = {
        "shop/2.jpg": b"two",
        "shop/1.PNG": b"one",
        "shop/in/3.webp": b"three",
        "shop/notes.txt": b"x",
        "other/4.jpg": b"4",
    }
    root = str(tmp_path) if request.param == "folder" else "memory://pictures"
    filesystem, path = fsspec.core.url_to_fs(root)
    for name, data in files.items():
        filesystem.makedirs(f"{path}/{name.rpartition('/')[0]}", exist_ok=True)
        filesystem.pipe_file(f"{path}/{name}", data)
    return FileSource(PictureSourceConfig(url=root))


async def test_without_ids_all_pictures_of_the_domain_are_listed(source: FileSource) -> None:
    pictures = await source.list_pictures("shop", [], LIMIT)
    assert [picture.id for picture in pictures] == ["1.PNG", "2.jpg", "in/3.webp"]
    everything = await source.list_pictures("", [], LIMIT)
    assert len(everything) == 4


async def test_ids_keep_their_order(source: FileSource) -> None:
    pictures = await source.list_pictures("shop", ["in/3.webp", "1.PNG"], LIMIT)
    assert [picture.name for picture in pictures] == ["3.webp", "1.PNG"]
    assert [await source.read("shop", picture, 5) for picture in pictures] == [b"three", b"one"]


@pytest.mark.parametrize(
    ("domain", "ids", "message"),
    [
        ("shop", ["9.jpg"], "query.ids.0: there is no picture '9.jpg'"),
        ("shop", ["1.PNG", "in"], "query.ids.1: there is no picture 'in'"),
        ("shop", ["../other/4.jpg"], "query.ids.0: expected a relative path"),
        ("shop", ["/etc/passwd"], "query.ids.0: expected a relative path"),
        ("..", [], "domain_id: expected a relative path"),
        ("nowhere", [], "domain_id: there is no domain 'nowhere'"),
    ],
)
async def test_what_is_not_there_is_refused(
    source: FileSource, domain: str, ids: list[str], message: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await source.list_pictures(domain, ids, LIMIT)
    assert caught.value.message.startswith(message)


async def test_a_picture_over_the_limit_is_refused(source: FileSource) -> None:
    with pytest.raises(PayloadTooLarge, match=r"query\.ids"):
        await source.read("shop", SourcePicture("in/3.webp", "3.webp"), 4)


async def test_a_link_out_of_the_folder_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    root = tmp_path / "root"
    root.mkdir()
    (root / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    source = FileSource(PictureSourceConfig(url=str(root)))
    with pytest.raises(InvalidRequest):
        await source.list_pictures("", ["link.jpg"], LIMIT)
    assert await source.list_pictures("", [], LIMIT) == []
    with pytest.raises(PictureGone):
        await source.read("", SourcePicture("link.jpg", "link.jpg"), 100)


async def test_a_picture_that_is_gone_is_told_from_a_storage_that_is_away(
    source: FileSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(PictureGone):
        await source.read("shop", SourcePicture("gone.jpg", "gone.jpg"), 100)

    def fail(path: str, on_error: str) -> list[str]:
        raise LookupError("no credentials")

    monkeypatch.setattr(source._filesystem, "walk", fail)
    with pytest.raises(SourceUnavailable, match="can't be read: LookupError"):
        await source.list_pictures("shop", [], LIMIT)


async def test_a_list_ends_where_it_is_too_long(
    source: FileSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    walk = source._filesystem.walk

    def walk_one_folder(path: str, on_error: str) -> Iterator[Any]:
        yield next(walk(path, on_error=on_error))
        pytest.fail("the list goes on")

    monkeypatch.setattr(source._filesystem, "walk", walk_one_folder)
    assert len(await source.list_pictures("shop", [], 1)) == 2


async def test_a_folder_without_pictures_is_a_domain(source: FileSource, tmp_path: Path) -> None:
    source._filesystem.makedirs(f"{source._root}/empty", exist_ok=True)
    assert await source.list_pictures("empty", [], LIMIT) == []
