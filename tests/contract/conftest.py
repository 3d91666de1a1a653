"""Runs every test of this package over each store."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from raylens.jobs.memory import MemoryStore
from raylens.jobs.sql.engines import postgres_store, sqlite_store
from raylens.jobs.store import JobStore
from testing.postgres import new_schema, postgres

STORES = ("memory", "sqlite", "postgres")


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    with postgres() as url:
        yield url


@pytest.fixture(params=STORES)
def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], JobStore]:
    """A function that returns stores over the same data, as in several processes.

    For the memory store, it always returns the same one.
    """
    if request.param == "memory":
        store = MemoryStore()
        return lambda: store
    if request.param == "sqlite":
        return lambda: sqlite_store(tmp_path / "data" / "jobs.sqlite")
    url = new_schema(request.getfixturevalue("postgres_url"))
    return lambda: postgres_store(url)


@pytest.fixture
async def store(make_store: Callable[[], JobStore]) -> AsyncIterator[JobStore]:
    job_store = make_store()
    await job_store.open()
    yield job_store
    await job_store.close()


@pytest.fixture
async def other_store(make_store: Callable[[], JobStore]) -> AsyncIterator[JobStore]:
    """The same data as ``store``, from another process."""
    job_store = make_store()
    await job_store.open()
    yield job_store
    await job_store.close()
