from __future__ import annotations

import hashlib
import itertools
import random
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raylens.realtime.sources.address import parse_url
from raylens.realtime.sources.base import Source, SourceOptions, SourceUnavailable
from raylens.realtime.sources.opening import open_source
from raylens.realtime.sources.passwords import Authenticator, Credentials
from raylens.realtime.sources.rtsp import RtspSource
from raylens.realtime.sources.rtsp_proxy import RtspProxy
from testing.pictures import random_pixels
from testing.ports import free_port
from testing.rtsp_server import RtspCamera, running_camera
from tests.unit.raylens.realtime.sources.drawn import gray, read_numbers
from tests.unit.raylens.realtime.sources.test_http import (
    make_context,
    open_descriptors,
    wait_until,
)

PICTURES = [gray(number, 160, 120) for number in range(30)]
FAST = SourceOptions(open_timeout_s=5, read_timeout_s=1)


@contextmanager
def watching(
    url: str, options: SourceOptions = FAST, host_address: str | None = None
) -> Iterator[Source]:
    source = open_source(replace(parse_url(url), host_address=host_address), options)
    try:
        yield source
    finally:
        source.close()


def check(source: Source) -> None:
    """Check that pictures come one after another, as they are drawn."""
    first, *others = read_numbers(source)
    assert others == [(first + step) % len(PICTURES) for step in range(1, 5)]


def fail(source: Source, count: int = 200) -> str:
    with pytest.raises(SourceUnavailable) as failure:
        read_numbers(source, count)
    return failure.value.message


def test_frames_come_as_they_are_shown() -> None:
    with running_camera(RtspCamera(PICTURES)) as camera, watching(camera.url) as source:
        assert source.is_live
        check(source)
    first, *_ = camera.requests
    assert first == f"OPTIONS rtsp://127.0.0.1:{camera.port}/live/main?channel=1 RTSP/1.0"


def test_large_pictures_come_in_many_packets() -> None:
    pictures = [random_pixels(640, 480, seed) for seed in range(5)]
    with running_camera(RtspCamera(pictures)) as camera, watching(camera.url) as source:
        frame = source.read()
    assert frame is not None
    assert frame.pixels.shape == (480, 640, 3)
    assert frame.pixels.std() > 40


@pytest.mark.parametrize("scheme", ["basic", "digest", "digest-qop"])
def test_passwords(scheme: str) -> None:
    camera = RtspCamera(PICTURES, user="admin", password="p%40:x", scheme=scheme)
    with running_camera(camera):
        url = camera.url
        camera.password = "p@:x"
        with watching(url) as source:
            check(source)
        camera.password = "other"
        with watching(url) as source:
            problem = fail(source)
        assert "401: the user name or password is wrong" in problem
        assert "p@" not in problem
        assert "p%40" not in problem
        with watching(url.replace("admin:p%40:x@", "")) as source:
            assert "401: a user name and password is needed" in fail(source)


def test_digest_of_the_standard() -> None:
    """RFC 7616, section 3.9.1, with the nonces that it gives."""
    authenticator = Authenticator(Credentials("Mufasa", "Circle of Life"))
    challenge = (
        'Digest realm="http-auth@example.org", qop="auth, auth-int", algorithm=SHA-256, '
        'nonce="7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v", '
        'opaque="FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS"'
    )
    assert authenticator.take(['Basic realm="x"', challenge])
    header = authenticator.authorize("GET", "/dir/index.html") or ""
    fields = dict(re.findall(r'(\w+)="?([^",]*)"?', header))

    def sha(text: str) -> str:
        return hashlib.sha256(text.encode()).hexdigest()

    secret = sha("Mufasa:http-auth@example.org:Circle of Life")
    assert fields["response"] == sha(
        f"{secret}:{fields['nonce']}:00000001:{fields['cnonce']}:auth:{sha('GET:/dir/index.html')}"
    )
    assert fields["opaque"] == "FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS"
    assert not authenticator.take(['Digest realm="x", nonce="y", algorithm=SHA-1'])


def test_quotes_in_names_stay_inside_their_field() -> None:
    authenticator = Authenticator(Credentials('a", uri="/other', "b"))
    assert authenticator.take([r'Digest realm="the \"cam\"", nonce="n\\"'])
    header = authenticator.authorize("GET", "/x") or ""
    assert header.startswith(
        r'Digest username="a\", uri=\"/other", realm="the \"cam\"", nonce="n\\", uri="/x", '
    )
    secret = hashlib.md5(b'a", uri="/other:the "cam":b').hexdigest()
    request = hashlib.md5(b"GET:/x").hexdigest()
    response = hashlib.md5(f"{secret}:n\\:{request}".encode()).hexdigest()
    assert header.endswith(f'response="{response}"')


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"end_at": 20}, "the stream ended"),
        ({"hang_at": 20}, "no answer for 1 s"),
        ({"silent_on": "OPTIONS"}, "no answer for 1 s"),
        ({"silent_on": "DESCRIBE"}, "no answer for 1 s"),
        ({"silent_on": "PLAY"}, "no answer for 1 s"),
        ({"media": "audio"}, "no video"),
        ({"location": "rtsp://127.0.0.1:1/"}, "302: it redirects elsewhere"),
    ],
)
def test_faults_have_a_reason(changes: dict[str, Any], message: str) -> None:
    with running_camera(replace(RtspCamera(PICTURES), **changes)) as camera:
        with watching(camera.url) as source:
            problem = fail(source)
        assert problem.startswith(f"rtsp://127.0.0.1:{camera.port}/live/main?…: {message}")
        wait_until(lambda: camera.open_connections == 0)


