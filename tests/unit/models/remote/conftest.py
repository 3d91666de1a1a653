"""Our own server, over a service that needs no graph, on a port of its own."""

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
    with socket.create_server(("127.0.0.1", 0)) as listening:
        app = create_app(service, CONFIG)
        server = uvicorn.Server(
            uvicorn.Config(app, log_level="critical", lifespan="off", timeout_graceful_shutdown=1)
        )
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        server.should_exit = True
        thread.join(5)


@pytest.fixture
def silent_url() -> Iterator[str]:
    """A server that takes connections, and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"


@pytest.fixture
def closed_url() -> str:
    """Where no server is."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return f"http://127.0.0.1:{listening.getsockname()[1]}/v1"


def request(
    task: Task, *, seconds: float = 20, stream: bool = True, **sampling: object
) -> VisionRequest:
    params = SamplingParams(**{"max_tokens": 50, **sampling})  # type: ignore[arg-type]
    return VisionRequest("r", "far", task, time.time() + seconds, params, stream=stream)


async def ask(runtime: Runtime, wanted: VisionRequest, pictures: int = 1) -> list[Delta]:
    return [delta async for delta in runtime.generate(wanted, [PICTURE] * pictures)]
