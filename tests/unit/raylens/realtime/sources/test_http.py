from __future__ import annotations

import asyncio
import datetime
import gc
import os
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from raylens.realtime.sources.address import parse_url
from raylens.realtime.sources.base import Source, SourceOptions, SourceUnavailable
from raylens.realtime.sources.opening import open_source
from testing.mjpeg_server import WebCamera, plain_part, running_web_camera
from testing.pictures import encode_picture
from testing.ports import free_port
from testing.threaded_server import serving_in_thread
from tests.unit.raylens.realtime.sources.drawn import gray, jpeg, read_numbers

PICTURES = [jpeg(number) for number in range(10)]
FAST = SourceOptions(open_timeout_s=5, read_timeout_s=0.5, snapshot_interval_s=0.05)


@contextmanager
def watching(
    url: str, options: SourceOptions = FAST, host_address: str | None = None, **arguments: Any
) -> Iterator[Source]:
    address = replace(parse_url(url), host_address=host_address)
    source = open_source(address, options, **arguments)
    try:
        yield source
    finally:
        source.close()


def fail(source: Source, count: int = 100) -> str:
    """Read until the source fails, and return why."""
    with pytest.raises(SourceUnavailable) as failure:
        read_numbers(source, count)
    return failure.value.message


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        ("multipart/x-mixed-replace; boundary=frame", "--frame"),
        ('multipart/x-mixed-replace;boundary="frame"', "--frame"),
        ("multipart/x-mixed-replace; boundary=--frame", "--frame"),
        ("multipart/mixed; charset=x; BOUNDARY=frame", "--frame"),
        ("multipart/x-mixed-replace", "--frame"),
        ("", "--frame"),
        ("application/octet-stream", "--frame"),
    ],
)
def test_mjpeg_streams(content_type: str, boundary: str) -> None:
    camera = WebCamera(PICTURES, content_type, lambda picture: plain_part(picture, boundary))
    with running_web_camera(camera), watching(camera.url()) as source:
        assert source.is_live
        assert read_numbers(source) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("content_type", ["video/x-motion-jpeg", "application/octet-stream"])
def test_jpeg_files_without_multipart(content_type: str) -> None:
    camera = WebCamera(PICTURES, content_type, write_part=lambda picture: picture)
    with running_web_camera(camera), watching(camera.url()) as source:
        assert read_numbers(source) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("kind", "file_format"), [("image/jpeg", "JPEG"), ("image/png", "PNG")])
def test_a_url_of_one_picture_is_asked_again_and_again(kind: str, file_format: str) -> None:
    pictures = [encode_picture(gray(number), file_format) for number in range(10)]
    camera = WebCamera(pictures, kind, is_snapshot=True)
    with running_web_camera(camera), watching(camera.url()) as source:
        started = time.monotonic()
        assert read_numbers(source) == [0, 1, 2, 3, 4]
        assert time.monotonic() - started >= 4 * FAST.snapshot_interval_s


@pytest.mark.parametrize("scheme", ["basic", "digest"])
@pytest.mark.parametrize("is_pinned", [True, False])
@pytest.mark.parametrize("user", ["admin", "verwälter"])
def test_passwords(scheme: str, is_pinned: bool, user: str) -> None:
    camera = WebCamera(PICTURES, user=user, password="p%40:x", scheme=scheme)
    pinned = "127.0.0.1" if is_pinned else None
    with running_web_camera(camera):
        url = camera.url()
        camera.password = "p@:x"
        with watching(url, host_address=pinned) as source:
            assert read_numbers(source) == [0, 1, 2, 3, 4]
        camera.password = "other"
        with watching(url, host_address=pinned) as source:
            problem = fail(source)
    assert "401: a user name and password is refused" in problem
    assert "p@" not in problem
    assert "p%40" not in problem