def test_a_stream_that_sends_but_shows_nothing_is_given_up() -> None:
    now = 0.0
    with running_camera(RtspCamera(PICTURES)) as camera:
        source = RtspSource(parse_url(camera.url), FAST, lambda: now)
        source.read()
        now += 3.5 * FAST.read_timeout_s
        assert "no picture that can be read for 3 s" in fail(source)
        source.close()


def spoil_slices(units: list[bytes]) -> list[bytes]:
    """Return NAL units of pictures that are random bytes but for their headers.

    FFmpeg makes damaged frames of them.
    """
    return [u if u[0] & 31 in (7, 8) else u[:8] + random.randbytes(len(u)) for u in units]


def without_parameters(units: list[bytes]) -> list[bytes]:
    return [unit for unit in units if unit[0] & 31 not in (7, 8)] or units


@pytest.mark.parametrize("spoil", [spoil_slices, without_parameters])
def test_a_stream_without_sense_is_given_up(spoil: Callable[[list[bytes]], list[bytes]]) -> None:
    ticks = itertools.count()
    with running_camera(RtspCamera(PICTURES, spoil=spoil)) as camera:
        source = RtspSource(parse_url(camera.url), FAST, lambda: next(ticks) / 10)
        with closing(source):
            assert "no picture that can be read for 3 s" in fail(source, 30)


def test_a_frame_may_not_be_too_large() -> None:
    options = replace(FAST, max_pixels=100 * 100)
    with running_camera(RtspCamera(PICTURES)) as camera, watching(camera.url, options) as source:
        assert "not a video that can be read" in fail(source)


def test_nothing_listens() -> None:
    with watching(f"rtsp://127.0.0.1:{free_port()}/") as source:
        assert "connection refused" in fail(source)


def test_a_server_of_another_protocol() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"x" * 100_000)
                connection.recv(1000)

        thread = threading.Thread(target=serve)
        thread.start()
        with watching(f"rtsp://127.0.0.1:{listener.getsockname()[1]}/") as source:
            assert "it doesn't speak RTSP" in fail(source)
        thread.join(5)


def test_a_pinned_address_replaces_the_lookup() -> None:
    with running_camera(RtspCamera(PICTURES)) as camera:
        url = camera.url.replace("127.0.0.1", "camera.invalid")
        with watching(url, host_address="127.0.0.1") as source:
            check(source)
    assert f"DESCRIBE rtsp://camera.invalid:{camera.port}/live/main?channel=1 RTSP/1.0" in (
        camera.requests
    )


def test_a_certificate_is_checked(tmp_path: Path) -> None:
    names: list[str] = []
    context = make_context(tmp_path, "camera.invalid", names)
    with running_camera(RtspCamera(PICTURES), context) as camera:
        url = camera.url.replace("rtsp://127.0.0.1", "rtsps://camera.invalid")
        with watching(url, host_address="127.0.0.1") as source:
            assert "the TLS certificate was not accepted" in fail(source)
    assert names == ["camera.invalid"]


def test_strangers_cannot_see_the_camera_through_the_proxy() -> None:
    with running_camera(RtspCamera(PICTURES, user="a", password="b")) as camera:
        proxy = RtspProxy(parse_url(camera.url), FAST)
        url = proxy.start()
        port = int(url.split(":")[2].partition("/")[0])
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(b"DESCRIBE rtsp://127.0.0.1/live RTSP/1.0\r\nCSeq: 1\r\n\r\n")
            stranger.settimeout(5)
            with suppress(ConnectionResetError):
                assert stranger.recv(100) == b""
        proxy.stop()
        proxy.join()
        assert proxy.failure == "another program has connected in place of FFmpeg"
    assert camera.requests == []


def test_close_ends_a_read_at_once_and_leaves_nothing() -> None:
    patient = SourceOptions(open_timeout_s=60, read_timeout_s=60)
    cameras = [
        (RtspCamera(PICTURES, silent_on="OPTIONS"), "OPTIONS", 0),
        (RtspCamera(PICTURES, silent_on="SETUP"), "SETUP", 0),
        (RtspCamera(PICTURES, hang_at=0), "PLAY", 0),
        (RtspCamera(PICTURES, hang_at=10), "PLAY", 10),
    ]
    for camera, method, sent in cameras:
        with running_camera(camera):
            before = open_descriptors(), threading.active_count()
            for _ in range(2):
                camera.requests.clear()
                camera.sent = 0
                close_during_a_read(camera, patient, method, sent)
            assert (open_descriptors(), threading.active_count()) == before


def close_during_a_read(camera: RtspCamera, options: SourceOptions, method: str, sent: int) -> None:
    """Close when the camera has got a request of this method, and has sent so many frames."""

    def is_there() -> bool:
        return camera.sent >= sent and any(line.startswith(method) for line in camera.requests)

    with watching(camera.url, options) as source:
        failures: list[str] = []
        thread = threading.Thread(target=lambda: failures.append(fail(source)))
        thread.start()
        wait_until(is_there)
        started = time.monotonic()
        source.close()
        thread.join(5)
        assert not thread.is_alive()
        assert time.monotonic() - started < 1
        assert "it is closed" in failures[0]
    wait_until(lambda: camera.open_connections == 0)
