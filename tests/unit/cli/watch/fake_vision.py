"""A fake of the server that sees red circles, and drawn videos of them."""

from __future__ import annotations

import asyncio
import base64
import io
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import cv2
import httpx
import numpy as np
import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from models.pocket.video_files import encode_video
from raylens.realtime.overlay import Pixels
from testing.ports import free_port

RED = (220, 40, 40)
SIDE = 60
WIDTH, HEIGHT = 320, 240
FPS = 10
FRAMES = 60
FIRST, LAST = 20, 40
"""The circle is on these frames, without the last one."""


class FakeVision:
    """The routes of Moondream's dialect. It finds the red circle, and counts it in words."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        """All requests, without their pictures."""
        self.paths: list[str] = []
        self.keys: list[str] = []
        self.failures: list[tuple[int, dict[str, str]]] = []
        """Statuses and headers of the next answers, instead of what is seen."""
        self.refuses: Callable[[Pixels], int] = lambda pixels: 0
        """Returns the status that refuses a picture."""
        self.reason = ""
        """Why a picture is refused."""
        self.random: random.Random | None = None
        """If there is one, answers take a random time, and overtake one another."""
        self.open = 0
        self.most_open = 0
        routes = [
            Route("/v1/chat/completions", self._look, methods=["POST"]),
            Route("/v1/{task}", self._answer, methods=["POST"]),
        ]
        self.app = Starlette(routes=routes)
        self.transport: httpx.AsyncBaseTransport = httpx.ASGITransport(self.app)

    @property
    def client_arguments(self) -> dict[str, Any]:
        return {"transport": self.transport, "sleep": nap}

    async def _look(self, request: Request) -> JSONResponse:
        """Answer with a 1 for each frame with a circle, and a 0 for each other."""
        body = await request.json()
        self.paths.append(request.url.path)
        self.bodies.append(body)
        video = body["messages"][0]["content"][0]["video"]
        text = "".join("01"[find(decode(frame)) is not None] for frame in video)
        return JSONResponse({"choices": [{"message": {"content": text}}]})

    async def _answer(self, request: Request) -> JSONResponse:
        body = await request.json()
        pixels = decode(body.pop("image_url"))
        self.paths.append(request.url.path)
        self.bodies.append(body)
        self.keys.append(request.headers.get("authorization", ""))
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            await asyncio.sleep(self.random.uniform(0, 0.02) if self.random else 0)
        finally:
            self.open -= 1
        if self.failures:
            status, headers = self.failures.pop(0)
            return JSONResponse({"detail": f"it is {status}"}, status, headers)
        if status := self.refuses(pixels):
            return JSONResponse({"detail": self.reason or f"refused: {status}"}, status)
        return JSONResponse(see(request.path_params["task"], pixels))


def decode(data_url: str) -> Pixels:
    data = base64.b64decode(data_url.removeprefix("data:image/jpeg;base64,"))
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def see(task: str, pixels: Pixels) -> dict[str, Any]:
    box = find(pixels)
    if task == "caption":
        return {"caption": f" {'a circle' if box else 'nothing'}\n"}
    if task == "query":
        return {"answer": "Yes, it is." if box else "No."}
    if box is None:
        return {"objects": []} if task == "detect" else {"points": []}
    height, width = pixels.shape[:2]
    left, top, right, bottom = box[0] / width, box[1] / height, box[2] / width, box[3] / height
    if task == "point":
        return {"points": [{"x": (left + right) / 2, "y": (top + bottom) / 2}]}
    return {"objects": [{"x_min": left, "y_min": top, "x_max": right, "y_max": bottom}]}


def find(pixels: Pixels, color: tuple[int, int, int] = RED) -> tuple[int, int, int, int] | None:
    """Return the bounds of the pixels of about a color: left, top, right, bottom."""
    rows, columns = np.nonzero(np.abs(pixels.astype(int) - color).max(axis=2) < 70)
    if not len(rows):
        return None
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


def draw_frame(number: int, width: int = WIDTH, height: int = HEIGHT) -> Pixels:
    """Return a frame of the video; from 20 to 39 a circle moves to the right."""
    pixels = np.full((height, width, 3), 190, np.uint8)
    if FIRST <= number < LAST:
        center = (20 + SIDE // 2 + 8 * (number - FIRST), height // 2)
        cv2.circle(pixels, center, SIDE // 2, RED, -1, cv2.LINE_AA)
    return pixels


def write_video(path: Path, container: str = "mp4") -> Path:
    frames = [draw_frame(number) for number in range(FRAMES)]
    path.write_bytes(encode_video(frames, FPS, container=container))
    return path


async def nap(seconds: float) -> None:
    await asyncio.sleep(0)


@contextmanager
def serving(vision: FakeVision) -> Iterator[str]:
    """Serve on a real port, and yield the URL."""
    config = uvicorn.Config(
        vision.app, port=free_port(), log_level="critical", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = Thread(target=server.run)
    thread.start()
    try:
        yield f"http://127.0.0.1:{config.port}"
    finally:
        server.should_exit = True
        thread.join(10)
