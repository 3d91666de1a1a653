"""The queue's parts, as the configuration names them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping

from raylens import __version__
from raylens.core.config import AppConfig, JobsConfig
from raylens.core.ports import VisionService
from raylens.jobs.blobs import Blobs
from raylens.jobs.inference import InferenceClient
from raylens.jobs.metrics import JobMetrics
from raylens.jobs.queue import JobQueue
from raylens.jobs.registry import job_types
from raylens.jobs.sql import postgres_store, sqlite_store
from raylens.jobs.store import JobStore, StoreUnusable
from raylens.jobs.webhooks import check_secret
from raylens.net.address import AllowList
from raylens.net.client import GuardedClient

DATABASE = "jobs.sqlite"


def create_queue(
    config: AppConfig,
    service: VisionService,
    metrics: JobMetrics | None = None,
    environment: Mapping[str, str] = os.environ,
) -> JobQueue:
    """Not opened yet. Raises ``StoreUnusable``, which names the setting."""
    jobs = config.jobs
    return JobQueue(
        make_store(jobs),
        make_blobs(jobs),
        job_types(),
        InferenceClient(service, config),
        GuardedClient(
            AllowList.parse(jobs.webhooks.allow), jobs.webhooks.timeout_s, user_agent(jobs)
        ),
        webhook_secrets(jobs, environment),
        jobs,
        metrics,
    )


def check(jobs: JobsConfig, environment: Mapping[str, str] = os.environ) -> None:
    """What can be known on this machine before anything is started. Raises ``StoreUnusable``,
    naming the setting."""
    webhook_secrets(jobs, environment)
    make_blobs(jobs)
    store = make_store(jobs)

    async def open_and_close() -> None:
        if jobs.store == "sqlite":
            await store.open()
        await store.close()

    asyncio.run(open_and_close())


def make_store(config: JobsConfig) -> JobStore:
    if config.store == "sqlite":
        try:
            return sqlite_store(config.folder / DATABASE)
        except OSError as error:
            raise StoreUnusable(f"jobs.data_dir: {error}") from error
    return postgres_store(config.store)


def make_blobs(config: JobsConfig) -> Blobs:
    try:
        return Blobs(config.blobs_url)
    except (ImportError, ValueError) as error:
        raise StoreUnusable(f"jobs.blobs: {error}") from error


def webhook_secrets(config: JobsConfig, environment: Mapping[str, str]) -> list[str]:
    """Those that are active, from the environment; none leaves webhooks unsigned."""
    name = config.webhooks.secrets_env
    try:
        return [check_secret(secret) for secret in environment.get(name, "").split()]
    except ValueError as error:
        raise StoreUnusable(f"jobs.webhooks.secrets_env: {name}: {error}") from None


def user_agent(config: JobsConfig) -> str:
    client = config.webhooks.client_id
    return f"raylens/{__version__} ({client})" if client else f"raylens/{__version__}"
