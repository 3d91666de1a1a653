"""The stores that last: SQLite and PostgreSQL, through SQLAlchemy Core.

One thread writes, so that a process never waits for its own locks; the queue gives it batches. A
few others read.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError

from raylens.core.errors import RaylensError
from raylens.jobs.job import TERMINAL, Delivery, DeliveryState, Job, JobState
from raylens.jobs.migrate import upgrade
from raylens.jobs.store import Apply, Change, StoreUnreachable, StoreUnusable, Transition, admit
from raylens.jobs.tables import (
    MUTABLE_COLUMNS,
    blobs,
    deliveries,
    delivery_of,
    delivery_row,
    gone_endpoints,
    job_blobs,
    job_of,
    job_row,
    jobs,
)

Result = TypeVar("Result")

READERS = 4
BUSY_S = 5.0
"""How long SQLite waits for another process's write."""
NETWORK_FILESYSTEMS = frozenset(
    {
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "smbfs",
        "9p",
        "afs",
        "ceph",
        "glusterfs",
        "lustre",
        "fuse.sshfs",
        "fuse.s3fs",
    }
)
ADD_ATTEMPTS = 3
STATEMENT_S = 20.0
"""A server that takes longer over a statement, or a lock, is given up."""
PATIENCE = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "tcp_user_timeout": 20_000,
}
"""libpq's, where the URL says nothing: a server that has vanished is noticed."""


