"""The page's server with a job queue, over a database in a folder and a scripted model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from raylens.api.app import create_app
from raylens.core.config import AppConfig
from raylens.jobs.factory import create_queue
from raylens.jobs.priority import BackgroundService
from testing.ports import free_port
from tests.browser.scripted_status import ScriptedStatus
from tests.browser.site import CONFIG, ScriptedService, Site, running

JOBS: dict[str, Any] = {
    "capacity": 2000,
    "max_attempts": 1,
    "min_free_bytes": 0,
    "webhooks": {"allow": ["127.0.0.1"]},
}


@contextmanager
def serving_jobs(
    folder: Path, port: int | None = None, jobs: dict[str, Any] | None = None, **config: object
) -> Iterator[Site]:
    """Run a server in a thread. Another one with the same folder goes on with its jobs."""
    service, status = ScriptedService(), ScriptedStatus()
    settings = AppConfig.model_validate(
        {**CONFIG, **config, "jobs": {**JOBS, "data_dir": str(folder), **(jobs or {})}}
    )
    queue = create_queue(settings, BackgroundService(service), environment={})

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
        await queue.open()
        serving = asyncio.create_task(queue.serve())
        yield
        serving.cancel()
        with suppress(asyncio.CancelledError):
            await serving
        await queue.close()

    app = create_app(service, settings, queue, status=status, lifespan=lifespan)
    with running(app, port or free_port(), has_lifespan=True) as server:
        try:
            yield Site(f"http://127.0.0.1:{server.config.port}/", service, status, server)
        finally:
            service.gate.set()
