"""An RTSP camera for tests: H.264 over TCP, with the faults that cameras have."""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
import struct
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from testing.threaded_server import serving_in_thread

Pixels = NDArray[np.uint8]
MAX_PAYLOAD = 1400
CLOCK_RATE = 90_000
REALM = "camera"


@dataclass
class RtspCamera:
    """What a camera shows, and how it misbehaves. It may be changed while it runs."""

    pictures: Sequence[Pixels]
    frames_per_second: float = 25.0
    user: str = ""
    password: str = ""
    scheme: str = "digest"
    """How it asks for the password: ``digest``, ``digest-qop`` or ``basic``."""
    hang_at: int | None = None
    """The frame before which nothing comes any more."""
    end_at: int | None = None
    """The frame before which the camera closes the connection."""
    silent_on: str = ""
    """A method that is never answered."""
    location: str = ""
    """Where it redirects to."""
    media: str = "video"
    spoil: Callable[[list[bytes]], list[bytes]] = lambda units: units
    """What becomes of the NAL units of a picture."""
    sent: int = 0
    """Frames, of all connections."""
    connections: int = 0
    open_connections: int = 0
    requests: list[str] = field(default_factory=list)
    """The first lines of all requests."""
    nonce: str = field(default_factory=lambda: secrets.token_hex(8))
    port: int = 0

    @property
    def url(self) -> str:
        """The address, with user name and password."""
        login = f"{self.user}:{self.password}@" if self.user else ""
        return f"rtsp://{login}127.0.0.1:{self.port}/live/main?channel=1"


@contextmanager
def running_camera(camera: RtspCamera, ssl: Any = None) -> Iterator[RtspCamera]:
    """Run a camera on 127.0.0.1, in a thread."""
    units = encode_h264(camera.pictures, camera.frames_per_second)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        camera.connections += 1
        camera.open_connections += 1
        session = _Session(camera, units, reader, writer)
        try:
            await session.run()
        except (OSError, EOFError):
            pass
        finally:
            camera.open_connections -= 1
            writer.transport.abort()

    with serving_in_thread(handle, camera.port, ssl) as camera.port:
        yield camera


def encode_h264(pictures: Sequence[Pixels], frames_per_second: float) -> list[list[bytes]]:
    """Return the NAL units of each picture, without start codes."""
    codec: Any = av.CodecContext.create("libx264", "w")
    codec.height, codec.width = pictures[0].shape[:2]
    codec.pix_fmt = "yuv420p"
    codec.framerate = Fraction(frames_per_second).limit_denominator(1000)
    codec.time_base = 1 / codec.framerate
    codec.options = {"tune": "zerolatency", "preset": "ultrafast", "g": "10", "crf": "12"}
    units: list[list[bytes]] = []
    for number, pixels in enumerate(pictures):
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        frame.pts = number
        packets = codec.encode(frame)
        units.append([unit for packet in packets for unit in _split_units(bytes(packet))])
    return units


def _split_units(stream: bytes) -> list[bytes]:
    return [unit for unit in re.split(rb"\x00\x00\x00?\x01", stream) if unit]


def packetize(units: list[bytes]) -> Iterator[tuple[bytes, bool]]:
    """Yield the RTP payloads of a picture, and whether each is the last (RFC 6184)."""
    for index, unit in enumerate(units):
        is_last_unit = index == len(units) - 1
        if len(unit) <= MAX_PAYLOAD:
            yield unit, is_last_unit
            continue
        indicator = (unit[0] & 0xE0) | 28
        pieces = range(1, len(unit), MAX_PAYLOAD)
        for start in pieces:
            is_end = start == pieces[-1]
            header = (unit[0] & 0x1F) | 0x80 * (start == 1) | 0x40 * is_end
            payload = bytes((indicator, header)) + unit[start : start + MAX_PAYLOAD]
            yield payload, is_last_unit and is_end


