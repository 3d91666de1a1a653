"""Every store, one after the other, behind the same tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from raylens.jobs.memory import MemoryStore
from raylens.jobs.sql import postgres_store, sqlite_store
from raylens.jobs.store import JobStore
from testing.postgres import new_schema, postgres

STORES = ("memory", "sqlite", "postgres")


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    with postgres() as url:
        yield url


@pytest.fixture(params=STORES)
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], JobStore]:
    """Makes stores over the same data, as several processes have them; the memory's has one alone."""
    if request.param == "memory":
        store = MemoryStore()
        return lambda: store
    if request.param == "sqlite":
        return lambda: sqlite_store(tmp_path / "data" / "jobs.sqlite")
    url = new_schema(request.getfixturevalue("postgres_url"))
    return lambda: postgres_store(url)


@pytest.fixture
async def store(make: Callable[[], JobStore]) -> AsyncIterator[JobStore]:
    made = make()
    await made.open()
    yield made
    await made.close()


@pytest.fixture
async def other(make: Callable[[], JobStore]) -> AsyncIterator[JobStore]:
    """The same store from another process."""
    made = make()
    await made.open()
    yield made
    await made.close()
