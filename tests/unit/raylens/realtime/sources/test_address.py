from __future__ import annotations

import os
from pathlib import Path

import pytest

from raylens.core.errors import InvalidRequest
from raylens.realtime.sources.address import parse_source
from raylens.realtime.sources.base import SourceKind


@pytest.mark.parametrize(
    ("text", "kind", "location"),
    [
        ("-", SourceKind.STDIN, ""),
        ("camera:2", SourceKind.CAMERA, "/dev/video2"),
        ("0", SourceKind.CAMERA, "/dev/video0"),
        ("/dev/video11", SourceKind.CAMERA, "/dev/video11"),
        ("rtsp://cam/live", SourceKind.RTSP, "rtsp://cam/live"),
        ("RTSPS://cam:8322/live?x=1", SourceKind.RTSP, "RTSPS://cam:8322/live?x=1"),
        ("http://[::1]:8080/video", SourceKind.HTTP, "http://[::1]:8080/video"),
        ("https://cam/jpg", SourceKind.HTTP, "https://cam/jpg"),
    ],
)
def test_the_kind_follows_from_the_name(text: str, kind: SourceKind, location: str) -> None:
    address = parse_source(text)
    assert (address.kind, address.location) == (kind, location)


def test_paths_are_files_and_folders(tmp_path: Path) -> None:
    video = tmp_path / "7"
    video.write_bytes(b"x")
    assert parse_source(str(video)).kind is SourceKind.FILE
    assert parse_source(str(tmp_path)).kind is SourceKind.FOLDER


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no/such.mp4", "source: no/such.mp4: no such file or folder"),
        ("ftp://host/x.mp4", "unknown scheme ftp://; expected rtsp://, rtsps://, http://"),
        ("file:///x.mp4", "unknown scheme file://"),
        ("rtsp:///live", "host or port is invalid"),
        ("rtsp://cam:0/live", "host or port is invalid"),
        ("http://cam:99999/", "host or port is invalid"),
        ("http://cam/a b", "no spaces"),
        ("rtsp://a%0d%0aCSeq:%209@cam/", "the user name or password holds a line end"),
        ("http://a:b%0A@cam/", "the user name or password holds a line end"),
        ("rtsp://a%00@cam/", "the user name or password holds a line end"),
        ("a\0b", "source: a\0b: embedded null byte"),
    ],
)
def test_errors_say_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(InvalidRequest) as failure:
        parse_source(text)
    assert message in failure.value.message
    assert failure.value.field == "source"


def test_a_pipe_is_no_video_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidRequest, match="neither a file nor a folder"):
        parse_source(str(tmp_path / "pipe"))


def test_passwords_are_never_shown() -> None:
    address = parse_source("rtsp://admin:s3cret@10.0.0.9:8554/live?user=a&pwd=s3cret")
    assert address.shown == "rtsp://10.0.0.9:8554/live?…"
    assert "s3cret" not in repr(address)
    for text in ("rtsp://admin:s3cret#1@cam/", "ftp://a:s3cret@cam/", "http://a:s3cret @cam/"):
        with pytest.raises(InvalidRequest) as failure:
            parse_source(text)
        assert "s3cret" not in str(failure.value)