class _Session:
    def __init__(
        self,
        camera: RtspCamera,
        units: list[list[bytes]],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._camera = camera
        self._units = units
        self._reader = reader
        self._writer = writer
        self._playing: asyncio.Task[None] | None = None

    async def run(self) -> None:
        try:
            while True:
                first = await self._reader.readexactly(1)
                if first == b"$":
                    header = await self._reader.readexactly(3)
                    await self._reader.readexactly(int.from_bytes(header[1:]))
                    continue
                head = first + await self._reader.readuntil(b"\r\n\r\n")
                if not await self._handle(head.decode()):
                    return
        finally:
            if self._playing is not None:
                self._playing.cancel()

    async def _handle(self, head: str) -> bool:
        line, *rest = head.split("\r\n")
        self._camera.requests.append(line)
        method, uri, _ = line.split(" ")
        headers = {name.lower(): value for name, _, value in (h.partition(": ") for h in rest)}
        cseq = headers["cseq"]
        camera = self._camera
        if method == camera.silent_on:
            return True
        if camera.location:
            self._send(cseq, "302 Moved", {"Location": camera.location})
            return True
        if camera.user and method != "OPTIONS" and not self._is_allowed(method, uri, headers):
            self._send(cseq, "401 Unauthorized", {"WWW-Authenticate": self._challenge()})
            return True
        match method:
            case "OPTIONS":
                self._send(cseq, "200 OK", {"Public": "OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN"})
            case "DESCRIBE":
                description = self._describe()
                headers = {"Content-Type": "application/sdp", "Content-Base": uri + "/"}
                self._send(cseq, "200 OK", headers, description)
            case "SETUP":
                transport = "RTP/AVP/TCP;unicast;interleaved=0-1"
                self._send(cseq, "200 OK", {"Transport": transport, "Session": "12345;timeout=60"})
            case "PLAY":
                self._send(cseq, "200 OK", {"Session": "12345"})
                self._playing = asyncio.create_task(self._play())
            case "TEARDOWN":
                return False
            case _:
                self._send(cseq, "200 OK", {"Session": "12345"})
        return True

    def _challenge(self) -> str:
        if self._camera.scheme == "basic":
            return f'Basic realm="{REALM}"'
        qop = ', qop="auth"' if self._camera.scheme == "digest-qop" else ""
        return f'Digest realm="{REALM}", nonce="{self._camera.nonce}"{qop}'

    def _is_allowed(self, method: str, uri: str, headers: dict[str, str]) -> bool:
        sent = headers.get("authorization", "")
        user, password = self._camera.user, self._camera.password
        if self._camera.scheme == "basic":
            return sent == f"Basic {b64encode(f'{user}:{password}'.encode()).decode()}"
        fields = dict(re.findall(r'(\w+)="?([^",]*)"?', sent))
        if fields.get("uri") != uri:
            return False
        secret = _md5(f"{user}:{REALM}:{password}")
        request = _md5(f"{method}:{uri}")
        middle = self._camera.nonce
        if self._camera.scheme == "digest-qop":
            middle = f"{middle}:{fields.get('nc')}:{fields.get('cnonce')}:auth"
        return fields.get("response") == _md5(f"{secret}:{middle}:{request}")

    def _describe(self) -> str:
        if self._camera.media == "audio":
            media = ["m=audio 0 RTP/AVP 0", "a=rtpmap:0 PCMU/8000"]
        else:
            media = [
                "m=video 0 RTP/AVP 96",
                "a=rtpmap:96 H264/90000",
                "a=fmtp:96 packetization-mode=1",
            ]
        lines = ["v=0", "o=- 1 1 IN IP4 127.0.0.1", "s=camera", "t=0 0", *media, "a=control:track1"]
        return "\r\n".join(lines) + "\r\n"

    def _send(self, cseq: str, status: str, headers: dict[str, str], body: str = "") -> None:
        lines = [f"RTSP/1.0 {status}", f"CSeq: {cseq}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if body:
            lines.append(f"Content-Length: {len(body)}")
        self._writer.write(("\r\n".join(lines) + "\r\n\r\n" + body).encode())

    async def _play(self) -> None:
        camera = self._camera
        number = sequence = 0
        while True:
            if camera.hang_at is not None and number >= camera.hang_at:
                await asyncio.Event().wait()
            if camera.end_at is not None and number >= camera.end_at:
                self._writer.transport.abort()
                return
            time = round(number * CLOCK_RATE / camera.frames_per_second)
            for payload, is_last in packetize(camera.spoil(self._units[number % len(self._units)])):
                kind = 96 | 0x80 * is_last
                packet = struct.pack(">BBHII", 0x80, kind, sequence & 0xFFFF, time, 7) + payload
                self._writer.write(b"$\0" + len(packet).to_bytes(2) + packet)
                sequence += 1
            await self._writer.drain()
            number += 1
            camera.sent += 1
            await asyncio.sleep(1 / camera.frames_per_second)


def _md5(text: str) -> str:
    return hashlib.md5(text.encode()).hexdigest()
