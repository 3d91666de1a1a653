"""The store over one database.

One thread does all writes, so that a process never waits for its own locks. JobQueue groups its
writes into batches. A few other threads read.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy import exc

from raylens.core.errors import InsufficientStorage, RaylensError
from raylens.jobs.clock import Clock, SystemClock
from raylens.jobs.files import StoredFile
from raylens.jobs.job import BULKY_FIELDS, Delivery, Job, JobState
from raylens.jobs.sql import blobs as blob_statements
from raylens.jobs.sql import deliveries as delivery_statements
from raylens.jobs.sql import files as file_statements
from raylens.jobs.sql import jobs as job_statements
from raylens.jobs.sql.counters import are_wrong, read_counters, recount
from raylens.jobs.sql.migrate import upgrade
from raylens.jobs.sql.tables import anchors, deliveries, jobs
from raylens.jobs.store import (
    ANY_TYPE,
    MAX_DELIVERIES,
    NO_SHARES,
    STORAGE_RETRY_AFTER_S,
    Change,
    ComputeUpdate,
    JobQuery,
    JobStore,
    NextDue,
    QueueStartupError,
    StoreUnavailable,
    TypeFilter,
)

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

READERS = 4
"""Number of reader threads."""
ADD_ATTEMPTS = 3
"""Number of tries to add jobs while other processes add the same ones."""
RETRY_AFTER_S = 5.0
"""``Retry-After`` if the database doesn't answer, in seconds."""
_MAY_PASS = (exc.OperationalError, exc.InterfaceError, exc.InternalError)
"""SQLAlchemy's errors for a database that is away, locked, full or overloaded."""
_DISK_FULL = frozenset({"SQLITE_FULL", "53100"})
"""SQLite's name and PostgreSQL's SQLSTATE of the error for a full disk."""


