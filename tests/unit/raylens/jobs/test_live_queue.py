"""A queue whose configuration changes while it runs."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from raylens.core.config import AppConfig
from raylens.core.errors import QueueFull
from raylens.core.live_settings import apply_settings, live_view
from raylens.jobs.blobs import compute_digest, make_reference
from raylens.jobs.factory import create_queue
from raylens.jobs.job import Job, JobState
from tests.unit.raylens.jobs.conftest import FakeService, make_job, wait_until_ended

PICTURE = b"the bytes of a picture"
DIGEST = compute_digest(PICTURE)


@pytest.fixture
def event_loop_policy() -> asyncio.AbstractEventLoopPolicy:
    return asyncio.DefaultEventLoopPolicy()  # real time, for a store on the disk


def caption() -> Job:
    now = time.time()
    times = {"created_at": now, "deadline": now + 60, "rank": now}
    reference = {"image": make_reference(DIGEST)}
    return make_job("caption", reference, blobs=(DIGEST,), **times)


async def test_capacity_recipe_and_limits_of_clients_follow_the_configuration(
    tmp_path: Path,
) -> None:
    jobs: dict[str, Any] = {"data_dir": str(tmp_path), "capacity": 1}
    models = [{"name": "moondream", "family": "moondream"}]
    given = AppConfig.model_validate({"models": models, "jobs": jobs})
    configs = [given]
    service = FakeService()
    queue = create_queue(live_view(lambda: configs[-1]), service)
    await queue.open()
    first, second, third = (caption() for _ in range(3))
    await queue.submit(first, {DIGEST: PICTURE})
    with pytest.raises(QueueFull):
        await queue.submit(second, {DIGEST: PICTURE})
    changed = {
        "jobs": {"capacity": 3},
        "defaults": {"recipe": "plain", "max_tokens": 7},
        "client_limits": {"max_queued_jobs": 2},
    }
    configs.append(apply_settings(given, changed))
    await queue.submit(second, {DIGEST: PICTURE})
    with pytest.raises(QueueFull, match="2"):
        await queue.submit(third, {DIGEST: PICTURE})
    serving = asyncio.create_task(queue.serve())
    async with asyncio.timeout(20):
        for job in (first, second):
            assert (await wait_until_ended(queue, job.id)).state is JobState.SUCCEEDED
    serving.cancel()
    with suppress(asyncio.CancelledError):
        await serving
    assert {request.sampling.max_tokens for request in service.requests} == {7}
    assert {request.recipe for request in service.requests} == {given.named_recipes()["plain"]}
