"""Builds the queue and its parts from the configuration."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterable, Mapping
from functools import partial

from raylens import __version__
from raylens.core.config import AppConfig, JobsConfig
from raylens.core.key_source import KeySource
from raylens.core.live_settings import live_view
from raylens.core.ports import VisionService
from raylens.jobs.blobs import BlobStorage
from raylens.jobs.clock import StoreClock, SystemClock
from raylens.jobs.inference import InferenceClient
from raylens.jobs.job_files import JobFiles
from raylens.jobs.metrics import JobMetrics
from raylens.jobs.picture_storage import PictureStorage
from raylens.jobs.queue import JobQueue
from raylens.jobs.registry import load_job_types
from raylens.jobs.runner import TypedJobRunner
from raylens.jobs.sources.registry import make_source
from raylens.jobs.sql.engines import postgres_store, sqlite_store
from raylens.jobs.store import JobStore, QueueStartupError
from raylens.jobs.types.base import JobType
from raylens.jobs.webhooks import check_secret
from raylens.net.address import AllowList
from raylens.net.client import GuardedClient

DATABASE_FILE = "jobs.sqlite"
"""File name of the SQLite database in ``jobs.data_dir``."""


def create_queue(
    config: AppConfig,
    service: VisionService,
    metrics: JobMetrics | None = None,
    more_types: Iterable[JobType] = (),
    environment: Mapping[str, str] = os.environ,
) -> JobQueue:
    """Return a queue that is not opened yet. ``more_types`` are job types beside the registered.

    ``config`` may be a :func:`raylens.core.live_settings.live_view` one.
    Raises ``QueueStartupError``, which names the invalid setting.
    """
    jobs_config = live_view(lambda: config.jobs)
    allowed = parse_allowed(jobs_config)
    clock = StoreClock(SystemClock())
    store = make_store(jobs_config)
    blobs = make_blob_storage(jobs_config)
    inference = InferenceClient(service, config)
    free_space = partial(free_bytes, jobs_config, blobs)
    pictures = PictureStorage(store, blobs, jobs_config, clock, free_space)
    files = JobFiles(store, pictures)
    types = {**load_job_types(), **{job_type.name: job_type for job_type in more_types}}
    runner = TypedJobRunner(types, inference, blobs, files, jobs_config, clock.machine)
    return JobQueue(
        store,
        pictures,
        runner,
        GuardedClient(allowed, jobs_config.webhooks.timeout_s, user_agent(jobs_config)),
        read_webhook_secrets(jobs_config, environment),
        jobs_config,
        clock,
        metrics,
        KeySource(config).limits_of,
    )


def check_settings(config: JobsConfig, environment: Mapping[str, str] = os.environ) -> None:
    """Check the settings before the server starts, without network access.

    A SQLite database is opened, and so created or migrated. A plugin that can't be loaded is
    logged. Raises ``QueueStartupError``, which names the invalid setting.
    """
    load_job_types()
    parse_allowed(config)
    check_picture_source(config)
    read_webhook_secrets(config, environment)
    make_blob_storage(config)
    store = make_store(config)

    async def open_and_close() -> None:
        if config.store == "sqlite":
            await store.open()
        await store.close()

    asyncio.run(open_and_close())


def make_store(config: JobsConfig) -> JobStore:
    """Return the store that ``jobs.store`` selects. Raises ``QueueStartupError``."""
    if config.store != "sqlite":
        return postgres_store(config.store)
    try:
        return sqlite_store(config.folder / DATABASE_FILE)
    except OSError as error:
        raise QueueStartupError(f"jobs.data_dir: {error}") from error


def make_blob_storage(config: JobsConfig) -> BlobStorage:
    """Return the storage that ``jobs.blobs`` selects. Raises ``QueueStartupError``."""
    try:
        return BlobStorage(config.blobs_url)
    except (ImportError, ValueError) as error:
        raise QueueStartupError(f"jobs.blobs: {error}") from error


def parse_allowed(config: JobsConfig) -> AllowList:
    """Return the addresses and hosts that webhooks may reach. Raises ``QueueStartupError``."""
    try:
        return AllowList.parse(config.webhooks.allow)
    except ValueError as error:
        raise QueueStartupError(f"jobs.webhooks.allow: {error}") from None


def check_picture_source(config: JobsConfig) -> None:
    """Raise ``QueueStartupError`` if the picture source can't be made."""
    try:
        make_source(config)
    except (ImportError, ValueError) as error:
        raise QueueStartupError(f"jobs.picture_source: {error}") from error


def free_bytes(config: JobsConfig, blobs: BlobStorage) -> float:
    """Return the free bytes of the disk with the queue's files; infinity if it has none."""
    if config.store != "sqlite":
        return blobs.free_bytes()
    return min(shutil.disk_usage(config.folder).free, blobs.free_bytes())


def read_webhook_secrets(config: JobsConfig, environment: Mapping[str, str]) -> list[str]:
    """Return the server's webhook secrets. Without any, webhooks are unsigned.

    Raises ``QueueStartupError`` if a secret is invalid.
    """
    name = config.webhooks.secrets_env
    try:
        return [check_secret(secret) for secret in environment.get(name, "").split()]
    except ValueError as error:
        raise QueueStartupError(f"jobs.webhooks.secrets_env: {name}: {error}") from None


def user_agent(config: JobsConfig) -> str:
    """Return the User-Agent header of webhooks."""
    client = config.webhooks.client_id
    return f"raylens/{__version__} ({client})" if client else f"raylens/{__version__}"
