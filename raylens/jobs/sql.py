"""The durable stores, SQLite and PostgreSQL, on SQLAlchemy Core.

One thread does all writes, so that a process never waits for its own locks. The queue batches its
writes. A few other threads read.
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
from raylens.jobs.store import Apply, Change, JobStore, StoreUnreachable, StoreUnusable, admit
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
from raylens.jobs.transitions import Transition

Result = TypeVar("Result")

READERS = 4
"""Threads that read."""
BUSY_S = 5.0
"""Seconds that SQLite waits for another process's write."""
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
"""Time-out of PostgreSQL for a statement and for a lock, in seconds."""
CONNECTION_DEFAULTS = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "tcp_user_timeout": 20_000,
}
"""libpq parameters that detect a dead server. Parameters in the URL override them."""


class SqlStore(JobStore):
    """A store over one database. Create it with :func:`sqlite_store` or :func:`postgres_store`."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._read_engine = engine.execution_options(reading=True)
        self._is_postgres = engine.dialect.name == "postgresql"
        self._insert: Any = postgresql.insert if self._is_postgres else sqlite.insert
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="jobs-write")
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="jobs-read")

    async def open(self) -> None:
        try:
            await self._write(upgrade)
        except SQLAlchemyError as error:
            error_type = StoreUnreachable if self._is_postgres else StoreUnusable
            raise error_type(f"jobs.store: {getattr(error, 'orig', None) or error}") from error

    async def close(self) -> None:
        for pool in (self._writer, self._readers):
            await asyncio.to_thread(pool.shutdown)
        self._engine.dispose()

    async def clock_skew(self) -> float:
        if not self._is_postgres:
            return 0.0
        query = sa.text("SELECT extract(epoch FROM clock_timestamp())")
        before = time.time()
        server_time: float = await self._read(lambda db: db.scalar(query))
        return float(server_time) - (before + time.time()) / 2

    async def add(self, jobs: Sequence[Job], capacity: int) -> list[Job | RaylensError]:
        for _ in range(ADD_ATTEMPTS - 1):
            try:
                return await self._write(lambda db: self._add(db, jobs, capacity))
            except IntegrityError:  # another process has just added one of the jobs
                continue
        return await self._write(lambda db: self._add(db, jobs, capacity))

    async def get(self, job_id: str) -> Job | None:
        query = sa.select(jobs).where(jobs.c.id == job_id)
        rows = await self._read(lambda db: _select_jobs(db, query))
        return rows[0] if rows else None

    async def list_jobs(
        self, states: Collection[JobState], limit: int, before: str | None
    ) -> list[Job]:
        query = sa.select(jobs).order_by(jobs.c.id.desc()).limit(limit)
        if states:
            query = query.where(jobs.c.state.in_(states))
        if before is not None:
            query = query.where(jobs.c.id < before)
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

    async def claim(self, count: int, now: float, apply: Apply) -> list[Job]:
        return await self._write(lambda db: _claim(db, count, now, apply))

    async def renew(self, fences: Mapping[str, int], until: float) -> set[str]:
        return await self._write(lambda db: _renew(db, fences, until))

    async def change(self, changes: Sequence[Change]) -> list[Job | RaylensError | None]:
        return await self._write(lambda db: _change(db, changes))

    async def deliveries(self, job_id: str) -> list[Delivery]:
        query = sa.select(deliveries).where(deliveries.c.job_id == job_id)
        ordered = query.order_by(deliveries.c.number)
        return await self._read(lambda db: _select_deliveries(db, ordered))

    async def claim_deliveries(
        self, count: int, per_host: int, now: float, until: float, busy: Collection[str]
    ) -> list[Delivery]:
        return await self._write(
            lambda db: _claim_deliveries(db, count, per_host, now, until, busy)
        )

    async def settle_delivery(
        self, delivery: Delivery, pause_until: float | None, is_gone: bool
    ) -> bool:
        return await self._write(
            lambda db: self._settle_delivery(db, delivery, pause_until, is_gone)
        )

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
            self._readers, _in_transaction, self._read_engine, work
        )

    def _add(
        self, db: sa.Connection, new: Sequence[Job], capacity: int
    ) -> list[Job | RaylensError]:
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

    def _settle_delivery(
        self, db: sa.Connection, delivery: Delivery, pause_until: float | None, is_gone: bool
    ) -> bool:
        is_current = (deliveries.c.id == delivery.id) & (deliveries.c.fence == delivery.fence)
        values = delivery_to_row(replace(delivery, lease_until=None))
        if db.execute(sa.update(deliveries).where(is_current).values(values)).rowcount == 0:
            return False
        url = delivery.webhook.url
        if is_gone:
            db.execute(self._insert(gone_endpoints).values(url=url).on_conflict_do_nothing())
        if pause_until is not None:
            is_early = deliveries.c.next_at < pause_until
            update = sa.update(deliveries).where(deliveries.c.url == url, _is_pending, is_early)
            db.execute(update.values(next_at=pause_until))
        return True

    def _touch(self, db: sa.Connection, digests: Collection[str], now: float) -> None:
        if not digests:
            return
        rows = [{"digest": digest, "touched_at": now} for digest in sorted(digests)]
        insert = self._insert(blobs).values(rows)
        db.execute(
            insert.on_conflict_do_update(index_elements=["digest"], set_={"touched_at": now})
        )


_is_pending = deliveries.c.state == DeliveryState.PENDING


def sqlite_store(path: Path, detect_filesystem: Callable[[Path], str] | None = None) -> SqlStore:
    """Return a store in a file, in WAL mode, for the processes of one machine.

    Raises ``StoreUnusable`` if the file is on a network file system: WAL loses data there
    (https://www.sqlite.org/wal.html).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    filesystem = (detect_filesystem or filesystem_type)(path.parent)
    if filesystem in NETWORK_FILESYSTEMS:
        raise StoreUnusable(
            f"jobs.data_dir: {path.parent} is on {filesystem}, and SQLite needs a local disk; "
            "for several machines, set jobs.store to a postgresql:// URL"
        )
    engine = sa.create_engine(
        f"sqlite:///{path}", connect_args={"timeout": BUSY_S, "check_same_thread": False}
    )

    @sa.event.listens_for(engine, "connect")
    def connect(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # SQLAlchemy begins transactions, not the driver
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        reading = connection.get_execution_options().get("reading", False)
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")

    return SqlStore(engine)


def postgres_store(url: str) -> SqlStore:
    """Return a store at ``postgresql://user:password@host/database``, for any number of machines.

    Raises ``StoreUnusable`` if the URL is malformed or if the driver is not installed.
    """
    try:
        parsed = sa.make_url(url).set(drivername="postgresql+psycopg")
        defaults = {
            name: value for name, value in CONNECTION_DEFAULTS.items() if name not in parsed.query
        }
        engine = sa.create_engine(parsed, pool_size=READERS + 1, connect_args=defaults)
    except ImportError as error:
        raise StoreUnusable(
            f"jobs.store: PostgreSQL needs pip install 'raylens[postgres]': {error}"
        ) from error
    except SQLAlchemyError as error:
        raise StoreUnusable(f"jobs.store: not a valid URL: {error}") from error

    @sa.event.listens_for(engine, "connect")
    def connect(connection: Any, record: Any) -> None:
        for timeout in ("statement_timeout", "lock_timeout"):
            connection.execute(f"SET {timeout} = '{STATEMENT_S:g}s'")
        connection.commit()

    return SqlStore(engine)


def filesystem_type(folder: Path, mounts: Path = Path("/proc/self/mounts")) -> str:
    """Return the file system type of a folder's innermost mount, such as ``ext4``.

    Return an empty string if the system has no ``/proc/self/mounts``, which only Linux has.
    """
    if not mounts.exists():
        return ""
    path = str(folder.resolve())
    innermost = ""
    filesystem = ""
    for line in mounts.read_text().splitlines():
        _, escaped_mount, mount_type, *_ = line.split(" ")
        mount = escaped_mount.replace("\\040", " ")
        is_below = path == mount or path.startswith(mount.rstrip("/") + "/")
        if is_below and len(mount) >= len(innermost):
            innermost = mount
            filesystem = mount_type
    return filesystem


def _in_transaction(engine: sa.Engine, work: Callable[[sa.Connection], Result]) -> Result:
    """Run ``work`` in a transaction, and once more if the connection was dead.

    A restarted server leaves dead connections in the pool. Every ``work`` may run twice.
    """
    try:
        with engine.begin() as connection:
            return work(connection)
    except DBAPIError as error:
        if not error.connection_invalidated:
            raise
    with engine.begin() as connection:
        return work(connection)


def _select_jobs(db: sa.Connection, query: sa.Select[Any]) -> list[Job]:
    return [job_from_row(row) for row in db.execute(query).mappings()]


def _select_duplicates(db: sa.Connection, new: Sequence[Job]) -> list[Job]:
    """Return the stored jobs that have the id or the idempotency key of a new job."""
    keys = [job.idempotency_key for job in new if job.idempotency_key is not None]
    is_duplicate: sa.ColumnElement[bool] = jobs.c.id.in_([job.id for job in new])
    if keys:
        is_duplicate = is_duplicate | jobs.c.idempotency_key.in_(keys)
    return _select_jobs(db, sa.select(jobs).where(is_duplicate))


def _select_deliveries(db: sa.Connection, query: sa.Select[Any]) -> list[Delivery]:
    return [delivery_from_row(row) for row in db.execute(query).mappings()]


def _count_queued(db: sa.Connection, limit: int) -> int:
    queued = sa.select(jobs.c.id).where(jobs.c.state == JobState.QUEUED).limit(limit).subquery()
    return db.scalar(sa.select(sa.func.count()).select_from(queued)) or 0


def _insert_rows(db: sa.Connection, table: sa.Table, rows: Sequence[dict[str, Any]]) -> None:
    if rows:
        db.execute(sa.insert(table), rows)


def _claim(db: sa.Connection, count: int, now: float, apply: Apply) -> list[Job]:
    is_expired = (jobs.c.state == JobState.RUNNING) & (jobs.c.lease_until <= now)
    is_due = (jobs.c.state == JobState.QUEUED) & (jobs.c.run_after <= now)
    by_rank = (jobs.c.rank, jobs.c.id)

    def first(condition: sa.ColumnElement[bool]) -> sa.Select[Any]:
        ids = sa.select(jobs.c.id).where(condition).order_by(*by_rank).limit(count).subquery()
        return sa.select(ids.c.id)

    # Two subqueries, because each can use an index.
    candidates = sa.union_all(first(is_expired), first(is_due))
    query = sa.select(jobs).where(jobs.c.id.in_(candidates), is_expired | is_due)
    # Another process may have claimed a candidate meanwhile. Then its row is locked, or it no
    # longer matches.
    locking = query.order_by(*by_rank).limit(count).with_for_update(skip_locked=True)
    transitions = [apply(job) for job in _select_jobs(db, locking)]
    _save(db, transitions)
    return [transition.job for transition in transitions]


def _change(db: sa.Connection, changes: Sequence[Change]) -> list[Job | RaylensError | None]:
    ids = sorted({change.id for change in changes})
    # Every transaction locks rows in the same order, so no two of them deadlock.
    query = sa.select(jobs).where(jobs.c.id.in_(ids)).order_by(jobs.c.id).with_for_update()
    current = {job.id: job for job in _select_jobs(db, query)}
    transitions: list[Transition] = []
    results: list[Job | RaylensError | None] = []
    for change in changes:
        job = current.get(change.id)
        if job is None or (change.fence is not None and not _runs_under(job, change.fence)):
            results.append(None)
            continue
        try:
            transition = change.apply(job)
        except RaylensError as error:
            results.append(error)
            continue
        transitions.append(transition)
        current[job.id] = transition.job
        results.append(transition.job)
    _save(db, transitions)
    return results


def _runs_under(job: Job, fence: int) -> bool:
    return job.state is JobState.RUNNING and job.fence == fence


_UPDATE_JOB = (
    sa.update(jobs)
    .where(jobs.c.id == sa.bindparam("job_id"))
    .values({name: sa.bindparam(f"new_{name}") for name in MUTABLE_COLUMNS})
)


def _save(db: sa.Connection, transitions: Iterable[Transition]) -> None:
    """Write the last version of each changed job, and insert the new deliveries."""
    changed: dict[str, Job] = {}
    new_deliveries: list[Delivery] = []
    for transition in transitions:
        changed[transition.job.id] = transition.job
        new_deliveries += transition.deliveries
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


def _claim_deliveries(
    db: sa.Connection, count: int, per_host: int, now: float, until: float, busy: Collection[str]
) -> list[Delivery]:
    is_free = deliveries.c.lease_until.is_(None) | (deliveries.c.lease_until <= now)
    by_time = (deliveries.c.next_at, deliveries.c.id)
    position = sa.func.row_number().over(partition_by=deliveries.c.host, order_by=by_time)
    due = (
        sa.select(deliveries.c.id, position.label("position_in_host"))
        .where(_is_pending, deliveries.c.next_at <= now, is_free, deliveries.c.host.not_in(busy))
        .subquery()
    )
    candidates = sa.select(due.c.id).where(due.c.position_in_host <= per_host)
    query = sa.select(deliveries).where(deliveries.c.id.in_(candidates), _is_pending, is_free)
    # Another process may have claimed a candidate meanwhile. Then its row is locked, or it no
    # longer matches.
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


def _purge(db: sa.Connection, before: float, limit: int) -> int:
    of_job = sa.select(deliveries.c.id).where(deliveries.c.job_id == jobs.c.id)
    has_pending = of_job.where(_is_pending).exists()
    ended = sa.select(jobs.c.id).where(
        jobs.c.state.in_(TERMINAL), jobs.c.finished_at < before, ~has_pending
    )
    ids = list(db.scalars(ended.limit(limit).with_for_update(skip_locked=True)))
    db.execute(sa.delete(jobs).where(jobs.c.id.in_(ids)))
    return len(ids)


def _collect(db: sa.Connection, before: float, limit: int, remove: Callable[[str], None]) -> int:
    is_used = sa.select(job_blobs.c.digest).where(job_blobs.c.digest == blobs.c.digest).exists()
    unused = sa.select(blobs.c.digest).where(blobs.c.touched_at < before, ~is_used)
    digests = list(db.scalars(unused.limit(limit).with_for_update(skip_locked=True)))
    for digest in digests:
        remove(digest)
    db.execute(sa.delete(blobs).where(blobs.c.digest.in_(digests)))
    return len(digests)
