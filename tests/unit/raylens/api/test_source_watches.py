"""What one process watches: sources in their places, as long as their keys are valid."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from raylens.api.access_log import RequestMetrics
from raylens.api.app import create_app
from raylens.api.shared import Shared
from raylens.api.source_watches import SourceWatches
from raylens.core.config import AppConfig
from raylens.core.draining import Draining
from raylens.core.errors import InvalidRequest, Overloaded, PermissionDenied
from raylens.core.key_source import KeySource
from raylens.core.live_settings import live_view
from raylens.realtime.ports import SessionClient
from raylens.realtime.watch import SessionFeed
from testing.mjpeg_server import WebCamera, running_web_camera
from testing.pictures import encode_picture, random_pixels
from tests.unit.raylens.api.conftest import CONFIG, FakeService
from tests.unit.raylens.api.test_frame_socket import keyed

CLIENT = SessionClient("camera", "camera")
SETTINGS = {"feature": "detect", "detect_object": "cup", "inference_interval": 1, "tracking": False}


@pytest.fixture
def executor() -> Iterator[Executor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


@pytest.fixture
def camera() -> Iterator[WebCamera]:
    _, data = cv2.imencode(".jpg", np.full((48, 64, 3), 90, np.uint8))
    with running_web_camera(WebCamera([data.tobytes()])) as camera:
        yield camera


def with_settings(**settings: Any) -> AppConfig:
    jobs = {"watches": {"allow": ["127.0.0.1"]}}
    return AppConfig.model_validate({**CONFIG.model_dump(), "jobs": jobs, **settings})


class Process:
    """A process that watches."""

    def __init__(self, executor: Executor, room: int = 2, **settings: Any) -> None:
        tasks = ("caption", "query", "detect", "point", "chat")
        self.shared = Shared(with_settings(**settings))
        self.service = FakeService(tasks={"smolvlm": tasks})
        create_app(self.service, self.shared.config, shared=self.shared)
        self.drains = False
        keys = KeySource(live_view(lambda: self.shared.config))
        draining = Draining(lambda: self.drains)
        self.watches = SourceWatches(
            self.shared, RequestMetrics(), keys, executor, draining, lambda: room
        )

    def watch(self, camera: WebCamera) -> AsyncGenerator[dict[str, Any], None]:
        return self.watches.watch(camera.url(), SETTINGS, 30, CLIENT)


@asynccontextmanager
async def running(
    messages: AsyncGenerator[dict[str, Any], None],
) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
    try:
        async with asyncio.timeout(20):
            yield messages
    finally:
        await messages.aclose()


async def read_until(messages: AsyncIterator[dict[str, Any]], kind: str) -> dict[str, Any]:
    async for message in messages:
        if message["type"] == kind:
            return message
    raise AssertionError(f"it ended without {kind}")


async def test_a_camera_is_watched(executor: Executor, camera: WebCamera) -> None:
    process = Process(executor)
    async with running(process.watch(camera)) as messages:
        assert (await anext(messages))["status"] == "connecting"
        assert (await anext(messages))["status"] == "connected"
        result = await read_until(messages, "result")
        assert len(result["objects"]) == 2
        started = await read_until(messages, "event")
        assert started["event"]["subject"] == "cup"
        assert len(process.watches) == 1
    assert len(process.watches) == 0
    async with asyncio.timeout(5):
        while camera.open_connections:
            await asyncio.sleep(0.01)


async def test_a_drain_ends_watches_and_lets_none_begin(
    executor: Executor, camera: WebCamera
) -> None:
    process = Process(executor)
    async with running(process.watch(camera)) as messages:
        await read_until(messages, "event")
        process.drains = True
        process.watches.stop()
        ended = await read_until(messages, "event")
        assert ended["event"]["type"] == "ended"
        assert await anext(messages, None) is None
    with pytest.raises(Overloaded, match="about to stop"):
        await anext(process.watch(camera))


async def test_no_more_is_watched_than_there_is_room_for(
    executor: Executor, camera: WebCamera
) -> None:
    process = Process(executor, room=2)
    watches = [process.watch(camera) for _ in range(5)]
    first = await asyncio.gather(*map(anext, watches), return_exceptions=True)
    assert [isinstance(each, Overloaded) for each in first] == [False, False, True, True, True]
    for watch in watches:
        await watch.aclose()
    async with running(process.watch(camera)) as messages:
        await anext(messages)


async def test_a_watch_ends_with_its_key(executor: Executor, camera: WebCamera) -> None:
    process = Process(executor, **keyed("camera"))
    async with running(process.watch(camera)) as messages:
        await read_until(messages, "result")
        process.shared.configure(with_settings(**keyed("other")))
        with pytest.raises(PermissionDenied, match="no longer valid"):
            await read_until(messages, "nothing")
    with pytest.raises(PermissionDenied):
        await anext(process.watch(camera))


async def test_a_source_that_is_not_allowed_ends_the_watch(executor: Executor) -> None:
    process = Process(executor)
    messages = process.watches.watch("rtsp://10.0.0.1/1", SETTINGS, 1, CLIENT)
    async with running(messages):
        with pytest.raises(InvalidRequest, match=r"jobs\.watches\.allow"):
            await read_until(messages, "nothing")


async def test_links_in_a_watched_folder_are_not_followed(
    executor: Executor, tmp_path: Path
) -> None:
    folder, outside = tmp_path / "root" / "door", tmp_path / "outside.png"
    folder.mkdir(parents=True)
    outside.write_bytes(encode_picture(random_pixels(10, 10)))
    (folder / "link.png").symlink_to(outside)

    async def change_both() -> None:
        for seed in itertools.count():
            outside.write_bytes(encode_picture(random_pixels(10, 10, seed)))
            await asyncio.sleep(0.15)
            (folder / "1.png").write_bytes(encode_picture(random_pixels(20, 20, seed)))
            await asyncio.sleep(0.15)

    process = Process(executor, media_root=str(tmp_path / "root"))
    changing = asyncio.create_task(change_both())
    async with running(process.watches.watch("door", SETTINGS, 30, CLIENT)) as messages:
        for _ in range(3):
            await read_until(messages, "result")
    changing.cancel()
    assert {Image.open(BytesIO(data)).size for data in process.service.pictures} == {(20, 20)}


async def test_a_folder_is_connected_before_a_picture_comes(
    executor: Executor, tmp_path: Path
) -> None:
    (tmp_path / "door").mkdir()
    process = Process(executor, media_root=str(tmp_path))
    messages = process.watches.watch("door", SETTINGS, 30, CLIENT)
    async with running(messages):
        assert (await anext(messages))["status"] == "connecting"
        assert (await anext(messages))["status"] == "connected"
        picture = cv2.imencode(".png", np.zeros((48, 64, 3), np.uint8))[1].tobytes()
        async with asyncio.TaskGroup() as group:
            adding = group.create_task(add_pictures(tmp_path / "door", picture[:60]))
            error = await read_until(messages, "error")
            adding.cancel()
        assert error["error"].startswith("door/")
        (tmp_path / "door" / "whole.png").write_bytes(picture)
        await read_until(messages, "result")


async def add_pictures(folder: Path, data: bytes) -> None:
    """Add pictures until one comes after the folder was listed for the first time."""
    for number in itertools.count():
        (folder / f"{number}.png").write_bytes(data)
        await asyncio.sleep(0.1)


async def test_who_follows_a_session_needs_a_valid_key(executor: Executor) -> None:
    process = Process(executor, **keyed("camera"))
    feed = SessionFeed()
    report = feed.passing_on(lambda message: None)
    messages = process.watches.follow(feed, CLIENT)
    async with running(messages):
        waiting = asyncio.ensure_future(anext(messages))
        await asyncio.sleep(0)
        report({"type": "event", "event": {"type": "started"}})
        assert (await waiting)["event"] == {"type": "started"}
        feed.end()
        assert await anext(messages) == {"type": "end"}
    process.shared.configure(with_settings(**keyed("other")))
    with pytest.raises(PermissionDenied):
        await anext(process.watches.follow(SessionFeed(), CLIENT))