def test_a_password_is_asked_for_once() -> None:
    camera = WebCamera(
        PICTURES, "image/jpeg", user="admin", password="x", scheme="digest", is_snapshot=True
    )
    with running_web_camera(camera), watching(camera.url()) as source:
        assert read_numbers(source) == [0, 1, 2, 3, 4]
    assert camera.connections == 6


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ("401 No\r\nWWW-Authenticate: Basic realm=x", "401: a user name and password is refused"),
        ("401 No\r\nWWW-Authenticate: Digest realm=x, nonce=y", "is refused"),
        ("302 Found\r\nLocation: /other", "over 5 redirects"),
    ],
)
def test_answers_without_pictures_are_not_read(head: str, message: str) -> None:
    sent = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        with suppress(OSError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(f"HTTP/1.1 {head}\r\n\r\n".encode())
            while sent < 200 * 2**20:
                writer.write(bytes(2**16))
                await writer.drain()
                sent += 2**16
        writer.transport.abort()

    with (
        serving_in_thread(handle) as port,
        watching(f"http://user:password@127.0.0.1:{port}/") as source,
    ):
        assert message in fail(source)
    assert sent < 100 * 2**20  # only what lies in the sockets' buffers


def test_a_password_may_be_missing() -> None:
    camera = WebCamera(PICTURES, user="admin", password="x")
    with running_web_camera(camera), watching(camera.url().replace("admin:x@", "")) as source:
        assert "401: a user name and password is needed" in fail(source)


def test_a_damaged_picture_is_reported_and_skipped() -> None:
    pictures = [PICTURES[0], PICTURES[1][:200] + bytes(50), PICTURES[2]]
    problems: list[str] = []
    camera = WebCamera(pictures)
    with (
        running_web_camera(camera),
        watching(camera.url(), report=problems.append) as source,
    ):
        assert read_numbers(source, 2) == [0, 2]
    assert len(problems) == 1
    assert "a picture was skipped: damaged" in problems[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"end_at": 3}, "the stream ended"),
        ({"end_at": 3, "stops_in_the_middle": True}, "the stream ended"),
        ({"hang_at": 3}, "no picture for 0.5 s"),
        ({"hang_at": 3, "stops_in_the_middle": True}, "no picture for 0.5 s"),
        ({"status": "404 Not Found"}, "404"),
        ({"content_type": "text/html"}, "it sends text/html"),
        ({"content_type": "", "write_part": lambda picture: b"<html>"}, "neither JPEG pictures"),
        ({"status": "200 OK\r\nContent-Encoding: gzip"}, "it is compressed (gzip)"),
        ({"pictures": [b"junk"], "interval_s": 0.05}, "no picture for 1 s"),
    ],
)
def test_faults_have_a_reason(changes: dict[str, Any], message: str) -> None:
    camera = replace(WebCamera(PICTURES), **changes)
    options = replace(FAST, open_timeout_s=1)
    with running_web_camera(camera), watching(camera.url(), options) as source:
        problem = fail(source)
    assert message in problem
    assert problem.startswith(f"http://127.0.0.1:{camera.port}/video.cgi?…: ")


def test_a_picture_that_never_ends_is_too_large() -> None:
    def write(picture: bytes) -> bytes:
        return b"--frame\r\n\r\n\xff\xd8\xff\xe0\0\x04ab\xff\xda\0\x02" + bytes(100_000)

    camera = WebCamera(PICTURES, write_part=write)
    options = replace(FAST, max_picture_bytes=50_000)
    with running_web_camera(camera), watching(camera.url(), options) as source:
        assert "a picture of over 50000 bytes" in fail(source)


def test_nothing_listens() -> None:
    with watching(f"http://127.0.0.1:{free_port()}/") as source:
        assert "connection refused" in fail(source)


def test_redirects_are_followed_unless_the_address_is_pinned() -> None:
    camera = WebCamera(PICTURES)
    with running_web_camera(camera):
        door = WebCamera([], location=camera.url())
        with running_web_camera(door):
            with watching(door.url()) as source:
                assert read_numbers(source) == [0, 1, 2, 3, 4]
            before = camera.connections
            with watching(door.url(), host_address="127.0.0.1") as source:
                assert "302: it redirects elsewhere, which isn't followed" in fail(source)
            assert camera.connections == before


def test_a_pinned_address_replaces_the_lookup() -> None:
    camera = WebCamera(PICTURES)
    with (
        running_web_camera(camera),
        watching(camera.url("camera.invalid"), host_address="127.0.0.1") as source,
    ):
        assert read_numbers(source) == [0, 1, 2, 3, 4]
        assert camera.hosts == [f"camera.invalid:{camera.port}"]


def test_close_ends_a_read_at_once_and_leaves_nothing() -> None:
    """In each of its phases: before the answer, in the middle of a part, between two."""
    patient = SourceOptions(open_timeout_s=60, read_timeout_s=60)
    silent = WebCamera(PICTURES, hang_at=0)
    stuck = WebCamera(PICTURES, hang_at=0, stops_in_the_middle=True)
    slow = WebCamera(PICTURES, interval_s=50)
    with running_web_camera(silent), running_web_camera(stuck), running_web_camera(slow):
        before = open_descriptors()
        for camera in (silent, stuck, slow) * 3:
            with watching(camera.url(), patient) as source:
                if camera is slow:
                    assert read_numbers(source, 1) == [0]
                failures: list[str] = []
                thread = threading.Thread(target=lambda s=source, f=failures: f.append(fail(s)))
                thread.start()
                wait_until(lambda camera=camera: camera.open_connections == 1)
                started = time.monotonic()
                source.close()
                thread.join(5)
                assert not thread.is_alive()
                assert time.monotonic() - started < 1
                assert "it is closed" in failures[0]
            wait_until(lambda camera=camera: camera.open_connections == 0)
        assert open_descriptors() == before


def test_a_certificate_is_checked_for_the_name_of_the_url(tmp_path: Path) -> None:
    names: list[str] = []
    context = make_context(tmp_path, "camera.invalid", names)
    camera = WebCamera(PICTURES)
    with running_web_camera(camera, context):
        url = camera.url("camera.invalid", "https")
        with watching(url, host_address="127.0.0.1") as source:
            assert "the TLS certificate was not accepted" in fail(source)
    assert names == ["camera.invalid"]


def make_context(folder: Path, name: str, names: list[str]) -> ssl.SSLContext:
    """Return a server's TLS context with a certificate that nobody has signed.

    ``names`` gets the names that clients ask for.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = folder / "certificate.pem"
    path.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    context.sni_callback = lambda connection, asked, context: names.append(asked)
    return context


def open_descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def wait_until(condition: Any, timeout_s: float = 5.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)
