"""live-vlm-webui describes a camera's pictures: its server asks this one, through OpenAI's API."""

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import av
import pytest
from aiortc import RTCPeerConnection, RTCSessionDescription, VideoStreamTrack
from aiortc.contrib.media import MediaBlackhole
from PIL import Image
from scene import BASE_URL, FILE, HOW_MANY, WHAT_COLOR

TIMEOUT_S = 60
PROCESS_EVERY = 5
"""Frames between two questions."""


@pytest.fixture
def web_ui(tmp_path: Path) -> Iterator[str]:
    """Run its server, and yield the URL."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = Path(sys.executable).with_name("live-vlm-webui")
    options = ["--no-ssl", "--host", "127.0.0.1", "--port", str(port)]
    model = ["--api-base", BASE_URL, "--model", "moondream", "--prompt", HOW_MANY]
    with subprocess.Popen(
        [command, *options, *model, "--process-every", str(PROCESS_EVERY)],
        env={**os.environ, "XDG_CONFIG_HOME": str(tmp_path)},
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


class Camera(VideoStreamTrack):
    """Shows one picture, 30 times a second."""

    def __init__(self, picture: Image.Image) -> None:
        super().__init__()
        self._frame = av.VideoFrame.from_image(picture.resize((640, 480)))

    async def recv(self) -> av.VideoFrame:
        self._frame.pts, self._frame.time_base = await self.next_timestamp()
        return self._frame


class Browser:
    """What its page does: a WebSocket for the texts, and a WebRTC connection for the video."""

    def __init__(self, http: aiohttp.ClientSession, updates: aiohttp.ClientWebSocketResponse):
        self._http = http
        self._updates = updates

    async def show(self, picture: Image.Image) -> RTCPeerConnection:
        connection = RTCPeerConnection()
        connection.addTrack(Camera(picture))
        await connection.setLocalDescription(await connection.createOffer())
        body = {"sdp": connection.localDescription.sdp, "type": "offer", "session_id": "page"}
        async with self._http.post("/offer", json=body) as response:
            answer = await response.json()
        await connection.setRemoteDescription(RTCSessionDescription(answer["sdp"], answer["type"]))
        (receiver,) = connection.getReceivers()
        sink = MediaBlackhole()
        sink.addTrack(receiver.track)
        await sink.start()
        return connection

    async def send(self, **message: Any) -> None:
        await self._updates.send_json(message)

    async def wait_for(self, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Return the first message that is as expected."""
        seen: list[str] = []
        try:
            async with asyncio.timeout(TIMEOUT_S):
                while True:
                    message: dict[str, Any] = json.loads((await self._updates.receive()).data)
                    if holds(message):
                        return message
                    seen = [*seen[-20:], str(message.get("text", message))[:200]]
        except TimeoutError:
            raise AssertionError(f"the last messages were {seen}") from None


@asynccontextmanager
async def browser(url: str) -> AsyncIterator[Browser]:
    async with aiohttp.ClientSession(url) as http:
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                try:
                    updates = await http.ws_connect("/ws?session_id=page")
                    break
                except aiohttp.ClientConnectionError:  # it is starting
                    await asyncio.sleep(0.2)
        async with updates:
            yield Browser(http, updates)


def says(text: str) -> Callable[[dict[str, Any]], bool]:
    return lambda message: message["type"] == "vlm_response" and text in message["text"]


def test_it_lists_the_models(web_ui: str) -> None:
    async def run() -> None:
        async with browser(web_ui) as page:
            config = await page.wait_for(lambda message: message["type"] == "server_config")
            assert config["api_base"] == BASE_URL
            async with page._http.get("/models") as response:
                models = (await response.json())["models"]
        current = {model["id"] for model in models if model["current"]}
        assert current == {"moondream"}
        assert {"smolvlm", "qwen2.5-vl"} <= {model["id"] for model in models}

    asyncio.run(run())


def test_it_describes_what_the_camera_shows(web_ui: str) -> None:
    async def run() -> None:
        async with browser(web_ui) as page:
            connection = await page.show(Image.open(FILE).convert("RGB"))
            response = await page.wait_for(says("3"))
            assert response["text"] == "3"
            assert response["metrics"]["total_inferences"] > 0
            await page.send(type="update_prompt", prompt=WHAT_COLOR, max_tokens=20)
            await page.wait_for(says("blue"))
            await page.send(type="update_model", model="qwen2.5-vl")
            prompt = "Describe what you see in this image in one sentence."  # its own
            await page.send(type="update_prompt", prompt=prompt, max_tokens=60)
            described = await page.wait_for(says("circle"))
            for words in ("red circle", "blue square", "yellow triangle"):
                assert words in described["text"]
            await connection.close()

    asyncio.run(run())
