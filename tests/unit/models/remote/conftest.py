"""A real raylens server on its own port, over a fake service."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn

from models.runtime import Runtime
from raylens.api.app import create_app
from raylens.core.types import Delta, SamplingParams, Task, VisionRequest
from testing.pictures import gradient
from tests.unit.raylens.api.conftest import CONFIG, FakeService

PICTURE = gradient(280, 140)


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def url(service: FakeService) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        app = create_app(service, CONFIG)
        server = uvicorn.Server(
            uvicorn.Config(app, log_level="critical", lifespan="off", timeout_graceful_shutdown=1)
        )
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        yield base_url(listener)
        server.should_exit = True
        thread.join(5)


@pytest.fixture
def silent_url() -> Iterator[str]:
    """The URL of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield base_url(listener)


@pytest.fixture
def closed_url() -> str:
    """The URL of a port without a server."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return base_url(listener)


def base_url(listener: socket.socket) -> str:
    port = listener.getsockname()[1]
    return f"http://127.0.0.1:{port}/v1"


def request(
    task: Task, *, seconds: float = 20, stream: bool = True, **sampling: object
) -> VisionRequest:
    params = SamplingParams(**{"max_tokens": 50, **sampling})  # type: ignore[arg-type]
    return VisionRequest("r", "far", task, time.time() + seconds, params, stream=stream)


async def generate(
    runtime: Runtime, vision_request: VisionRequest, pictures: int = 1
) -> list[Delta]:
    return [delta async for delta in runtime.generate(vision_request, [PICTURE] * pictures)]
