"""Which sources clients may have the server watch."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path

import pytest

from raylens.core.errors import InvalidRequest
from raylens.net.address import AllowList
from raylens.net.lookup import Address
from raylens.realtime.sources.base import SourceAddress, SourceKind, SourceUnavailable
from raylens.realtime.sources.guard import SourceGuard, shown_source

NAMES = {"camera.example": "192.168.1.20", "public.example": "93.184.216.34"}


async def look_up(host: str) -> Sequence[Address]:
    if host not in NAMES:
        raise OSError("no such name")
    return [ip_address(NAMES[host])]


def make_guard(*hosts: str, root: Path | None = None) -> SourceGuard:
    return SourceGuard(AllowList.parse(hosts, excludes_others=True), root, look_up)


@pytest.mark.parametrize(
    "source",
    [
        "rtsp://user:p%40ss@camera.example/stream",
        "http://camera.example:8080/video.mjpg",
        "rtsp://192.168.1.20/1",
        "RTSP://CAMERA.example/1",
    ],
)
async def test_listed_hosts_are_admitted_with_their_address(source: str) -> None:
    guard = make_guard("192.168.1.0/24")
    admitted = await guard.admit(guard.parse(source))
    assert admitted.location == source
    assert admitted.host_address == "192.168.1.20"


@pytest.mark.parametrize(
    "source",
    [
        "rtsp://public.example/1",
        "rtsp://127.0.0.1/1",
        "http://2130706433/video",
        "http://[::1]:8000/video",
        "http://169.254.169.254/latest",
        "rtsp://camera.example@public.example/1",
    ],
)
async def test_other_hosts_are_refused(source: str) -> None:
    guard = make_guard("camera.example")
    with pytest.raises(InvalidRequest, match=r"source: .* list of allowed hosts .*watches.allow"):
        await guard.check(source)


async def test_without_a_list_nothing_is_allowed() -> None:
    with pytest.raises(InvalidRequest, match="list of allowed hosts"):
        await make_guard().check("rtsp://public.example/1")


async def test_a_host_without_an_address_may_get_one_later() -> None:
    guard = make_guard("192.168.1.0/24")
    await guard.check("rtsp://away.example/1")
    with pytest.raises(SourceUnavailable, match=r"away.example has no address"):
        await guard.admit(guard.parse("rtsp://away.example/1"))


async def test_folders_under_the_root_are_admitted(tmp_path: Path) -> None:
    folder = tmp_path / "door"
    folder.mkdir()
    guard = make_guard(root=tmp_path)
    for source in ("door", str(folder), f"file://{folder}"):
        address = guard.parse(source)
        assert address == SourceAddress(SourceKind.FOLDER, str(folder.resolve()))
        assert await guard.admit(address) == address


async def test_other_folders_are_refused_as_if_there_were_none(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    (root / "link").symlink_to(tmp_path / "other")
    guard = make_guard(root=root)
    for source in ("/etc", "../other", "link", "missing", f"file://{tmp_path}/other", "a\0b"):
        with pytest.raises(InvalidRequest, match="source: not a folder in the folder media_root"):
            await guard.check(source)
    with pytest.raises(InvalidRequest, match="media_root is not set"):
        await make_guard().check("/etc")


async def test_a_folder_that_is_away_for_a_moment_is_unavailable(tmp_path: Path) -> None:
    folder = tmp_path / "share" / "door"
    folder.mkdir(parents=True)
    guard = make_guard(root=tmp_path)
    await guard.check("share/door")
    folder.rmdir()
    folder.parent.rmdir()
    address = guard.parse("share/door")
    with pytest.raises(SourceUnavailable, match="door: no such folder"):
        await guard.admit(address)
    with pytest.raises(InvalidRequest, match="not a folder"):
        await guard.check("share/door")
    folder.mkdir(parents=True)
    assert await guard.admit(address) == address


async def test_a_folder_that_has_become_a_link_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "root" / "door"
    folder.mkdir(parents=True)
    guard = make_guard(root=tmp_path / "root")
    address = guard.parse("door")
    folder.rmdir()
    folder.symlink_to("/etc")
    with pytest.raises(InvalidRequest, match="not a folder"):
        await guard.admit(address)


@pytest.mark.parametrize("source", ["camera:0", "-", "ftp://camera.example/1", "rtsp:///x"])
async def test_what_a_server_can_not_watch_is_refused(source: str) -> None:
    with pytest.raises(InvalidRequest, match="source"):
        await make_guard("camera.example").check(source)


def test_passwords_are_not_shown() -> None:
    assert shown_source("rtsp://user:secret@camera.example/1") == "rtsp://camera.example/1"
    assert shown_source("/srv/pictures") == "/srv/pictures"