class SqlStore:
    """Implements :class:`raylens.jobs.store.JobStore`; made by :func:`sqlite_store` and
    :func:`postgres_store`."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._reading = engine.execution_options(reading=True)
        self._is_postgres = engine.dialect.name == "postgresql"
        self._insert: Any = postgresql.insert if self._is_postgres else sqlite.insert
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="jobs-write")
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="jobs-read")

    async def open(self) -> None:
        try:
            await self._write(upgrade)
        except SQLAlchemyError as error:
            kind = StoreUnreachable if self._is_postgres else StoreUnusable
            raise kind(f"jobs.store: {getattr(error, 'orig', None) or error}") from error

    async def close(self) -> None:
        for pool in (self._writer, self._readers):
            await asyncio.to_thread(pool.shutdown)
        self._engine.dispose()

    async def skew(self) -> float:
        if not self._is_postgres:
            return 0.0
        before = time.time()
        there: float = await self._read(
            lambda db: db.scalar(sa.text("SELECT extract(epoch FROM clock_timestamp())"))
        )
        return float(there) - (before + time.time()) / 2

    async def add(self, jobs: Sequence[Job], capacity: int) -> list[Job | RaylensError]:
        for _ in range(ADD_ATTEMPTS - 1):
            try:
                return await self._write(lambda db: self._add(db, jobs, capacity))
            except IntegrityError:  # another process has just added the same
                continue
        return await self._write(lambda db: self._add(db, jobs, capacity))

    async def get(self, job_id: str) -> Job | None:
        found = await self._read(lambda db: _jobs(db, sa.select(jobs).where(jobs.c.id == job_id)))
        return found[0] if found else None

    async def page(self, states: Collection[JobState], limit: int, before: str | None) -> list[Job]:
        query = sa.select(jobs).order_by(jobs.c.id.desc()).limit(limit)
        if states:
            query = query.where(jobs.c.state.in_(states))
        if before is not None:
            query = query.where(jobs.c.id < before)
        return await self._read(lambda db: _jobs(db, query))

    async def counts(self) -> dict[JobState, int]:
        query = sa.select(jobs.c.state, sa.func.count()).group_by(jobs.c.state)
        rows = await self._read(lambda db: db.execute(query).all())
        return {**dict.fromkeys(JobState, 0), **{JobState(state): count for state, count in rows}}

    async def waiting(self, limit: int) -> int:
        return await self._read(lambda db: _waiting(db, limit))

    async def durations(self, limit: int) -> list[float]:
        ended = sa.select(jobs.c.finished_at - jobs.c.started_at).where(
            jobs.c.state == JobState.SUCCEEDED
        )
        query = ended.order_by(jobs.c.finished_at.desc()).limit(limit)
        return await self._read(lambda db: list(db.scalars(query)))

    async def claim(self, count: int, now: float, apply: Apply) -> list[Job]:
        return await self._write(lambda db: self._claim(db, count, now, apply))

    async def renew(self, fences: Mapping[str, int], until: float) -> set[str]:
        return await self._write(lambda db: _renew(db, fences, until))

    async def change(self, changes: Sequence[Change]) -> list[Job | RaylensError | None]:
        return await self._write(lambda db: self._change(db, changes))

    async def deliveries(self, job_id: str) -> list[Delivery]:
        query = (
            sa.select(deliveries).where(deliveries.c.job_id == job_id).order_by(deliveries.c.number)
        )
        return await self._read(lambda db: _deliveries(db, query))

    async def claim_deliveries(
        self, count: int, per_host: int, now: float, until: float, busy: Collection[str]
    ) -> list[Delivery]:
        return await self._write(
            lambda db: _claim_deliveries(db, count, per_host, now, until, busy)
        )

    async def settle_delivery(
        self, delivery: Delivery, slow_until: float | None, gone: bool
    ) -> bool:
        return await self._write(lambda db: self._settle_delivery(db, delivery, slow_until, gone))

    async def redeliver(self, job_id: str, number: int, now: float) -> Delivery | None:
        return await self._write(lambda db: _redeliver(db, job_id, number, now))

    async def purge(self, before: float, limit: int) -> int:
        return await self._write(lambda db: _purge(db, before, limit))

    async def touch_blobs(self, digests: Collection[str], now: float) -> None:
        await self._write(lambda db: self._touch(db, digests, now))

    async def collect_blobs(self, before: float, limit: int, remove: Callable[[str], None]) -> int:
        return await self._write(lambda db: _collect(db, before, limit, remove))

    async def _write(self, work: Callable[[sa.Connection], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(
            self._writer, _in_transaction, self._engine, work
        )

    async def _read(self, work: Callable[[sa.Connection], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(
            self._readers, _in_transaction, self._reading, work
        )

    def _add(
        self, db: sa.Connection, new: Sequence[Job], capacity: int
    ) -> list[Job | RaylensError]:
        keys = [job.idempotency_key for job in new if job.idempotency_key is not None]
        is_known = jobs.c.id.in_([job.id for job in new])
        stored = _jobs(
            db,
            sa.select(jobs).where(
                is_known | jobs.c.idempotency_key.in_(keys) if keys else is_known
            ),
        )
        by_id = {job.id: job for job in stored}
        by_key = {job.idempotency_key: job for job in stored}
        waiting = _waiting(db, capacity)
        results: list[Job | RaylensError] = []
        rows: list[dict[str, Any]] = []
        references: list[dict[str, Any]] = []
        for job in new:
            known = by_id.get(job.id) or (
                by_key.get(job.idempotency_key) if job.idempotency_key else None
            )
            result = admit(job, known, waiting, capacity)
            results.append(result)
            if result is job:
                waiting += 1
                by_id[job.id] = by_key[job.idempotency_key] = job
                rows.append(job_row(job))
                references += [{"job_id": job.id, "digest": digest} for digest in set(job.blobs)]
        _insert(db, jobs, rows)
        _insert(db, job_blobs, references)
        return results

    def _claim(self, db: sa.Connection, count: int, now: float, apply: Apply) -> list[Job]:
        lost = (jobs.c.state == JobState.RUNNING) & (jobs.c.lease_until <= now)
        due = (jobs.c.state == JobState.QUEUED) & (jobs.c.run_after <= now)
        # Two subqueries, since each can follow an index.
        order = (jobs.c.rank, jobs.c.id)
        first = (
            sa.select(jobs.c.id).where(wanted).order_by(*order).limit(count).subquery()
            for wanted in (lost, due)
        )
        ids = sa.union_all(*(sa.select(few.c.id) for few in first))
        # Rows that another has claimed since they were found are locked, or no longer so.
        query = sa.select(jobs).where(jobs.c.id.in_(ids), lost | due).order_by(*order).limit(count)
        chosen = _jobs(db, query.with_for_update(skip_locked=True))
        transitions = [apply(job) for job in chosen]
        _store(db, transitions)
        return [change.job for change in transitions]

    def _change(
        self, db: sa.Connection, changes: Sequence[Change]
    ) -> list[Job | RaylensError | None]:
        ids = sorted({change.id for change in changes})
        # In one order everywhere, so that no two transactions wait for each other.
        query = sa.select(jobs).where(jobs.c.id.in_(ids)).order_by(jobs.c.id).with_for_update()
        current = {job.id: job for job in _jobs(db, query)}
        transitions: list[Transition] = []
        results: list[Job | RaylensError | None] = []
        for change in changes:
            job = current.get(change.id)
            if job is None or (change.fence is not None and not _runs_under(job, change.fence)):
                results.append(None)
                continue
            try:
                after = change.apply(job)
            except RaylensError as error:
                results.append(error)
                continue
            transitions.append(after)
            current[job.id] = after.job
            results.append(after.job)
        _store(db, transitions)
        return results

    def _settle_delivery(
        self, db: sa.Connection, delivery: Delivery, slow_until: float | None, gone: bool
    ) -> bool:
        mine = (deliveries.c.id == delivery.id) & (deliveries.c.fence == delivery.fence)
        values = delivery_row(replace(delivery, lease_until=None))
        if db.execute(sa.update(deliveries).where(mine).values(values)).rowcount == 0:
            return False
        url = delivery.webhook.url
        if gone:
            db.execute(self._insert(gone_endpoints).values(url=url).on_conflict_do_nothing())
        if slow_until is not None:
            early = (deliveries.c.url == url) & _is_pending & (deliveries.c.next_at < slow_until)
            db.execute(sa.update(deliveries).where(early).values(next_at=slow_until))
        return True

    def _touch(self, db: sa.Connection, digests: Collection[str], now: float) -> None:
        if digests:
            insert = self._insert(blobs).values(
                [{"digest": digest, "touched_at": now} for digest in sorted(digests)]
            )
            db.execute(
                insert.on_conflict_do_update(index_elements=["digest"], set_={"touched_at": now})
            )


_is_pending = deliveries.c.state == DeliveryState.PENDING


def sqlite_store(path: Path, kind_of: Callable[[Path], str] | None = None) -> SqlStore:
    """A file, in WAL mode, for the processes of one machine. Raises ``StoreUnusable`` on a
    network's file system, where WAL loses data (https://www.sqlite.org/wal.html)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = (kind_of or filesystem)(path.parent)
    if kind in NETWORK_FILESYSTEMS:
        raise StoreUnusable(
            f"jobs.data_dir: {path.parent} is on {kind}, and SQLite needs a local disk; "
            "for several machines, set jobs.store to a postgresql:// URL"
        )
    engine = sa.create_engine(
        f"sqlite:///{path}", connect_args={"timeout": BUSY_S, "check_same_thread": False}
    )

    @sa.event.listens_for(engine, "connect")
    def connect(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # SQLAlchemy begins, not the driver
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        reading = connection.get_execution_options().get("reading", False)
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")

    return SqlStore(engine)


def postgres_store(url: str) -> SqlStore:
    """``postgresql://user:password@host/database``, for any number of machines."""
    try:
        parsed = sa.make_url(url).set(drivername="postgresql+psycopg")
        patience = {name: value for name, value in PATIENCE.items() if name not in parsed.query}
        engine = sa.create_engine(parsed, pool_size=READERS + 1, connect_args=patience)
    except ImportError as error:
        raise StoreUnusable(
            f"jobs.store: PostgreSQL needs pip install 'raylens[postgres]': {error}"
        ) from error
    except SQLAlchemyError as error:
        raise StoreUnusable(f"jobs.store: not a URL that can be read: {error}") from error

    @sa.event.listens_for(engine, "connect")
    def connect(connection: Any, record: Any) -> None:
        for limit in ("statement_timeout", "lock_timeout"):
            connection.execute(f"SET {limit} = '{STATEMENT_S:g}s'")
        connection.commit()

    return SqlStore(engine)


def filesystem(folder: Path, mounts: Path = Path("/proc/self/mounts")) -> str:
    """The type of the file system that a folder lies on, as Linux names it; empty where it doesn't
    tell."""
    if not mounts.exists():
        return ""
    best, kind = "", ""
    place = str(folder.resolve())
    for line in mounts.read_text().splitlines():
        _, point, found, *_ = line.split(" ")
        point = point.replace("\\040", " ")
        if (place == point or place.startswith(point.rstrip("/") + "/")) and len(point) >= len(
            best
        ):
            best, kind = point, found
    return kind


def _in_transaction(engine: sa.Engine, work: Callable[[sa.Connection], Result]) -> Result:
    """Once more where the connection turns out to be dead: the server has been restarted, say.
    Every ``work`` may be done twice."""
    try:
        with engine.begin() as connection:
            return work(connection)
    except DBAPIError as error:
        if not error.connection_invalidated:
            raise
    with engine.begin() as connection:
        return work(connection)


def _jobs(db: sa.Connection, query: sa.Select[Any]) -> list[Job]:
    return [job_of(row) for row in db.execute(query).mappings()]


def _deliveries(db: sa.Connection, query: sa.Select[Any]) -> list[Delivery]:
    return [delivery_of(row) for row in db.execute(query).mappings()]


def _waiting(db: sa.Connection, limit: int) -> int:
    some = sa.select(jobs.c.id).where(jobs.c.state == JobState.QUEUED).limit(limit).subquery()
    return db.scalar(sa.select(sa.func.count()).select_from(some)) or 0


def _insert(db: sa.Connection, table: sa.Table, rows: Sequence[dict[str, Any]]) -> None:
    if rows:
        db.execute(sa.insert(table), rows)


def _runs_under(job: Job, fence: int) -> bool:
    return job.state is JobState.RUNNING and job.fence == fence


_UPDATE = (
    sa.update(jobs)
    .where(jobs.c.id == sa.bindparam("this"))
    .values({name: sa.bindparam(f"new_{name}") for name in MUTABLE_COLUMNS})
)


def _store(db: sa.Connection, transitions: Iterable[Transition]) -> None:
    """Writes the jobs, each as it is after its last change, and their deliveries, with their
    numbers."""
    last = {change.job.id: change.job for change in transitions}
    if not last:
        return
    rows = [(job.id, job_row(job)) for job in last.values()]
    db.execute(
        _UPDATE,
        [
            {"this": job_id, **{f"new_{name}": row[name] for name in MUTABLE_COLUMNS}}
            for job_id, row in rows
        ],
    )
    new = [delivery for change in transitions for delivery in change.deliveries]
    if not new:
        return
    highest = sa.select(deliveries.c.job_id, sa.func.max(deliveries.c.number)).group_by(
        deliveries.c.job_id
    )
    ids = {delivery.job_id for delivery in new}
    numbers = Counter(
        {
            job_id: number
            for job_id, number in db.execute(highest.where(deliveries.c.job_id.in_(ids)))
        }
    )
    numbered = []
    for delivery in new:
        numbers[delivery.job_id] += 1
        numbered.append(delivery_row(replace(delivery, number=numbers[delivery.job_id])))
    _insert(db, deliveries, numbered)


def _renew(db: sa.Connection, fences: Mapping[str, int], until: float) -> set[str]:
    query = sa.select(jobs.c.id, jobs.c.fence).where(
        jobs.c.id.in_(fences), jobs.c.state == JobState.RUNNING
    )
    rows = db.execute(query.order_by(jobs.c.id).with_for_update())
    held = {job_id for job_id, fence in rows if fences[job_id] == fence}
    db.execute(sa.update(jobs).where(jobs.c.id.in_(held)).values(lease_until=until))
    return held


def _claim_deliveries(
    db: sa.Connection, count: int, per_host: int, now: float, until: float, busy: Collection[str]
) -> list[Delivery]:
    free = deliveries.c.lease_until.is_(None) | (deliveries.c.lease_until <= now)
    order = (deliveries.c.next_at, deliveries.c.id)
    place = sa.func.row_number().over(partition_by=deliveries.c.host, order_by=order).label("place")
    due = sa.select(deliveries.c.id, place).where(
        _is_pending, deliveries.c.next_at <= now, free, deliveries.c.host.not_in(busy)
    )
    few = due.subquery()
    fair = sa.select(few.c.id).where(few.c.place <= per_host)
    query = sa.select(deliveries).where(deliveries.c.id.in_(fair)).order_by(*order).limit(count)
    # Rows that another has claimed since they were found are locked, or no longer free.
    found = _deliveries(db, query.where(_is_pending, free).with_for_update(skip_locked=True))
    if not found:
        return []
    urls = {delivery.webhook.url for delivery in found}
    gone = set(db.scalars(sa.select(gone_endpoints.c.url).where(gone_endpoints.c.url.in_(urls))))
    unwanted = [delivery.id for delivery in found if delivery.webhook.url in gone]
    wanted = [delivery for delivery in found if delivery.webhook.url not in gone]
    here = deliveries.c.id
    db.execute(sa.update(deliveries).where(here.in_(unwanted)).values(state=DeliveryState.DISABLED))
    lease = {"fence": deliveries.c.fence + 1, "lease_until": until}
    db.execute(
        sa.update(deliveries).where(here.in_([delivery.id for delivery in wanted])).values(lease)
    )
    return [replace(delivery, fence=delivery.fence + 1, lease_until=until) for delivery in wanted]


def _redeliver(db: sa.Connection, job_id: str, number: int, now: float) -> Delivery | None:
    here = (deliveries.c.job_id == job_id) & (deliveries.c.number == number)
    fresh = {
        **{"state": DeliveryState.PENDING, "attempts": 0, "next_at": now, "lease_until": None},
        **{"status": None, "problem": None, "delivered_at": None},
    }
    db.execute(sa.update(deliveries).where(here).values(**fresh, fence=deliveries.c.fence + 1))
    found = _deliveries(db, sa.select(deliveries).where(here))
    if not found:
        return None
    db.execute(sa.delete(gone_endpoints).where(gone_endpoints.c.url == found[0].webhook.url))
    return found[0]


def _purge(db: sa.Connection, before: float, limit: int) -> int:
    pending = (
        sa.select(deliveries.c.id).where(deliveries.c.job_id == jobs.c.id, _is_pending).exists()
    )
    ended = sa.select(jobs.c.id).where(
        jobs.c.state.in_(TERMINAL), jobs.c.finished_at < before, ~pending
    )
    ids = list(db.scalars(ended.limit(limit).with_for_update(skip_locked=True)))
    db.execute(sa.delete(jobs).where(jobs.c.id.in_(ids)))
    return len(ids)


def _collect(db: sa.Connection, before: float, limit: int, remove: Callable[[str], None]) -> int:
    used = sa.select(job_blobs.c.digest).where(job_blobs.c.digest == blobs.c.digest).exists()
    unused = sa.select(blobs.c.digest).where(blobs.c.touched_at < before, ~used)
    digests = list(db.scalars(unused.limit(limit).with_for_update(skip_locked=True)))
    for digest in digests:
        remove(digest)
    db.execute(sa.delete(blobs).where(blobs.c.digest.in_(digests)))
    return len(digests)
