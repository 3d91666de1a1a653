"""The durable store, on SQLAlchemy Core: SQLite or PostgreSQL.

One thread does all writes, so that a process never waits for its own locks. JobQueue groups its
writes into batches. A few other threads read.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError

from raylens.core.errors import RaylensError
from raylens.jobs.job import TERMINAL, Delivery, DeliveryState, Job, JobState
from raylens.jobs.migrate import upgrade
from raylens.jobs.store import (
    Change,
    ComputeUpdate,
    JobStore,
    QueueStartupError,
    StoreUnreachable,
    admit,
)
from raylens.jobs.tables import (
    MUTABLE_COLUMNS,
    blobs,
    deliveries,
    delivery_from_row,
    delivery_to_row,
    gone_endpoints,
    job_blobs,
    job_from_row,
    job_to_row,
    jobs,
)
from raylens.jobs.transitions import JobUpdate

Result = TypeVar("Result")

READERS = 4
"""Number of reader threads."""
ADD_ATTEMPTS = 3
"""Number of tries to add jobs while other processes add the same ones."""

_is_pending = deliveries.c.state == DeliveryState.PENDING
_UPDATE_JOB = (
    sa.update(jobs)
    .where(jobs.c.id == sa.bindparam("job_id"))
    .values({name: sa.bindparam(f"new_{name}") for name in MUTABLE_COLUMNS})
)


class SqlStore(JobStore):
    """A store over one database. :mod:`raylens.jobs.sql_engines` creates it."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._read_engine = engine.execution_options(reading=True)
        self._is_postgres = engine.dialect.name == "postgresql"
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="jobs-write")
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="jobs-read")

    async def open(self) -> None:
        try:
            await self._write(upgrade)
        except SQLAlchemyError as error:
            error_type = StoreUnreachable if self._is_postgres else QueueStartupError
            raise error_type(f"jobs.store: {getattr(error, 'orig', None) or error}") from error

    async def close(self) -> None:
        for pool in (self._writer, self._readers):
            await asyncio.to_thread(pool.shutdown)
        self._engine.dispose()

    async def clock_skew(self) -> float:
        if not self._is_postgres:
            return 0.0
        query = sa.text("SELECT extract(epoch FROM clock_timestamp())")
        sent_at = time.time()
        server_time: float = await self._read(lambda db: db.scalar(query))
        return float(server_time) - (sent_at + time.time()) / 2

    async def add(self, new_jobs: Sequence[Job], capacity: int) -> list[Job | RaylensError]:
        for _ in range(ADD_ATTEMPTS - 1):
            try:
                return await self._write(lambda db: _add(db, new_jobs, capacity))
            except IntegrityError:  # another process has just added one of the jobs
                continue
        return await self._write(lambda db: _add(db, new_jobs, capacity))  # the last try raises

    async def get(self, job_id: str) -> Job | None:
        query = sa.select(jobs).where(jobs.c.id == job_id)
        matches = await self._read(lambda db: _select_jobs(db, query))
        return matches[0] if matches else None

    async def list_jobs(
        self, states: Collection[JobState], limit: int, before_id: str | None
    ) -> list[Job]:
        query = sa.select(jobs).order_by(jobs.c.id.desc()).limit(limit)
        if states:
            query = query.where(jobs.c.state.in_(states))
        if before_id is not None:
            query = query.where(jobs.c.id < before_id)
        return await self._read(lambda db: _select_jobs(db, query))

    async def count_by_state(self) -> dict[JobState, int]:
        query = sa.select(jobs.c.state, sa.func.count()).group_by(jobs.c.state)
        rows = await self._read(lambda db: db.execute(query).all())
        counts = dict.fromkeys(JobState, 0)
        for state, count in rows:
            counts[JobState(state)] = count
        return counts

    async def count_queued(self, limit: int) -> int:
        return await self._read(lambda db: _count_queued(db, limit))

    async def recent_durations(self, limit: int) -> list[float]:
        durations = sa.select(jobs.c.finished_at - jobs.c.started_at)
        succeeded = durations.where(jobs.c.state == JobState.SUCCEEDED)
        query = succeeded.order_by(jobs.c.finished_at.desc()).limit(limit)
        return await self._read(lambda db: list(db.scalars(query)))

    async def claim(self, count: int, now: float, update: ComputeUpdate) -> list[Job]:
        return await self._write(lambda db: _claim(db, count, now, update))

    async def renew(self, fences: Mapping[str, int], until: float) -> set[str]:
        return await self._write(lambda db: _renew(db, fences, until))

    async def change(self, changes: Sequence[Change]) -> list[Job | RaylensError | None]:
        return await self._write(lambda db: _change(db, changes))

    async def deliveries(self, job_id: str) -> list[Delivery]:
        query = sa.select(deliveries).where(deliveries.c.job_id == job_id)
        ordered = query.order_by(deliveries.c.number)
        return await self._read(lambda db: _select_deliveries(db, ordered))

    async def claim_deliveries(
        self, count: int, per_host: int, now: float, until: float, busy_hosts: Collection[str]
    ) -> list[Delivery]:
        return await self._write(
            lambda db: _claim_deliveries(db, count, per_host, now, until, busy_hosts)
        )

    async def settle_delivery(
        self, delivery: Delivery, pause_until: float | None, is_gone: bool
    ) -> bool:
        return await self._write(lambda db: _settle_delivery(db, delivery, pause_until, is_gone))

    async def redeliver(self, job_id: str, number: int, now: float) -> Delivery | None:
        return await self._write(lambda db: _redeliver(db, job_id, number, now))

    async def purge(self, ended_before: float, limit: int) -> int:
        return await self._write(lambda db: _purge(db, ended_before, limit))

    async def touch_blobs(self, digests: Collection[str], now: float) -> None:
        await self._write(lambda db: _touch_blobs(db, digests, now))

    async def remove_unused_blobs(
        self, touched_before: float, limit: int, remove: Callable[[str], None]
    ) -> int:
        return await self._write(lambda db: _remove_unused_blobs(db, touched_before, limit, remove))

    async def _write(self, work: Callable[[sa.Connection], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(
            self._writer, _in_transaction, self._engine, work
        )

    async def _read(self, work: Callable[[sa.Connection], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(
            self._readers, _in_transaction, self._read_engine, work
        )


def _in_transaction(engine: sa.Engine, work: Callable[[sa.Connection], Result]) -> Result:
    """Run ``work`` in a transaction.

    If the connection turns out to be dead, as after a server restart, run ``work`` again on a new
    connection. It must therefore be safe to repeat.
    """
    try:
        with engine.begin() as db:
            return work(db)
    except DBAPIError as error:
        if not error.connection_invalidated:
            raise
    with engine.begin() as db:
        return work(db)


def _select_jobs(db: sa.Connection, query: sa.Select[Any]) -> list[Job]:
    return [job_from_row(row) for row in db.execute(query).mappings()]


def _select_deliveries(db: sa.Connection, query: sa.Select[Any]) -> list[Delivery]:
    return [delivery_from_row(row) for row in db.execute(query).mappings()]


def _add(db: sa.Connection, new: Sequence[Job], capacity: int) -> list[Job | RaylensError]:
    stored = _select_duplicates(db, new)
    by_id = {job.id: job for job in stored}
    by_key: dict[str | None, Job] = {
        job.idempotency_key: job for job in stored if job.idempotency_key
    }
    queued = _count_queued(db, capacity)
    results: list[Job | RaylensError] = []
    rows: list[dict[str, Any]] = []
    references: list[dict[str, Any]] = []
    for job in new:
        existing = by_id.get(job.id) or by_key.get(job.idempotency_key)
        result = admit(job, existing, queued, capacity)
        results.append(result)
        if result is not job:
            continue
        queued += 1
        by_id[job.id] = job
        if job.idempotency_key:
            by_key[job.idempotency_key] = job
        rows.append(job_to_row(job))
        references += [{"job_id": job.id, "digest": digest} for digest in set(job.blobs)]
    _insert_rows(db, jobs, rows)
    _insert_rows(db, job_blobs, references)
    return results


def _select_duplicates(db: sa.Connection, new: Sequence[Job]) -> list[Job]:
    """Return the stored jobs that have the id or the idempotency key of a new job."""
    keys = [job.idempotency_key for job in new if job.idempotency_key is not None]
    is_duplicate: sa.ColumnElement[bool] = jobs.c.id.in_([job.id for job in new])
    if keys:
        is_duplicate = is_duplicate | jobs.c.idempotency_key.in_(keys)
    return _select_jobs(db, sa.select(jobs).where(is_duplicate))


def _insert_rows(db: sa.Connection, table: sa.Table, rows: Sequence[dict[str, Any]]) -> None:
    if rows:
        db.execute(sa.insert(table), rows)


def _count_queued(db: sa.Connection, limit: int) -> int:
    queued = sa.select(jobs.c.id).where(jobs.c.state == JobState.QUEUED).limit(limit).subquery()
    return db.scalar(sa.select(sa.func.count()).select_from(queued)) or 0


def _claim(db: sa.Connection, count: int, now: float, update: ComputeUpdate) -> list[Job]:
    has_expired_lease = (jobs.c.state == JobState.RUNNING) & (jobs.c.lease_until <= now)
    is_due = (jobs.c.state == JobState.QUEUED) & (jobs.c.run_after <= now)
    by_rank = (jobs.c.rank, jobs.c.id)

    def first_ids(condition: sa.ColumnElement[bool]) -> sa.Select[Any]:
        ids = sa.select(jobs.c.id).where(condition).order_by(*by_rank).limit(count).subquery()
        return sa.select(ids.c.id)

    # Two subqueries, because each can use an index.
    candidates = sa.union_all(first_ids(has_expired_lease), first_ids(is_due))
    query = sa.select(jobs).where(jobs.c.id.in_(candidates), has_expired_lease | is_due)
    # Another process may have just claimed a candidate. If its row is locked, skip_locked skips it;
    # if not, the repeated condition excludes it.
    locking = query.order_by(*by_rank).limit(count).with_for_update(skip_locked=True)
    updates = [update(job) for job in _select_jobs(db, locking)]
    _save(db, updates)
    return [job_update.job for job_update in updates]


def _save(db: sa.Connection, updates: Iterable[JobUpdate]) -> None:
    """Write the last version of each changed job, and insert the new deliveries."""
    changed: dict[str, Job] = {}
    new_deliveries: list[Delivery] = []
    for update in updates:
        changed[update.job.id] = update.job
        new_deliveries += update.deliveries
    if changed:
        db.execute(_UPDATE_JOB, [_update_parameters(job) for job in changed.values()])
    if new_deliveries:
        _insert_deliveries(db, new_deliveries)


def _update_parameters(job: Job) -> dict[str, Any]:
    row = job_to_row(job)
    return {"job_id": job.id, **{f"new_{name}": row[name] for name in MUTABLE_COLUMNS}}


def _insert_deliveries(db: sa.Connection, new: Sequence[Delivery]) -> None:
    """Insert deliveries, each numbered after the last delivery of its job."""
    ids = {delivery.job_id for delivery in new}
    highest = sa.select(deliveries.c.job_id, sa.func.max(deliveries.c.number))
    query = highest.where(deliveries.c.job_id.in_(ids)).group_by(deliveries.c.job_id)
    last_number: Counter[str] = Counter()
    for job_id, number in db.execute(query):
        last_number[job_id] = number
    rows = []
    for delivery in new:
        last_number[delivery.job_id] += 1
        rows.append(delivery_to_row(replace(delivery, number=last_number[delivery.job_id])))
    _insert_rows(db, deliveries, rows)


def _renew(db: sa.Connection, fences: Mapping[str, int], until: float) -> set[str]:
    query = sa.select(jobs.c.id, jobs.c.fence).where(
        jobs.c.id.in_(fences), jobs.c.state == JobState.RUNNING
    )
    rows = db.execute(query.order_by(jobs.c.id).with_for_update())
    renewed = {job_id for job_id, fence in rows if fences[job_id] == fence}
    db.execute(sa.update(jobs).where(jobs.c.id.in_(renewed)).values(lease_until=until))
    return renewed


def _change(db: sa.Connection, changes: Sequence[Change]) -> list[Job | RaylensError | None]:
    ids = sorted({change.id for change in changes})
    # Transactions that wait for row locks take them in order of id, so they can't deadlock.
    query = sa.select(jobs).where(jobs.c.id.in_(ids)).order_by(jobs.c.id).with_for_update()
    current = {job.id: job for job in _select_jobs(db, query)}
    updates: list[JobUpdate] = []
    results: list[Job | RaylensError | None] = []
    for change in changes:
        job = current.get(change.id)
        if job is None or (change.fence is not None and not _is_running_with(job, change.fence)):
            results.append(None)
            continue
        try:
            update = change.update(job)
        except RaylensError as error:
            results.append(error)
            continue
        updates.append(update)
        current[job.id] = update.job
        results.append(update.job)
    _save(db, updates)
    return results


def _is_running_with(job: Job, fence: int) -> bool:
    return job.state is JobState.RUNNING and job.fence == fence


def _claim_deliveries(
    db: sa.Connection,
    count: int,
    per_host: int,
    now: float,
    until: float,
    busy_hosts: Collection[str],
) -> list[Delivery]:
    is_free = deliveries.c.lease_until.is_(None) | (deliveries.c.lease_until <= now)
    by_time = (deliveries.c.next_at, deliveries.c.id)
    position_for_host = sa.func.row_number().over(partition_by=deliveries.c.host, order_by=by_time)
    due = (
        sa.select(deliveries.c.id, position_for_host.label("position_for_host"))
        .where(
            _is_pending, deliveries.c.next_at <= now, is_free, deliveries.c.host.not_in(busy_hosts)
        )
        .subquery()
    )
    candidates = sa.select(due.c.id).where(due.c.position_for_host <= per_host)
    query = sa.select(deliveries).where(deliveries.c.id.in_(candidates), _is_pending, is_free)
    # Another process may have just claimed a candidate. If its row is locked, skip_locked skips it;
    # if not, the repeated condition excludes it.
    locking = query.order_by(*by_time).limit(count).with_for_update(skip_locked=True)
    locked = _select_deliveries(db, locking)
    if not locked:
        return []
    urls = {delivery.webhook.url for delivery in locked}
    gone = set(db.scalars(sa.select(gone_endpoints.c.url).where(gone_endpoints.c.url.in_(urls))))
    disabled = [delivery for delivery in locked if delivery.webhook.url in gone]
    claimed = [delivery for delivery in locked if delivery.webhook.url not in gone]
    _update_deliveries(db, disabled, {"state": DeliveryState.DISABLED})
    _update_deliveries(db, claimed, {"fence": deliveries.c.fence + 1, "lease_until": until})
    return [replace(delivery, fence=delivery.fence + 1, lease_until=until) for delivery in claimed]


def _update_deliveries(
    db: sa.Connection, changed: Sequence[Delivery], values: dict[str, Any]
) -> None:
    ids = [delivery.id for delivery in changed]
    db.execute(sa.update(deliveries).where(deliveries.c.id.in_(ids)).values(values))


def _settle_delivery(
    db: sa.Connection, delivery: Delivery, pause_until: float | None, is_gone: bool
) -> bool:
    is_current = (deliveries.c.id == delivery.id) & (deliveries.c.fence == delivery.fence)
    values = delivery_to_row(replace(delivery, lease_until=None))
    if db.execute(sa.update(deliveries).where(is_current).values(values)).rowcount == 0:
        return False
    url = delivery.webhook.url
    if is_gone:
        db.execute(_dialect_insert(db, gone_endpoints).values(url=url).on_conflict_do_nothing())
    if pause_until is not None:
        is_early = deliveries.c.next_at < pause_until
        update = sa.update(deliveries).where(deliveries.c.url == url, _is_pending, is_early)
        db.execute(update.values(next_at=pause_until))
    return True


def _dialect_insert(db: sa.Connection, table: sa.Table) -> Any:
    """Return an INSERT statement that can have an ON CONFLICT clause."""
    dialect = postgresql if db.dialect.name == "postgresql" else sqlite
    return dialect.insert(table)


def _redeliver(db: sa.Connection, job_id: str, number: int, now: float) -> Delivery | None:
    is_match = (deliveries.c.job_id == job_id) & (deliveries.c.number == number)
    pending = {
        "state": DeliveryState.PENDING,
        "attempts": 0,
        "status": None,
        "problem": None,
        "delivered_at": None,
        "next_at": now,
        "lease_until": None,
        "fence": deliveries.c.fence + 1,
    }
    db.execute(sa.update(deliveries).where(is_match).values(pending))
    matches = _select_deliveries(db, sa.select(deliveries).where(is_match))
    if not matches:
        return None
    (delivery,) = matches
    db.execute(sa.delete(gone_endpoints).where(gone_endpoints.c.url == delivery.webhook.url))
    return delivery


def _purge(db: sa.Connection, ended_before: float, limit: int) -> int:
    of_job = sa.select(deliveries.c.id).where(deliveries.c.job_id == jobs.c.id)
    has_pending = of_job.where(_is_pending).exists()
    ended = sa.select(jobs.c.id).where(
        jobs.c.state.in_(TERMINAL), jobs.c.finished_at < ended_before, ~has_pending
    )
    ids = list(db.scalars(ended.limit(limit).with_for_update(skip_locked=True)))
    db.execute(sa.delete(jobs).where(jobs.c.id.in_(ids)))
    return len(ids)


def _touch_blobs(db: sa.Connection, digests: Collection[str], now: float) -> None:
    if not digests:
        return
    rows = [{"digest": digest, "touched_at": now} for digest in sorted(digests)]
    insert = _dialect_insert(db, blobs).values(rows)
    db.execute(insert.on_conflict_do_update(index_elements=["digest"], set_={"touched_at": now}))


def _remove_unused_blobs(
    db: sa.Connection, touched_before: float, limit: int, remove: Callable[[str], None]
) -> int:
    is_used = sa.select(job_blobs.c.digest).where(job_blobs.c.digest == blobs.c.digest).exists()
    unused = sa.select(blobs.c.digest).where(blobs.c.touched_at < touched_before, ~is_used)
    digests = list(db.scalars(unused.limit(limit).with_for_update(skip_locked=True)))
    for digest in digests:
        remove(digest)
    db.execute(sa.delete(blobs).where(blobs.c.digest.in_(digests)))
    return len(digests)
