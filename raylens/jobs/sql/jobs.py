"""The statements on jobs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import sqlalchemy as sa

from raylens.core.errors import Conflict, RaylensError
from raylens.jobs.job import BULKY_FIELDS, TERMINAL, Delivery, Job, JobState
from raylens.jobs.sql.counters import add_to_counters, count_queued, moves
from raylens.jobs.sql.deliveries import insert_deliveries, is_pending, keep_newest
from raylens.jobs.sql.tables import (
    MUTABLE_COLUMNS,
    deliveries,
    is_of_type,
    is_queued,
    job_blobs,
    job_from_row,
    job_to_row,
    jobs,
)
from raylens.jobs.store import Change, ComputeUpdate, JobQuery, NextDue, TypeFilter, admit
from raylens.jobs.transitions import JobUpdate

_UPDATE_JOB = (
    sa.update(jobs)
    .where(jobs.c.id == sa.bindparam("job_id"))
    .values({name: sa.bindparam(f"new_{name}") for name in MUTABLE_COLUMNS})
)
_is_running = jobs.c.state == JobState.RUNNING


def select_with(bulky_fields: Collection[str]) -> sa.Select[Any]:
    """Return a query of jobs with no other bulky fields than these."""
    left_out = BULKY_FIELDS.difference(bulky_fields)
    return sa.select(*(column for column in jobs.c if column.name not in left_out))


def select_jobs(db: sa.Connection, query: sa.Select[Any]) -> list[Job]:
    return [job_from_row(row) for row in db.execute(query).mappings()]


def add(
    db: sa.Connection, new: Sequence[Job], capacity: int, shares: Mapping[str, int]
) -> list[Job | RaylensError]:
    stored = _select_duplicates(db, new)
    by_id = {job.id: job for job in stored}
    by_key: dict[str | None, Job] = {
        job.idempotency_key: job for job in stored if job.idempotency_key
    }
    queued = count_queued(db)
    own_queued = count_queued_by_client(db, {job.client for job in new} & shares.keys())
    results: list[Job | RaylensError] = []
    rows: list[dict[str, Any]] = []
    references: list[dict[str, Any]] = []
    for job in new:
        existing = by_id.get(job.id) or by_key.get(job.idempotency_key)
        share = shares.get(job.client)
        result = admit(job, existing, queued, capacity, own_queued[job.client], share)
        results.append(result)
        if result is not job:
            continue
        queued += 1
        own_queued[job.client] += 1
        by_id[job.id] = job
        if job.idempotency_key:
            by_key[job.idempotency_key] = job
        rows.append(job_to_row(job))
        references += [{"job_id": job.id, "digest": digest} for digest in set(job.blobs)]
    _insert_rows(db, jobs, rows)
    _insert_rows(db, job_blobs, references)
    add_to_counters(db, moves((None, JobState.QUEUED) for _ in rows))
    return results


def count_queued_by_client(db: sa.Connection, clients: Collection[str]) -> Counter[str]:
    if not clients:
        return Counter()
    query = sa.select(jobs.c.client, sa.func.count()).where(
        jobs.c.client.in_(clients), jobs.c.state == JobState.QUEUED
    )
    return Counter(dict(db.execute(query.group_by(jobs.c.client)).tuples().all()))


def _select_duplicates(db: sa.Connection, new: Sequence[Job]) -> list[Job]:
    """Return the stored jobs that have the id or the idempotency key of a new job."""
    keys = [job.idempotency_key for job in new if job.idempotency_key is not None]
    is_duplicate: sa.ColumnElement[bool] = jobs.c.id.in_([job.id for job in new])
    if keys:
        is_duplicate = is_duplicate | jobs.c.idempotency_key.in_(keys)
    return select_jobs(db, sa.select(jobs).where(is_duplicate))


def _insert_rows(db: sa.Connection, table: sa.Table, rows: Sequence[dict[str, Any]]) -> None:
    if rows:
        db.execute(sa.insert(table), rows)


def list_jobs(db: sa.Connection, query: JobQuery) -> list[Job]:
    statement = select_with(query.bulky_fields)
    statement = statement.order_by(jobs.c.id.desc()).limit(query.limit)
    if query.states:
        statement = statement.where(jobs.c.state.in_(query.states))
    if query.type is not None:
        statement = statement.where(is_of_type(query.type))
    if query.owner is not None:
        statement = statement.where(jobs.c.owner == query.owner)
    if query.before_id is not None:
        statement = statement.where(jobs.c.id < query.before_id)
    return select_jobs(db, statement)


def recent_durations(db: sa.Connection, limit: int, types: TypeFilter) -> list[float]:
    durations = sa.select(jobs.c.finished_at - jobs.c.started_at)
    succeeded = durations.where(jobs.c.state == JobState.SUCCEEDED, *_has_type(types))
    return list(db.scalars(succeeded.order_by(jobs.c.finished_at.desc()).limit(limit)))


def claim(
    db: sa.Connection,
    count: int,
    now: float,
    update: ComputeUpdate,
    held_models: Collection[str],
    types: TypeFilter,
) -> list[Job]:
    parameters: dict[str, Any] = {"count": count, "now": now}
    if held_models:
        parameters["held_models"] = list(held_models)
    query = _select_claimable(bool(held_models), types)
    claimable = [job_from_row(row) for row in db.execute(query, parameters).mappings()]
    return _update_all(db, claimable, update)


@cache
def _select_claimable(has_held_models: bool, types: TypeFilter) -> sa.Select[Any]:
    """Return the query for claimable jobs. It is large, so it is built once."""
    now = sa.bindparam("now", type_=sa.Float)
    count = sa.bindparam("count", type_=sa.Integer)
    has_expired_lease = (jobs.c.state == JobState.RUNNING) & (jobs.c.lease_until <= now)
    is_due = (jobs.c.state == JobState.QUEUED) & (jobs.c.run_after <= now)
    if has_held_models:
        is_due = is_due & jobs.c.model.not_in(sa.bindparam("held_models", expanding=True))
    by_rank = (jobs.c.rank, jobs.c.id)
    has_type = _has_type(types)

    def first_ids(condition: sa.ColumnElement[bool]) -> sa.Select[Any]:
        ids = sa.select(jobs.c.id).where(condition, *has_type)
        first = ids.order_by(*by_rank).limit(count).subquery()
        return sa.select(first.c.id)

    # Two subqueries, because each can use an index.
    candidates = sa.union_all(first_ids(has_expired_lease), first_ids(is_due))
    query = sa.select(jobs).where(jobs.c.id.in_(candidates), has_expired_lease | is_due)
    # Another process may have just claimed a candidate. If its row is locked, skip_locked skips it;
    # if not, the repeated condition excludes it.
    return query.order_by(*by_rank).limit(count).with_for_update(skip_locked=True)


def _has_type(types: TypeFilter) -> list[sa.ColumnElement[bool]]:
    """Return the conditions of a type, in the form of a partial index if there is one."""
    if types.selects_others:
        return [jobs.c.type != name for name in sorted(types.names)]
    return [sa.or_(*(is_of_type(name) for name in sorted(types.names)))]


def expire(db: sa.Connection, limit: int, now: float, update: ComputeUpdate) -> list[Job]:
    expired: list[Job] = []
    for is_waiting in (is_queued, _is_running & (jobs.c.lease_until <= now)):
        query = sa.select(jobs).where(is_waiting, jobs.c.deadline <= now)
        locking = query.order_by(jobs.c.id).with_for_update(skip_locked=True)
        expired += select_jobs(db, locking.limit(limit - len(expired)))
    return _update_all(db, expired, update)


def _update_all(db: sa.Connection, selected: Sequence[Job], update: ComputeUpdate) -> list[Job]:
    updates = [update(job) for job in selected]
    _save(db, {job.id: job for job in selected}, updates)
    return [job_update.job for job_update in updates]


def next_due(
    db: sa.Connection, held_models: Collection[str], with_claims: bool, types: TypeFilter
) -> NextDue:
    is_late = jobs.c.lease_until > jobs.c.deadline
    expiry = min(
        _min(db, jobs.c.deadline, is_queued),
        _min(db, sa.case((is_late, jobs.c.lease_until), else_=jobs.c.deadline), _is_running),
    )
    if not with_claims:
        return NextDue(expiry=expiry)
    has_type = _has_type(types)
    is_free = [jobs.c.model.not_in(held_models)] if held_models else []
    run_after = _min(db, jobs.c.run_after, is_queued, *is_free, *has_type)
    lease_until = _min(db, jobs.c.lease_until, _is_running, *has_type)
    return NextDue(min(run_after, lease_until), expiry)


def _min(
    db: sa.Connection, value: sa.ColumnElement[Any], *conditions: sa.ColumnElement[bool]
) -> float:
    """Return the least value of some rows; infinity if there is none."""
    least = db.scalar(sa.select(sa.func.min(value)).where(*conditions))
    return math.inf if least is None else float(least)


def renew(db: sa.Connection, fences: Mapping[str, int], until: float) -> set[str]:
    query = sa.select(jobs.c.id, jobs.c.fence).where(
        jobs.c.id.in_(fences), jobs.c.state == JobState.RUNNING
    )
    rows = db.execute(query.order_by(jobs.c.id).with_for_update())
    renewed = {job_id for job_id, fence in rows if fences[job_id] == fence}
    db.execute(sa.update(jobs).where(jobs.c.id.in_(renewed)).values(lease_until=until))
    return renewed


def find_latest_time(db: sa.Connection) -> float:
    """Return the latest time that any job has; 0 if there are none. It scans all jobs."""
    times = (jobs.c.created_at, jobs.c.started_at, jobs.c.finished_at, jobs.c.lease_until)
    row = db.execute(sa.select(*map(sa.func.max, times))).one()
    return max((float(time) for time in row if time is not None), default=0.0)


def change(db: sa.Connection, changes: Sequence[Change]) -> list[Job | RaylensError | None]:
    ids = sorted({change.id for change in changes})
    # Transactions that wait for row locks take them in order of id, so they can't deadlock.
    query = sa.select(jobs).where(jobs.c.id.in_(ids)).order_by(jobs.c.id).with_for_update()
    stored = {job.id: job for job in select_jobs(db, query)}
    current = dict(stored)
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
    _save(db, stored, updates)
    return results


def _is_running_with(job: Job, fence: int) -> bool:
    return job.state is JobState.RUNNING and job.fence == fence


def _save(db: sa.Connection, stored: Mapping[str, Job], updates: Iterable[JobUpdate]) -> None:
    """Write the last version of each changed job, and insert the new deliveries."""
    changed: dict[str, Job] = {}
    new_deliveries: list[Delivery] = []
    replaced: set[tuple[str, str]] = set()
    for update in updates:
        changed[update.job.id] = update.job
        new_deliveries += update.deliveries
        replaced |= {(update.job.id, event) for event in update.only_newest}
    if changed:
        db.execute(_UPDATE_JOB, [_update_parameters(job) for job in changed.values()])
    if new_deliveries:
        insert_deliveries(db, new_deliveries)
    for job_id, event in sorted(replaced):
        keep_newest(db, job_id, event)
    states = ((stored[job_id].state, job.state) for job_id, job in changed.items())
    add_to_counters(db, moves(states))


def _update_parameters(job: Job) -> dict[str, Any]:
    row = job_to_row(job)
    return {"job_id": job.id, **{f"new_{name}": row[name] for name in MUTABLE_COLUMNS}}


def remove(db: sa.Connection, job_id: str) -> Job | None:
    query = sa.select(jobs).where(jobs.c.id == job_id).with_for_update()
    matches = select_jobs(db, query)
    if not matches:
        return None
    (job,) = matches
    if not job.state.is_terminal:
        raise Conflict(f"job_id: the job is still {job.state}", "job_id")
    _delete(db, [job_id], [job.state])
    return job


def purge(db: sa.Connection, ended_before: float, limit: int) -> int:
    of_job = sa.select(deliveries.c.id).where(deliveries.c.job_id == jobs.c.id)
    has_pending = of_job.where(is_pending).exists()
    ended = sa.select(jobs.c.id, jobs.c.state).where(
        jobs.c.state.in_(TERMINAL), jobs.c.finished_at < ended_before, ~has_pending
    )
    rows = db.execute(ended.limit(limit).with_for_update(skip_locked=True)).all()
    _delete(db, [row.id for row in rows], [JobState(row.state) for row in rows])
    return len(rows)


def _delete(db: sa.Connection, ids: Collection[str], states: Iterable[JobState]) -> None:
    db.execute(sa.delete(jobs).where(jobs.c.id.in_(ids)))
    add_to_counters(db, moves((state, None) for state in states))


def drop_pictures(db: sa.Connection, ended_before: float, limit: int) -> int:
    has_pictures = sa.select(job_blobs.c.job_id).where(job_blobs.c.job_id == jobs.c.id).exists()
    ended = sa.select(jobs.c.id).where(
        jobs.c.state.in_([JobState.FAILED, JobState.CANCELED]),
        jobs.c.finished_at < ended_before,
        ~jobs.c.pictures_removed,
        has_pictures,
    )
    ids = list(db.scalars(ended.limit(limit).with_for_update(skip_locked=True)))
    db.execute(sa.delete(job_blobs).where(job_blobs.c.job_id.in_(ids)))
    db.execute(sa.update(jobs).where(jobs.c.id.in_(ids)).values(pictures_removed=True))
    return len(ids)