class SqlStore(JobStore):
    """A store over one database. :mod:`raylens.jobs.sql.engines` creates it.

    ``clock`` is this machine's. SQLite's own time follows its monotonic clock, so that it is the
    same in every process of the machine, whatever happens to the wall clock.
    """

    def __init__(self, engine: sa.Engine, clock: Clock | None = None) -> None:
        self._engine = engine
        self._read_engine = engine.execution_options(reading=True)
        self._is_postgres = engine.dialect.name == "postgresql"
        self._clock = clock or SystemClock()
        self._epoch = 0.0
        self._failure = ""
        """The driver's message while the database fails."""
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="jobs-write")
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="jobs-read")

    async def open(self) -> None:
        try:
            await self._write(upgrade)
            await self._write(recount)
            if not self._is_postgres:
                clock = self._clock
                times = clock.time(), clock.monotonic()
                self._epoch = await self._write(partial(_anchor, clock.boot_id, *times))
        except StoreUnavailable:
            if self._is_postgres:
                raise
            raise QueueStartupError(f"jobs.store: {self._failure}") from None
        except exc.SQLAlchemyError as error:
            raise QueueStartupError(f"jobs.store: {_driver_message(error)}") from None

    async def close(self) -> None:
        for pool in (self._writer, self._readers):
            await asyncio.to_thread(pool.shutdown)
        self._engine.dispose()

    async def read_clock(self) -> float:
        if not self._is_postgres:
            return self._epoch + self._clock.monotonic()
        query = sa.text("SELECT extract(epoch FROM clock_timestamp())")
        sent_at = self._clock.monotonic()
        server_time: float = await self._read(lambda db: db.scalar(query))
        return float(server_time) + (self._clock.monotonic() - sent_at) / 2

    async def add(
        self, new_jobs: Sequence[Job], capacity: int, shares: Mapping[str, int] = NO_SHARES
    ) -> list[Job | RaylensError]:
        add = partial(job_statements.add, new=new_jobs, capacity=capacity, shares=shares)
        for _ in range(ADD_ATTEMPTS - 1):
            try:
                return await self._write(add)
            except exc.IntegrityError:  # another process has just added one of the jobs
                continue
        return await self._write(add)  # the last try raises

    async def get(
        self, job_ids: Collection[str], bulky_fields: Collection[str] = BULKY_FIELDS
    ) -> dict[str, Job]:
        query = job_statements.select_with(bulky_fields)
        if len(job_ids) == 1:  # faster to compile
            query = query.where(jobs.c.id == next(iter(job_ids)))
        else:
            query = query.where(jobs.c.id.in_(job_ids))
        matches = await self._read(partial(job_statements.select_jobs, query=query))
        return {job.id: job for job in matches}

    async def list_jobs(self, query: JobQuery) -> list[Job]:
        return await self._read(partial(job_statements.list_jobs, query=query))

    async def count_by_state(self) -> dict[JobState, int]:
        counts = await self._read(read_counters)
        return {state: counts.get(state.value, 0) for state in JobState}

    async def check_counts(self) -> None:
        if await self._read(are_wrong):
            logger.warning("the counts of jobs or blobs were wrong; perhaps an older release runs")
            await self._write(recount)

    async def recent_durations(self, limit: int, types: TypeFilter = ANY_TYPE) -> list[float]:
        return await self._read(lambda db: job_statements.recent_durations(db, limit, types))

    async def claim(
        self,
        count: int,
        now: float,
        update: ComputeUpdate,
        held_models: Collection[str] = (),
        types: TypeFilter = ANY_TYPE,
    ) -> list[Job]:
        return await self._write(
            lambda db: job_statements.claim(db, count, now, update, held_models, types)
        )

    async def expire(self, limit: int, now: float, update: ComputeUpdate) -> list[Job]:
        return await self._write(lambda db: job_statements.expire(db, limit, now, update))

    async def next_due(
        self,
        held_models: Collection[str] = (),
        with_claims: bool = True,
        types: TypeFilter = ANY_TYPE,
    ) -> NextDue:
        return await self._read(
            lambda db: job_statements.next_due(db, held_models, with_claims, types)
        )

    async def renew(self, fences: Mapping[str, int], until: float) -> set[str]:
        return await self._write(lambda db: job_statements.renew(db, fences, until))

    async def change(self, changes: Sequence[Change]) -> list[Job | RaylensError | None]:
        return await self._write(partial(job_statements.change, changes=changes))

    async def remove(self, job_id: str) -> Job | None:
        return await self._write(partial(job_statements.remove, job_id=job_id))

    async def deliveries(
        self, job_id: str, limit: int = MAX_DELIVERIES, before: int | None = None
    ) -> list[Delivery]:
        query = sa.select(deliveries).where(deliveries.c.job_id == job_id)
        if before is not None:
            query = query.where(deliveries.c.number < before)
        query = query.order_by(deliveries.c.number.desc()).limit(limit)
        newest_first = await self._read(partial(delivery_statements.select_deliveries, query=query))
        return newest_first[::-1]

    async def claim_deliveries(
        self, count: int, per_host: int, now: float, until: float, busy_hosts: Collection[str]
    ) -> list[Delivery]:
        return await self._write(
            lambda db: delivery_statements.claim_deliveries(
                db, count, per_host, now, until, busy_hosts
            )
        )

    async def next_delivery_due(self, busy_hosts: Collection[str]) -> float:
        return await self._read(
            partial(delivery_statements.next_delivery_due, busy_hosts=busy_hosts)
        )

    async def settle_delivery(
        self, delivery: Delivery, pause_until: float | None, is_gone: bool
    ) -> bool:
        return await self._write(
            lambda db: delivery_statements.settle_delivery(db, delivery, pause_until, is_gone)
        )

    async def redeliver(self, job_id: str, number: int, now: float) -> Delivery | None:
        return await self._write(lambda db: delivery_statements.redeliver(db, job_id, number, now))

    async def purge(self, ended_before: float, limit: int) -> int:
        return await self._write(lambda db: job_statements.purge(db, ended_before, limit))

    async def purge_deliveries(self, due_before: float, limit: int) -> int:
        return await self._write(
            lambda db: delivery_statements.purge_deliveries(db, due_before, limit)
        )

    async def drop_pictures(self, ended_before: float, limit: int) -> int:
        return await self._write(lambda db: job_statements.drop_pictures(db, ended_before, limit))

    async def count_queued(self, client: str) -> int:
        counts = await self._read(lambda db: job_statements.count_queued_by_client(db, [client]))
        return int(counts[client])

    async def client_bytes(self, client: str, besides: Collection[str]) -> int:
        return await self._read(lambda db: blob_statements.client_bytes(db, client, besides))

    async def touch_blobs(self, sizes: Mapping[str, int], now: float, max_bytes: float) -> set[str]:
        return await self._write(lambda db: blob_statements.touch_blobs(db, sizes, now, max_bytes))

    async def mark_unused_blobs(
        self, touched_before: float, now: float, until: float, limit: int
    ) -> list[str]:
        # The search may take long, so it doesn't hold up the writer.
        candidates = await self._read(
            lambda db: blob_statements.find_unused_blobs(db, touched_before, now, limit)
        )
        if not candidates:
            return []
        return await self._write(
            lambda db: blob_statements.mark_blobs(db, candidates, touched_before, now, until)
        )

    async def forget_blobs(self, digests: Collection[str]) -> None:
        await self._write(partial(blob_statements.forget_blobs, digests=digests))

    async def renew_marks(self, digests: Collection[str], until: float) -> None:
        await self._write(lambda db: blob_statements.renew_marks(db, digests, until))

    async def unmark_blobs(self, digests: Collection[str], touched_at: float) -> None:
        await self._write(lambda db: blob_statements.unmark_blobs(db, digests, touched_at))

    async def add_file(self, file: StoredFile, digests: Sequence[str]) -> None:
        await self._write(lambda db: file_statements.add_file(db, file, digests))

    async def append_to_file(
        self,
        file: StoredFile,
        digest: str,
        size: int,
        job_id: str,
        fence: int,
        replaces: str | None = None,
    ) -> None:
        await self._write(
            lambda db: file_statements.append_to_file(
                db, file, digest, size, job_id, fence, replaces
            )
        )

    async def get_file(self, file_id: str) -> StoredFile | None:
        return await self._read(partial(file_statements.get_file, file_id=file_id))

    async def keep_file(self, file_id: str, until: float) -> StoredFile | None:
        return await self._write(lambda db: file_statements.keep_file(db, file_id, until))

    async def file_part(self, file_id: str, number: int) -> str | None:
        return await self._read(lambda db: file_statements.select_part(db, file_id, number))

    async def file_parts(self, file_id: str) -> list[str]:
        return await self._read(partial(file_statements.select_parts, file_id=file_id))

    async def list_files(
        self,
        purpose: str | None,
        limit: int,
        after_id: str | None,
        newest_first: bool,
        owner: str | None = None,
    ) -> list[StoredFile]:
        return await self._read(
            lambda db: file_statements.list_files(db, purpose, limit, after_id, newest_first, owner)
        )

    async def remove_file(self, file_id: str) -> bool:
        return await self._write(partial(file_statements.remove_file, file_id=file_id))

    async def purge_files(self, now: float, limit: int) -> int:
        return await self._write(lambda db: file_statements.purge_files(db, now, limit))

    async def _write(self, work: Callable[[sa.Connection], Result]) -> Result:
        return await self._run(self._writer, self._engine, work)

    async def _read(self, work: Callable[[sa.Connection], Result]) -> Result:
        return await self._run(self._readers, self._read_engine, work)

    async def _run(
        self,
        threads: ThreadPoolExecutor,
        engine: sa.Engine,
        work: Callable[[sa.Connection], Result],
    ) -> Result:
        """Run ``work`` in a transaction in a thread.

        Raises ``StoreUnavailable`` and ``InsufficientStorage`` for errors that may pass.
        """
        try:
            result = await asyncio.get_running_loop().run_in_executor(
                threads, _in_transaction, engine, work
            )
        except exc.DBAPIError as error:
            if not isinstance(error, _MAY_PASS) and not error.connection_invalidated:
                raise
            self._log_failure(error)
            raise _translate(error) from None
        except exc.TimeoutError as error:
            self._log_failure(error)
            raise _translate(error) from None
        if self._failure:
            logger.warning("the job store answers again")
            self._failure = ""
        return result

    def _log_failure(self, error: exc.SQLAlchemyError) -> None:
        """Log the first failure of an outage."""
        if not self._failure:
            logger.warning("the job store fails: %s", _driver_message(error))
        self._failure = _driver_message(error)


