"""Builds the queue and its parts from the configuration."""

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
from raylens.jobs.registry import load_job_types
from raylens.jobs.sql import postgres_store, sqlite_store
from raylens.jobs.store import JobStore, StoreUnusable
from raylens.jobs.webhooks import check_secret
from raylens.net.address import AllowList
from raylens.net.client import GuardedClient

DATABASE = "jobs.sqlite"
"""File name of the SQLite database in ``jobs.data_dir``."""


def create_queue(
    config: AppConfig,
    service: VisionService,
    metrics: JobMetrics | None = None,
    environment: Mapping[str, str] = os.environ,
) -> JobQueue:
    """Return a queue that is not opened yet.

    Raises ``StoreUnusable``, which names the invalid setting.
    """
    jobs = config.jobs
    allowed = AllowList.parse(jobs.webhooks.allow)
    return JobQueue(
        make_store(jobs),
        make_blobs(jobs),
        load_job_types(),
        InferenceClient(service, config),
        GuardedClient(allowed, jobs.webhooks.timeout_s, user_agent(jobs)),
        webhook_secrets(jobs, environment),
        jobs,
        metrics,
    )


def check_settings(jobs: JobsConfig, environment: Mapping[str, str] = os.environ) -> None:
    """Check the settings before the server starts, without network access.

    Raises ``StoreUnusable``, which names the invalid setting.
    """
    webhook_secrets(jobs, environment)
    make_blobs(jobs)
    store = make_store(jobs)

    async def open_and_close() -> None:
        if jobs.store == "sqlite":
            await store.open()
        await store.close()

    asyncio.run(open_and_close())


def make_store(config: JobsConfig) -> JobStore:
    """Return the store of ``jobs.store``. Raises ``StoreUnusable``."""
    if config.store != "sqlite":
        return postgres_store(config.store)
    try:
        return sqlite_store(config.folder / DATABASE)
    except OSError as error:
        raise StoreUnusable(f"jobs.data_dir: {error}") from error


def make_blobs(config: JobsConfig) -> Blobs:
    """Return the blob storage of ``jobs.blobs``. Raises ``StoreUnusable``."""
    try:
        return Blobs(config.blobs_url)
    except (ImportError, ValueError) as error:
        raise StoreUnusable(f"jobs.blobs: {error}") from error


def webhook_secrets(config: JobsConfig, environment: Mapping[str, str]) -> list[str]:
    """Return the server's webhook secrets; without any, webhooks are unsigned.

    Raises ``StoreUnusable`` if one is invalid.
    """
    name = config.webhooks.secrets_env
    try:
        return [check_secret(secret) for secret in environment.get(name, "").split()]
    except ValueError as error:
        raise StoreUnusable(f"jobs.webhooks.secrets_env: {name}: {error}") from None


def user_agent(config: JobsConfig) -> str:
    """Return the User-Agent header of webhooks."""
    client = config.webhooks.client_id
    return f"raylens/{__version__} ({client})" if client else f"raylens/{__version__}"
