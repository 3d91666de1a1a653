"""The counters: jobs by state, and the bytes of all blobs.

Every transaction that changes what they count also changes them, so reading them scans nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import sqlalchemy as sa

from raylens.jobs.job import JobState
from raylens.jobs.sql.tables import blobs, counters, jobs

BLOB_BYTES = "blob_bytes"
_ADD = sa.text(
    "INSERT INTO counters (name, value) VALUES (:name, :change)"
    " ON CONFLICT (name) DO UPDATE SET value = counters.value + excluded.value"
)


def read_counters(db: sa.Connection) -> dict[str, int]:
    return {name: value for name, value in db.execute(sa.select(counters))}


def count_queued(db: sa.Connection) -> int:
    query = sa.select(counters.c.value).where(counters.c.name == JobState.QUEUED.value)
    return db.scalar(query) or 0


def add_to_counters(db: sa.Connection, changes: Counter[str]) -> None:
    """Add to counters by name. It is the last statement of a transaction, and takes the rows in
    order of name, so that transactions that wait for each other's rows can't deadlock."""
    rows = [{"name": name, "change": change} for name, change in sorted(changes.items()) if change]
    if rows:
        db.execute(_ADD, rows)


def are_wrong(db: sa.Connection) -> bool:
    """Return whether the counters differ from what they count. It scans all jobs and blobs."""
    # One statement, because each has a snapshot of its own in PostgreSQL.
    prefix = "counted: "
    state = sa.literal(prefix) + jobs.c.state
    size = sa.cast(sa.func.sum(blobs.c.size), sa.BigInteger)
    query = sa.union_all(
        sa.select(counters.c.name, counters.c.value),
        sa.select(state, sa.func.count()).group_by(jobs.c.state),
        sa.select(sa.literal(prefix + BLOB_BYTES), size),
    )
    values = {name: value for name, value in db.execute(query) if value}
    kept = {name: value for name, value in values.items() if not name.startswith(prefix)}
    return kept != {
        name.removeprefix(prefix): value
        for name, value in values.items()
        if name.startswith(prefix)
    }


def recount(db: sa.Connection) -> None:
    """Set the counters from what they count. It scans all jobs and blobs.

    An older release of raylens, which knows no counters, may have used the store meanwhile.
    """
    if db.dialect.name == "postgresql":  # SQLite allows one writer at a time
        db.exec_driver_sql("LOCK TABLE counters IN SHARE ROW EXCLUSIVE MODE")
    by_state = sa.select(jobs.c.state, sa.func.count()).group_by(jobs.c.state)
    values = {state: count for state, count in db.execute(by_state)}
    values[BLOB_BYTES] = db.scalar(sa.select(sa.func.sum(blobs.c.size))) or 0
    db.execute(sa.delete(counters))
    rows = [{"name": name, "value": int(value)} for name, value in values.items()]
    db.execute(sa.insert(counters), rows)


def moves(states: Iterable[tuple[JobState | None, JobState | None]]) -> Counter[str]:
    """Return the changes of the counters for jobs that went from one state to another.

    None stands for a job that did not exist, or no longer does.
    """
    changes: Counter[str] = Counter()
    for before, after in states:
        if before is not None:
            changes[before.value] -= 1
        if after is not None:
            changes[after.value] += 1
    return changes