def _in_transaction(engine: sa.Engine, work: Callable[[sa.Connection], Result]) -> Result:
    with engine.begin() as db:
        return work(db)


def _translate(error: exc.SQLAlchemyError) -> RaylensError:
    """Return an error for callers. The driver's message may name hosts, users and files."""
    original = getattr(error, "orig", None)
    code = getattr(original, "sqlite_errorname", None) or getattr(original, "sqlstate", None)
    if code in _DISK_FULL:
        message = "the disk of the job store is full"
        return InsufficientStorage(message, None, None, None, STORAGE_RETRY_AFTER_S)
    message = "the job store doesn't answer; see the server's log"
    return StoreUnavailable(message, None, None, None, RETRY_AFTER_S)


def _driver_message(error: exc.SQLAlchemyError) -> str:
    """Return the driver's message, without the statement and its parameters."""
    return str(getattr(error, "orig", None) or error).strip()


def _anchor(boot_id: str, wall: float, monotonic: float, db: sa.Connection) -> float:
    """Return what to add to the monotonic clock to get the store's time.

    The first process after a start of the machine sets it, from its wall clock. A machine without a
    battery may start with its wall clock far behind: the store's time is never before its jobs'.
    """
    if not boot_id:
        return wall - monotonic
    epoch = db.scalar(sa.select(anchors.c.epoch).where(anchors.c.boot_id == boot_id))
    if epoch is None:
        epoch = max(wall, job_statements.find_latest_time(db)) - monotonic
        db.execute(sa.delete(anchors))
        db.execute(sa.insert(anchors).values(boot_id=boot_id, epoch=epoch))
    return float(epoch)
