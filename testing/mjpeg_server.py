"""A web camera for tests: MJPEG over HTTP/1.0, in the shapes that cameras send, and with faults."""

from __future__ import annotations

import asyncio
import hashlib
import re
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from testing.threaded_server import serving_in_thread


@dataclass
class WebCamera:
    """What a camera sends, and how it misbehaves. It may be changed while it runs."""

    pictures: Sequence[bytes]
    """JPEG or PNG files."""
    content_type: str = "multipart/x-mixed-replace; boundary=frame"
    write_part: Callable[[bytes], bytes] = field(default=lambda picture: plain_part(picture))
    interval_s: float = 0.02
    user: str = ""
    password: str = ""
    scheme: str = "basic"
    status: str = "200 OK"
    location: str = ""
    """Where it redirects to."""
    hang_at: int | None = None
    """The part before which nothing comes any more."""
    stops_in_the_middle: bool = False
    """Whether the part before a hang, or before the end, is only half of one."""
    end_at: int | None = None
    """The part before which the stream ends."""
    is_snapshot: bool = False
    """Whether each answer is one picture."""
    sent: int = 0
    connections: int = 0
    open_connections: int = 0
    hosts: list[str] = field(default_factory=list)
    """The ``Host`` headers of all requests."""
    port: int = 0

    def url(self, host: str = "127.0.0.1", scheme: str = "http") -> str:
        """The address, with user name and password."""
        login = f"{self.user}:{self.password}@" if self.user else ""
        return f"{scheme}://{login}{host}:{self.port}/video.cgi?resolution=640x480"


def plain_part(picture: bytes, boundary: str = "--frame") -> bytes:
    head = f"{boundary}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\n\r\n"
    return head.encode() + picture + b"\r\n"


@contextmanager
def running_web_camera(camera: WebCamera, ssl: Any = None) -> Iterator[WebCamera]:
    """Run a camera on 127.0.0.1, in a thread."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        camera.connections += 1
        camera.open_connections += 1
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            answering = asyncio.create_task(_answer(camera, head, writer))
            leaving = asyncio.create_task(reader.read())
            try:
                await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
            finally:
                answering.cancel()
                leaving.cancel()
                await asyncio.gather(answering, leaving, return_exceptions=True)
        except (OSError, EOFError):
            pass
        finally:
            camera.open_connections -= 1
            writer.close()

    with serving_in_thread(handle, camera.port, ssl) as camera.port:
        yield camera


async def _answer(camera: WebCamera, head: str, writer: asyncio.StreamWriter) -> None:
    headers = dict(re.findall(r"(?m)^([\w-]+): *(.*?)\r$", head))
    headers = {name.lower(): value for name, value in headers.items()}
    camera.hosts.append(headers.get("host", ""))
    if camera.location:
        writer.write(f"HTTP/1.0 302 Found\r\nLocation: {camera.location}\r\n\r\n".encode())
        return
    if camera.user and not _is_allowed(camera, head.split(" ")[1], headers):
        challenge = 'Basic realm="camera"'
        if camera.scheme == "digest":
            challenge = 'Digest realm="camera", nonce="abc", qop="auth"'
        writer.write(f"HTTP/1.0 401 Unauthorized\r\nWWW-Authenticate: {challenge}\r\n\r\n".encode())
        return
    kind = f"Content-Type: {camera.content_type}\r\n" if camera.content_type else ""
    writer.write(f"HTTP/1.0 {camera.status}\r\n{kind}\r\n".encode())
    if camera.is_snapshot:
        writer.write(camera.pictures[camera.sent % len(camera.pictures)])
        camera.sent += 1
        return
    await _stream(camera, writer)


async def _stream(camera: WebCamera, writer: asyncio.StreamWriter) -> None:
    number = 0
    while True:
        part = camera.write_part(camera.pictures[number % len(camera.pictures)])
        is_hanging = camera.hang_at is not None and number >= camera.hang_at
        is_over = camera.end_at is not None and number >= camera.end_at
        if is_hanging or is_over:
            if camera.stops_in_the_middle:
                writer.write(part[: len(part) // 2])
                await writer.drain()
            if is_hanging:
                await asyncio.Event().wait()
            return
        writer.write(part)
        await writer.drain()
        number += 1
        camera.sent += 1
        await asyncio.sleep(camera.interval_s)


def _is_allowed(camera: WebCamera, path: str, headers: dict[str, str]) -> bool:
    sent = headers.get("authorization", "")
    if camera.scheme == "basic":
        login = f"{camera.user}:{camera.password}"
        return sent == f"Basic {b64encode(login.encode()).decode()}"
    fields = dict(re.findall(r'(\w+)="?([^",]*)"?', sent))
    if fields.get("uri") != path:
        return False
    secret = _md5(f"{camera.user}:camera:{camera.password}")
    middle = f"abc:{fields.get('nc')}:{fields.get('cnonce')}:auth"
    return fields.get("response") == _md5(f"{secret}:{middle}:{_md5(f'GET:{path}')}")


def _md5(text: str) -> str:
    return hashlib.md5(text.encode()).hexdigest()
