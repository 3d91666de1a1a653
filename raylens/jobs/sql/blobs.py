"""The statements on the records of blobs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from raylens.jobs.sql.counters import BLOB_BYTES, add_to_counters, read_counters
from raylens.jobs.sql.dialects import insert
from raylens.jobs.sql.tables import blobs, file_parts, files, job_blobs, jobs
from raylens.jobs.store import check_quota

_is_of_job = sa.select(job_blobs.c.digest).where(job_blobs.c.digest == blobs.c.digest).exists()
_is_of_file = sa.select(file_parts.c.digest).where(file_parts.c.digest == blobs.c.digest).exists()


def client_bytes(db: sa.Connection, client: str, besides: Collection[str]) -> int:
    of_jobs = sa.select(job_blobs.c.digest).join(jobs, jobs.c.id == job_blobs.c.job_id)
    of_files = sa.select(file_parts.c.digest).join(files, files.c.id == file_parts.c.file_id)
    digests = sa.union(
        of_jobs.where(jobs.c.client == client), of_files.where(files.c.client == client)
    )
    is_counted = blobs.c.digest.in_(digests) & blobs.c.digest.not_in(besides)
    return int(db.scalar(sa.select(sa.func.sum(blobs.c.size)).where(is_counted)) or 0)


def touch_blobs(
    db: sa.Connection, sizes: Mapping[str, int], now: float, max_bytes: float
) -> set[str]:
    if not sizes:
        return set()
    digests = sorted(sizes)
    known = sa.select(blobs).where(blobs.c.digest.in_(digests)).order_by(blobs.c.digest)
    rows = {row.digest: row for row in db.execute(known.with_for_update())}
    # An older release stored no sizes.
    unsized = [digest for digest, row in rows.items() if not row.size]
    missing = [digest for digest in digests if digest not in rows]
    growth = sum(sizes[digest] for digest in (*unsized, *missing))
    if growth:
        check_quota(read_counters(db).get(BLOB_BYTES, 0), growth, max_bytes)
    being_removed = {
        digest for digest, row in rows.items() if row.removing_until and row.removing_until > now
    }
    touched = {"touched_at": now, "removing_until": None}
    is_touched = blobs.c.digest.in_(rows.keys() - being_removed)
    db.execute(sa.update(blobs).where(is_touched).values(touched))
    for digest in unsized:
        db.execute(sa.update(blobs).where(blobs.c.digest == digest).values(size=sizes[digest]))
    added = _insert(db, [{"digest": d, "touched_at": now, "size": sizes[d]} for d in missing])
    counted = sum(sizes[digest] for digest in (*unsized, *added))
    add_to_counters(db, Counter({BLOB_BYTES: counted}))
    return being_removed


def _insert(db: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Insert records of blobs, and return the digests of those that another process has not just
    inserted."""
    if not rows:
        return []
    statement = insert(db, blobs).values(rows).on_conflict_do_nothing()
    return list(db.scalars(statement.returning(blobs.c.digest)))


def find_unused_blobs(
    db: sa.Connection, touched_before: float, now: float, limit: int
) -> list[str]:
    """Return the digests of blobs that may be removed. It may scan all blobs."""
    query = sa.select(blobs.c.digest).where(_may_be_removed(touched_before, now)).limit(limit)
    return list(db.scalars(query))


def mark_blobs(
    db: sa.Connection,
    candidates: Collection[str],
    touched_before: float,
    now: float,
    until: float,
) -> list[str]:
    """Mark those of the candidates that may still be removed, and return their digests."""
    query = sa.select(blobs.c.digest).where(
        blobs.c.digest.in_(candidates), _may_be_removed(touched_before, now)
    )
    locking = query.order_by(blobs.c.digest).with_for_update(skip_locked=True)
    digests = list(db.scalars(locking))
    marked = sa.update(blobs).where(blobs.c.digest.in_(digests))
    db.execute(marked.values(removing_until=until))
    return digests


def _may_be_removed(touched_before: float, now: float) -> sa.ColumnElement[bool]:
    is_free = blobs.c.removing_until.is_(None) | (blobs.c.removing_until <= now)
    return (blobs.c.touched_at < touched_before) & is_free & ~_is_of_job & ~_is_of_file


def _is_marked(digests: Collection[str]) -> sa.ColumnElement[bool]:
    return blobs.c.digest.in_(digests) & blobs.c.removing_until.is_not(None)


def renew_marks(db: sa.Connection, digests: Collection[str], until: float) -> None:
    db.execute(sa.update(blobs).where(_is_marked(digests)).values(removing_until=until))


def unmark_blobs(db: sa.Connection, digests: Collection[str], touched_at: float) -> None:
    values = {"removing_until": None, "touched_at": touched_at}
    db.execute(sa.update(blobs).where(_is_marked(digests)).values(values))


def forget_blobs(db: sa.Connection, digests: Collection[str]) -> None:
    query = sa.select(blobs).where(_is_marked(digests)).order_by(blobs.c.digest)
    rows = db.execute(query.with_for_update()).all()
    db.execute(sa.delete(blobs).where(blobs.c.digest.in_([row.digest for row in rows])))
    add_to_counters(db, Counter({BLOB_BYTES: -sum(row.size for row in rows)}))
