"""Chromium without a display, remote-controlled over its DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import websockets
from websockets.asyncio.client import ClientConnection

from raylens.realtime.overlay import Pixels

START_S = 60.0
CALL_S = 60.0


class Page:
    """A page of a browser."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._numbers = count(1)

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol. Raises ``RuntimeError`` if it fails."""
        number = next(self._numbers)
        await self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        async with asyncio.timeout(CALL_S):
            while (message := json.loads(await self._socket.recv())).get("id") != number:
                pass  # an event
        if "error" in message:
            raise RuntimeError(message["error"])
        result: dict[str, Any] = message["result"]
        return result

    async def run(self, script: str) -> Any:
        """Return the value of an expression, or of its promise. Raises ``RuntimeError``."""
        result = await self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in result:
            raise RuntimeError(result["exceptionDetails"]["exception"].get("description"))
        return result["result"].get("value")


@asynccontextmanager
async def open_page(url: str, folder: Path, camera: Path) -> AsyncIterator[Page]:
    """Open a page in a browser of its own, whose camera shows a video file (Y4M) in a loop."""
    command = [
        "chromium",
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--remote-debugging-port=0",
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-video-capture={camera}",
        f"--user-data-dir={folder}",
        url,
    ]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        async with asyncio.timeout(START_S):
            address = await _find_page(folder / "DevToolsActivePort", url)
        async with websockets.connect(address, max_size=None) as socket:
            yield Page(socket)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


async def _find_page(port_file: Path, url: str) -> str:
    """Return the address of a page's debugger, once the browser has started."""
    async with httpx.AsyncClient() as http:
        while True:
            await asyncio.sleep(0.1)
            if not (port_file.exists() and (lines := port_file.read_text().splitlines())):
                continue
            pages = (await http.get(f"http://127.0.0.1:{lines[0]}/json/list")).json()
            for page in pages:
                if page["type"] == "page" and page["url"].startswith(url):
                    return str(page["webSocketDebuggerUrl"])


def write_y4m(path: Path, frames: Iterable[Pixels], fps: int) -> None:
    """Write frames of one size as an uncompressed video."""
    with path.open("wb") as file:
        for number, pixels in enumerate(frames):
            height, width = pixels.shape[:2]
            if not number:
                file.write(f"YUV4MPEG2 W{width} H{height} F{fps}:1 Ip A1:1 C420\n".encode())
            file.write(b"FRAME\n" + cv2.cvtColor(pixels, cv2.COLOR_RGB2YUV_I420).tobytes())


def read_data_url(url: str) -> Pixels:
    """Return the pixels of a picture in a data URL."""
    data = base64.b64decode(url.partition(",")[2])
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None
    pixels: Pixels = picture[..., ::-1]
    return pixels
