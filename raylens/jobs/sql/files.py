"""The statements on files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa

from raylens.core.errors import Conflict
from raylens.jobs.files import StoredFile
from raylens.jobs.job import JobState
from raylens.jobs.sql.dialects import insert
from raylens.jobs.sql.tables import file_parts, files, jobs


def add_file(db: sa.Connection, file: StoredFile, digests: Sequence[str]) -> None:
    parts = [
        {"file_id": file.id, "number": number, "digest": digest}
        for number, digest in enumerate(digests, 1)
    ]
    db.execute(insert(db, files).values(asdict(file)).on_conflict_do_nothing())
    db.execute(insert(db, file_parts).on_conflict_do_nothing(), parts)


def append_to_file(
    db: sa.Connection,
    file: StoredFile,
    digest: str,
    size: int,
    job_id: str,
    fence: int,
    replaces: str | None,
) -> None:
    is_held = (jobs.c.id == job_id) & (jobs.c.fence == fence) & (jobs.c.state == JobState.RUNNING)
    # The row stays locked, so that the job can't be claimed by another process meanwhile.
    if db.scalar(sa.select(jobs.c.id).where(is_held).with_for_update()) is None:
        raise Conflict("job_id: the attempt no longer holds the job", "job_id")
    db.execute(insert(db, files).values(asdict(file)).on_conflict_do_nothing())
    last = sa.select(sa.func.max(file_parts.c.number)).where(file_parts.c.file_id == file.id)
    number = db.scalar(last) or 0
    if replaces is None:
        part = {"file_id": file.id, "number": number + 1, "digest": digest}
        db.execute(sa.insert(file_parts).values(part))
    else:
        is_last = (file_parts.c.file_id == file.id) & (file_parts.c.number == number)
        replaced = sa.update(file_parts).where(is_last, file_parts.c.digest == replaces)
        if db.execute(replaced.values(digest=digest)).rowcount == 0:
            raise RuntimeError("the last part of the file is another one")
    grown = sa.update(files).where(files.c.id == file.id)
    db.execute(grown.values(size=files.c.size + size, expires_at=file.expires_at))


def get_file(db: sa.Connection, file_id: str) -> StoredFile | None:
    matches = _select(db, sa.select(files).where(files.c.id == file_id))
    return matches[0] if matches else None


def keep_file(db: sa.Connection, file_id: str, until: float) -> StoredFile | None:
    is_early = (files.c.id == file_id) & (files.c.expires_at < until)
    db.execute(sa.update(files).where(is_early).values(expires_at=until))
    return get_file(db, file_id)


def select_part(db: sa.Connection, file_id: str, number: int) -> str | None:
    is_part = (file_parts.c.file_id == file_id) & (file_parts.c.number == number + 1)
    return db.scalar(sa.select(file_parts.c.digest).where(is_part))


def select_parts(db: sa.Connection, file_id: str) -> list[str]:
    query = sa.select(file_parts.c.digest).where(file_parts.c.file_id == file_id)
    return list(db.scalars(query.order_by(file_parts.c.number)))


def list_files(
    db: sa.Connection,
    purpose: str | None,
    limit: int,
    after_id: str | None,
    newest_first: bool,
    owner: str | None,
) -> list[StoredFile]:
    query = sa.select(files).limit(limit)
    query = query.order_by(files.c.id.desc() if newest_first else files.c.id)
    if purpose is not None:
        query = query.where(files.c.purpose == purpose)
    if owner is not None:
        query = query.where(files.c.owner == owner)
    if after_id is not None:
        query = query.where(files.c.id < after_id if newest_first else files.c.id > after_id)
    return _select(db, query)


def remove_file(db: sa.Connection, file_id: str) -> bool:
    return db.execute(sa.delete(files).where(files.c.id == file_id)).rowcount > 0


def purge_files(db: sa.Connection, now: float, limit: int) -> int:
    expired = sa.select(files.c.id).where(files.c.expires_at <= now).limit(limit)
    ids = list(db.scalars(expired.with_for_update(skip_locked=True)))
    db.execute(sa.delete(files).where(files.c.id.in_(ids)))
    return len(ids)


def _select(db: sa.Connection, query: sa.Select[Any]) -> list[StoredFile]:
    return [StoredFile(**row) for row in db.execute(query).mappings()]
