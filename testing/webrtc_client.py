"""A WebRTC client with a camera whose frames carry numbers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any

import av
import numpy as np
from aiortc import (
    MediaStreamTrack,
    RTCBundlePolicy,
    RTCConfiguration,
    RTCDataChannel,
    RTCIceServer,
    RTCPeerConnection,
    RTCRtpSender,
    RTCSessionDescription,
)
from aiortc.mediastreams import MediaStreamError

from raylens.realtime.overlay import Pixels
from raylens.realtime.webrtc.addresses import listen_on
from raylens.realtime.webrtc.pictures import TIME_BASE

LOOPBACK = ("127.0.0.1",)
TICKS = 3000
"""Between two frames: 30 frames/s."""
BITS = 12
TIMEOUT_S = 15.0
"""Longest wait for something that takes milliseconds on an idle machine."""


async def wait_until(holds: Callable[[], Any], timeout_s: float = TIMEOUT_S) -> Any:
    """Wait until a condition holds, and return its value."""
    turns = 0
    async with asyncio.timeout(timeout_s):
        while not (value := holds()):
            turns += 1
            await asyncio.sleep(0 if turns < 20 else 0.002)
    return value


def draw_number(number: int, width: int = 320, height: int = 240) -> Pixels:
    """Return a gray frame with a number in black and white columns across its upper half."""
    pixels = np.full((height, width, 3), 128, np.uint8)
    for bit in range(BITS):
        columns = slice(bit * width // BITS, (bit + 1) * width // BITS)
        pixels[: height // 2, columns] = 255 * (number >> bit & 1)
    return pixels


def read_number(pixels: Pixels) -> int:
    """Return the number in a frame, also if it was compressed."""
    height, width = pixels.shape[:2]
    row = pixels[height // 4, :, :].mean(axis=1)
    centers = [(2 * bit + 1) * width // (2 * BITS) for bit in range(BITS)]
    return sum(int(row[center] > 128) << bit for bit, center in enumerate(centers))


def is_marked(pixels: Pixels) -> bool:
    """Whether a processor has drawn its red mark."""
    height, width = pixels.shape[:2]
    red, green, blue = pixels[3 * height // 4, width // 2]
    return bool(red > 180 and green < 80 and blue < 80)


class Camera(MediaStreamTrack):
    """Sends the frames that a test shows it, as soon as it is asked."""

    kind = "video"

    def __init__(self) -> None:
        super().__init__()
        self._frames: asyncio.Queue[av.VideoFrame] = asyncio.Queue()
        self._pts = 0

    def show(self, pixels: Pixels, ticks: int = TICKS) -> None:
        """Show a frame, for that long."""
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        frame.pts, frame.time_base = self._pts, TIME_BASE
        self._pts += ticks
        self._frames.put_nowait(frame)

    def show_numbers(self, numbers: Sequence[int], width: int = 320, height: int = 240) -> None:
        for number in numbers:
            self.show(draw_number(number, width, height))

    async def recv(self) -> av.VideoFrame:
        return await self._frames.get()


class Client:
    """A client. ``layout`` has the directions of its video lines: the first has the camera."""

    def __init__(
        self,
        layout: Sequence[str] = ("sendrecv",),
        channels: Sequence[str] = ("parameters", "results"),
        codec: str = "VP8",
        audio: str | None = None,
        ice_servers: Sequence[RTCIceServer] = (),
    ) -> None:
        self.camera = Camera()
        self.frames: list[av.VideoFrame] = []
        self.messages: dict[str, list[dict[str, Any]]] = {}
        # aiortc has a bug with the other policies if two video lines follow an audio line.
        configuration = RTCConfiguration(list(ice_servers), bundlePolicy=RTCBundlePolicy.MAX_BUNDLE)
        self.connection = RTCPeerConnection(configuration)
        self._tasks: list[asyncio.Task[None]] = []
        if audio is not None:
            self.connection.addTransceiver("audio", audio)
        for direction in layout:
            track = self.camera if direction in ("sendrecv", "sendonly") else "video"
            line = self.connection.addTransceiver(track, direction)
            capabilities = RTCRtpSender.getCapabilities("video").codecs
            line.setCodecPreferences([c for c in capabilities if c.name == codec])
        self.channels = {name: self._open(name) for name in channels}
        self.connection.on("track", self._on_track)

    async def offer(self, addresses: Sequence[str] = LOOPBACK) -> str:
        """Return an offer with candidates on these addresses."""
        listen_on(self.connection, addresses)
        await self.connection.setLocalDescription(await self.connection.createOffer())
        return self.connection.localDescription.sdp

    async def accept(self, answer: str) -> None:
        await self.connection.setRemoteDescription(RTCSessionDescription(answer, "answer"))

    async def wait_connected(self, timeout_s: float = TIMEOUT_S) -> None:
        await wait_until(lambda: self.connection.connectionState == "connected", timeout_s)
        channels = self.channels.values()
        await wait_until(
            lambda: all(channel.readyState == "open" for channel in channels), timeout_s
        )

    def send(self, message: Any, channel: str = "parameters") -> None:
        text = message if isinstance(message, str | bytes) else json.dumps(message)
        self.channels[channel].send(text)

    def received(self, channel: str, kind: str | None = None) -> list[dict[str, Any]]:
        """Return the messages of a channel; with ``kind``, those of this type."""
        messages = self.messages[channel]
        return [message for message in messages if kind in (None, message.get("type"))]

    async def wait_received(self, channel: str) -> None:
        await wait_until(lambda: self.messages[channel])

    async def wait_annotated(self) -> None:
        """Show frames until one comes back."""
        await show_until(self, lambda: self.frames)

    def numbers(self) -> list[int]:
        return [read_number(to_rgb(frame)) for frame in self.frames]

    def vanish(self) -> None:
        """Stop to send and to answer, without a word."""
        for transport in self.connection._RTCPeerConnection__iceTransports:  # type: ignore[attr-defined]
            for protocol in transport._connection._protocols:
                protocol.transport.abort()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.connection.close()

    def _open(self, name: str) -> RTCDataChannel:
        channel = self.connection.createDataChannel(name)
        self.messages[name] = []
        channel.on("message", lambda text: self.messages[name].append(json.loads(text)))
        return channel

    def _on_track(self, track: MediaStreamTrack) -> None:
        self._tasks.append(asyncio.create_task(self._collect(track)))

    async def _collect(self, track: MediaStreamTrack) -> None:
        try:
            while True:
                frame = await track.recv()
                assert isinstance(frame, av.VideoFrame)
                self.frames.append(frame)
        except MediaStreamError:
            pass


async def show_until(client: Client, holds: Callable[[], Any], first: int = 0) -> None:
    """Show numbered frames until a condition holds. The last one stays in the jitter buffer."""
    numbers = iter(range(first, 4000))

    def step() -> Any:
        if client.camera._frames.empty():
            client.camera.show_numbers([next(numbers)])
        return holds()

    await wait_until(step)


def to_rgb(frame: av.VideoFrame) -> Pixels:
    pixels: Any = frame.to_ndarray(format="rgb24")
    return np.asarray(pixels, np.uint8)
