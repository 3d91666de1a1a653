"""The statements on webhook deliveries and on endpoints that are gone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import sqlalchemy as sa

from raylens.jobs.job import Delivery, DeliveryState
from raylens.jobs.sql.dialects import insert
from raylens.jobs.sql.tables import (
    deliveries,
    delivery_from_row,
    delivery_to_row,
    gone_endpoints,
)

is_pending = deliveries.c.state == DeliveryState.PENDING


def select_deliveries(db: sa.Connection, query: sa.Select[Any]) -> list[Delivery]:
    return [delivery_from_row(row) for row in db.execute(query).mappings()]


def insert_deliveries(db: sa.Connection, new: Sequence[Delivery]) -> None:
    """Insert deliveries, each numbered after the last delivery of its job.

    Those that are there already are left as they are.
    """
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
    if rows:
        db.execute(insert(db, deliveries).on_conflict_do_nothing(index_elements=["id"]), rows)


def keep_newest(db: sa.Connection, job_id: str, event: str) -> None:
    """Delete the deliveries of an event, except for the newest one and those under way."""
    is_match = (deliveries.c.job_id == job_id) & (deliveries.c.event == event)
    newest = sa.select(sa.func.max(deliveries.c.number)).where(is_match).scalar_subquery()
    is_under_way = is_pending & deliveries.c.lease_until.is_not(None)
    old = sa.delete(deliveries).where(is_match, deliveries.c.number < newest, ~is_under_way)
    db.execute(old)


def claim_deliveries(
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
            is_pending, deliveries.c.next_at <= now, is_free, deliveries.c.host.not_in(busy_hosts)
        )
        .subquery()
    )
    candidates = sa.select(due.c.id).where(due.c.position_for_host <= per_host)
    query = sa.select(deliveries).where(deliveries.c.id.in_(candidates), is_pending, is_free)
    # Another process may have just claimed a candidate. If its row is locked, skip_locked skips it;
    # if not, the repeated condition excludes it.
    locking = query.order_by(*by_time).limit(count).with_for_update(skip_locked=True)
    locked = select_deliveries(db, locking)
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


def settle_delivery(
    db: sa.Connection, delivery: Delivery, pause_until: float | None, is_gone: bool
) -> bool:
    url = delivery.webhook.url
    is_early: sa.ColumnElement[bool] = sa.false()
    if pause_until is not None:
        is_early = (deliveries.c.url == url) & is_pending & (deliveries.c.next_at < pause_until)
        # Transactions that wait for row locks take them in order of id, so they can't deadlock.
        affected = sa.select(deliveries.c.id).where((deliveries.c.id == delivery.id) | is_early)
        db.execute(affected.order_by(deliveries.c.id).with_for_update())
    is_current = (deliveries.c.id == delivery.id) & (deliveries.c.fence == delivery.fence)
    values = delivery_to_row(replace(delivery, lease_until=None))
    if db.execute(sa.update(deliveries).where(is_current).values(values)).rowcount == 0:
        return False
    if is_gone:
        db.execute(insert(db, gone_endpoints).values(url=url).on_conflict_do_nothing())
    if pause_until is not None:
        db.execute(sa.update(deliveries).where(is_early).values(next_at=pause_until))
    return True


def redeliver(db: sa.Connection, job_id: str, number: int, now: float) -> Delivery | None:
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
    matches = select_deliveries(db, sa.select(deliveries).where(is_match))
    if not matches:
        return None
    (delivery,) = matches
    db.execute(sa.delete(gone_endpoints).where(gone_endpoints.c.url == delivery.webhook.url))
    return delivery


def purge_deliveries(db: sa.Connection, due_before: float, limit: int) -> int:
    ended = [state for state in DeliveryState if state is not DeliveryState.PENDING]
    later = deliveries.alias()
    # The last one of each job stays, so that no number is given twice.
    has_later = (
        sa.select(later.c.id)
        .where(later.c.job_id == deliveries.c.job_id, later.c.number > deliveries.c.number)
        .exists()
    )
    old = sa.select(deliveries.c.id).where(
        deliveries.c.state.in_(ended), deliveries.c.next_at < due_before, has_later
    )
    ids = list(db.scalars(old.limit(limit).with_for_update(skip_locked=True)))
    db.execute(sa.delete(deliveries).where(deliveries.c.id.in_(ids)))
    return len(ids)


def next_delivery_due(db: sa.Connection, busy_hosts: Collection[str]) -> float:
    """Return when a delivery without a lease is due next; infinity if there is none."""
    query = sa.select(sa.func.min(deliveries.c.next_at)).where(
        is_pending, deliveries.c.lease_until.is_(None), deliveries.c.host.not_in(busy_hosts)
    )
    due = db.scalar(query)
    return math.inf if due is None else float(due)
