"""A store in memory, for tests."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from raylens.core.errors import Conflict, RaylensError
from raylens.jobs.clock import Clock, SystemClock
from raylens.jobs.files import StoredFile
from raylens.jobs.job import BULKY_FIELDS, Delivery, DeliveryState, Job, JobState
from raylens.jobs.store import (
    ANY_TYPE,
    MAX_DELIVERIES,
    NO_SHARES,
    Change,
    ComputeUpdate,
    JobQuery,
    JobStore,
    NextDue,
    TypeFilter,
    admit,
    check_quota,
)
from raylens.jobs.transitions import JobUpdate


@dataclass(frozen=True)
class _Blob:
    size: int
    touched_at: float
    removing_until: float = 0.0


class MemoryStore(JobStore):
    """Jobs in dictionaries. No method awaits anything, so each runs atomically."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._epoch: float | None = None
        self._jobs: dict[str, Job] = {}
        self._deliveries: dict[str, Delivery] = {}
        self._gone_urls: set[str] = set()
        self._blobs: dict[str, _Blob] = {}
        self._files: dict[str, StoredFile] = {}
        self._parts: dict[str, list[str]] = {}
        """The digests of each file's parts."""

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def read_clock(self) -> float:
        if self._epoch is None:
            self._epoch = self._clock.time() - self._clock.monotonic()
        return self._epoch + self._clock.monotonic()

    async def add(
        self, new_jobs: Sequence[Job], capacity: int, shares: Mapping[str, int] = NO_SHARES
    ) -> list[Job | RaylensError]:
        results = []
        for job in new_jobs:
            existing = self._jobs.get(job.id) or self._find_by_key(job.idempotency_key)
            queued, own = self._count(JobState.QUEUED), await self.count_queued(job.client)
            result = admit(job, existing, queued, capacity, own, shares.get(job.client))
            if result is job:
                self._jobs[job.id] = job
            results.append(result)
        return results

    async def get(
        self, job_ids: Collection[str], bulky_fields: Collection[str] = BULKY_FIELDS
    ) -> dict[str, Job]:
        known = self._jobs.keys() & set(job_ids)
        return {job_id: _without(self._jobs[job_id], bulky_fields) for job_id in known}

    async def list_jobs(self, query: JobQuery) -> list[Job]:
        newest_first = sorted(self._jobs.values(), key=lambda job: job.id, reverse=True)
        matches = (
            job
            for job in newest_first
            if (not query.states or job.state in query.states)
            and query.type in (None, job.type)
            and (query.before_id is None or job.id < query.before_id)
            and query.owner in (None, job.owner)
        )
        return [_without(job, query.bulky_fields) for job in islice(matches, query.limit)]

    async def count_by_state(self) -> dict[JobState, int]:
        return {state: self._count(state) for state in JobState}

    async def check_counts(self) -> None:
        """Nothing to do: they are counted when they are asked for."""

    async def recent_durations(self, limit: int, types: TypeFilter = ANY_TYPE) -> list[float]:
        succeeded = [job for job in self._in_state(JobState.SUCCEEDED) if types.selects(job.type)]
        latest_first = sorted(succeeded, key=lambda job: job.finished_at or 0, reverse=True)
        return [job.duration_s for job in latest_first[:limit] if job.duration_s is not None]

    async def claim(
        self,
        count: int,
        now: float,
        update: ComputeUpdate,
        held_models: Collection[str] = (),
        types: TypeFilter = ANY_TYPE,
    ) -> list[Job]:
        def is_due(job: Job) -> bool:
            is_held = job.model in held_models
            return job.state is JobState.QUEUED and job.run_after <= now and not is_held

        def has_expired_lease(job: Job) -> bool:
            return job.state is JobState.RUNNING and (job.lease_until or 0) <= now

        jobs = [job for job in self._jobs.values() if types.selects(job.type)]
        claimable = [job for job in jobs if is_due(job) or has_expired_lease(job)]
        claimable.sort(key=lambda job: (job.rank, job.id))
        return [self._save(update(job)) for job in claimable[:count]]

    async def expire(self, limit: int, now: float, update: ComputeUpdate) -> list[Job]:
        running = self._in_state(JobState.RUNNING)
        dead = [job for job in running if (job.lease_until or 0) <= now]
        waiting = [*self._in_state(JobState.QUEUED), *dead]
        expired = [job for job in waiting if job.deadline <= now]
        return [self._save(update(job)) for job in expired[:limit]]

    async def next_due(
        self,
        held_models: Collection[str] = (),
        with_claims: bool = True,
        types: TypeFilter = ANY_TYPE,
    ) -> NextDue:
        queued = self._in_state(JobState.QUEUED)
        selected = [job for job in queued if types.selects(job.type)]
        free = [job.run_after for job in selected if job.model not in held_models]
        running = self._in_state(JobState.RUNNING)
        leases = [job.lease_until or 0 for job in running if types.selects(job.type)]
        deadlines = [job.deadline for job in queued]
        deadlines += [max(job.deadline, job.lease_until or 0) for job in running]
        claim = min(free + leases, default=math.inf) if with_claims else math.inf
        return NextDue(claim, min(deadlines, default=math.inf))

    async def renew(self, fences: Mapping[str, int], until: float) -> set[str]:
        renewed = {
            job_id for job_id, fence in fences.items() if self._is_running_with(job_id, fence)
        }
        for job_id in renewed:
            self._jobs[job_id] = replace(self._jobs[job_id], lease_until=until)
        return renewed

    async def change(self, changes: Sequence[Change]) -> list[Job | RaylensError | None]:
        return [self._change(change) for change in changes]

    def _change(self, change: Change) -> Job | RaylensError | None:
        job = self._jobs.get(change.id)
        if job is None:
            return None
        if change.fence is not None and not self._is_running_with(job.id, change.fence):
            return None
        try:
            return self._save(change.update(job))
        except RaylensError as error:
            return error

    async def remove(self, job_id: str) -> Job | None:
        job = self._jobs.get(job_id)
        if job is not None:
            if not job.state.is_terminal:
                raise Conflict(f"job_id: the job is still {job.state}", "job_id")
            self._delete(job)
        return job

    async def deliveries(
        self, job_id: str, limit: int = MAX_DELIVERIES, before: int | None = None
    ) -> list[Delivery]:
        known = [
            each for each in self._deliveries_of(job_id) if before is None or each.number < before
        ]
        return sorted(known, key=_by_number)[-limit:]

    async def claim_deliveries(
        self, count: int, per_host: int, now: float, until: float, busy_hosts: Collection[str]
    ) -> list[Delivery]:
        due = [
            delivery
            for delivery in self._deliveries.values()
            if delivery.state is DeliveryState.PENDING
            and delivery.next_at <= now
            and (delivery.lease_until or 0) <= now
            and delivery.host not in busy_hosts
        ]
        due.sort(key=lambda delivery: (delivery.next_at, delivery.id))
        claimed = []
        for delivery in _take_per_host(due, per_host)[:count]:
            if delivery.webhook.url in self._gone_urls:
                delivery = replace(delivery, state=DeliveryState.DISABLED)
            else:
                delivery = replace(delivery, fence=delivery.fence + 1, lease_until=until)
                claimed.append(delivery)
            self._deliveries[delivery.id] = delivery
        return claimed

    async def next_delivery_due(self, busy_hosts: Collection[str]) -> float:
        due = (
            delivery.next_at
            for delivery in self._deliveries.values()
            if delivery.state is DeliveryState.PENDING
            and delivery.lease_until is None
            and delivery.host not in busy_hosts
        )
        return min(due, default=math.inf)

    async def settle_delivery(
        self, delivery: Delivery, pause_until: float | None, is_gone: bool
    ) -> bool:
        stored = self._deliveries.get(delivery.id)
        if stored is None or stored.fence != delivery.fence:
            return False
        self._deliveries[delivery.id] = replace(delivery, lease_until=None)
        url = delivery.webhook.url
        if is_gone:
            self._gone_urls.add(url)
        if pause_until is not None:
            self._postpone(url, pause_until)
        return True

    def _postpone(self, url: str, until: float) -> None:
        for delivery in self._deliveries.values():
            if delivery.webhook.url == url and delivery.state is DeliveryState.PENDING:
                next_at = max(delivery.next_at, until)
                self._deliveries[delivery.id] = replace(delivery, next_at=next_at)

    async def redeliver(self, job_id: str, number: int, now: float) -> Delivery | None:
        for delivery in self._deliveries_of(job_id):
            if delivery.number == number:
                self._gone_urls.discard(delivery.webhook.url)
                pending = replace(
                    delivery,
                    state=DeliveryState.PENDING,
                    attempts=0,
                    status=None,
                    problem=None,
                    delivered_at=None,
                    next_at=now,
                    lease_until=None,
                    fence=delivery.fence + 1,
                )
                self._deliveries[delivery.id] = pending
                return pending
        return None

    async def purge(self, ended_before: float, limit: int) -> int:
        ended = (
            job
            for job in self._jobs.values()
            if job.state.is_terminal
            and (job.finished_at or 0) < ended_before
            and not self._has_pending_delivery(job.id)
        )
        purged = list(islice(ended, limit))
        for job in purged:
            self._delete(job)
        return len(purged)

    def _delete(self, job: Job) -> None:
        del self._jobs[job.id]
        for delivery in list(self._deliveries_of(job.id)):
            del self._deliveries[delivery.id]

    async def purge_deliveries(self, due_before: float, limit: int) -> int:
        last = {each.job_id: each.id for each in sorted(self._deliveries.values(), key=_by_number)}
        old = (
            delivery.id
            for delivery in self._deliveries.values()
            if delivery.state is not DeliveryState.PENDING
            and delivery.next_at < due_before
            and last[delivery.job_id] != delivery.id
        )
        purged = list(islice(old, limit))
        for delivery_id in purged:
            del self._deliveries[delivery_id]
        return len(purged)

    async def drop_pictures(self, ended_before: float, limit: int) -> int:
        ended = (
            job
            for job in self._in_state(JobState.FAILED) + self._in_state(JobState.CANCELED)
            if (job.finished_at or 0) < ended_before and job.blobs and not job.pictures_removed
        )
        dropped = list(islice(ended, limit))
        for job in dropped:
            self._jobs[job.id] = replace(job, pictures_removed=True)
        return len(dropped)

    async def count_queued(self, client: str) -> int:
        own = (job for job in self._jobs.values() if job.client == client)
        return sum(job.state is JobState.QUEUED for job in own)

    async def client_bytes(self, client: str, besides: Collection[str]) -> int:
        jobs = (job for job in self._jobs.values() if job.client == client)
        digests = {digest for job in jobs if not job.pictures_removed for digest in job.blobs}
        files = (file_id for file_id, file in self._files.items() if file.client == client)
        digests |= {digest for file_id in files for digest in self._parts.get(file_id, ())}
        counted = digests.intersection(self._blobs).difference(besides)
        return sum(self._blobs[digest].size for digest in counted)

    async def touch_blobs(self, sizes: Mapping[str, int], now: float, max_bytes: float) -> set[str]:
        added = sum(size for digest, size in sizes.items() if digest not in self._blobs)
        if added:
            stored = sum(blob.size for blob in self._blobs.values())
            check_quota(stored, added, max_bytes)
        being_removed = {
            digest
            for digest in sizes
            if digest in self._blobs and self._blobs[digest].removing_until > now
        }
        for digest in sizes.keys() - being_removed:
            self._blobs[digest] = _Blob(sizes[digest], now)
        return being_removed

    async def mark_unused_blobs(
        self, touched_before: float, now: float, until: float, limit: int
    ) -> list[str]:
        jobs = self._jobs.values()
        used = {digest for job in jobs if not job.pictures_removed for digest in job.blobs}
        used |= {digest for parts in self._parts.values() for digest in parts}
        unused = (
            digest
            for digest, blob in self._blobs.items()
            if digest not in used
            and blob.touched_at < touched_before
            and blob.removing_until <= now
        )
        digests = list(islice(unused, limit))
        for digest in digests:
            self._blobs[digest] = replace(self._blobs[digest], removing_until=until)
        return digests

    async def forget_blobs(self, digests: Collection[str]) -> None:
        for digest in digests:
            blob = self._blobs.get(digest)
            if blob is not None and blob.removing_until > 0:
                del self._blobs[digest]

    async def renew_marks(self, digests: Collection[str], until: float) -> None:
        for digest in digests:
            blob = self._blobs.get(digest)
            if blob is not None and blob.removing_until > 0:
                self._blobs[digest] = replace(blob, removing_until=until)

    async def unmark_blobs(self, digests: Collection[str], touched_at: float) -> None:
        for digest in digests:
            blob = self._blobs.get(digest)
            if blob is not None and blob.removing_until > 0:
                self._blobs[digest] = _Blob(blob.size, touched_at)

    async def add_file(self, file: StoredFile, digests: Sequence[str]) -> None:
        self._files.setdefault(file.id, file)
        self._parts.setdefault(file.id, list(digests))

    async def append_to_file(
        self,
        file: StoredFile,
        digest: str,
        size: int,
        job_id: str,
        fence: int,
        replaces: str | None = None,
    ) -> None:
        if not self._is_running_with(job_id, fence):
            raise Conflict("job_id: the attempt no longer holds the job", "job_id")
        parts = self._parts.setdefault(file.id, [])
        if replaces is not None:
            if parts[-1:] != [replaces]:
                raise RuntimeError("the last part of the file is another one")
            parts.pop()
        parts.append(digest)
        stored = self._files.setdefault(file.id, file)
        self._files[file.id] = replace(stored, size=stored.size + size, expires_at=file.expires_at)

    async def get_file(self, file_id: str) -> StoredFile | None:
        return self._files.get(file_id)

    async def keep_file(self, file_id: str, until: float) -> StoredFile | None:
        file = self._files.get(file_id)
        if file is not None:
            file = self._files[file_id] = replace(file, expires_at=max(file.expires_at, until))
        return file

    async def file_part(self, file_id: str, number: int) -> str | None:
        return next(iter(self._parts.get(file_id, ())[number : number + 1]), None)

    async def file_parts(self, file_id: str) -> list[str]:
        return list(self._parts.get(file_id, ()))

    async def list_files(
        self,
        purpose: str | None,
        limit: int,
        after_id: str | None,
        newest_first: bool,
        owner: str | None = None,
    ) -> list[StoredFile]:
        files = sorted(self._files.values(), key=lambda file: file.id, reverse=newest_first)

        def is_behind(file_id: str) -> bool:
            if after_id is None:
                return True
            return file_id < after_id if newest_first else file_id > after_id

        matches = (
            file
            for file in files
            if purpose in (None, file.purpose)
            and owner in (None, file.owner)
            and is_behind(file.id)
        )
        return list(islice(matches, limit))

    async def remove_file(self, file_id: str) -> bool:
        self._parts.pop(file_id, None)
        return self._files.pop(file_id, None) is not None

    async def purge_files(self, now: float, limit: int) -> int:
        expired = [file.id for file in self._files.values() if file.expires_at <= now][:limit]
        for file_id in expired:
            await self.remove_file(file_id)
        return len(expired)

    def _save(self, update: JobUpdate) -> Job:
        job = update.job
        self._jobs[job.id] = job
        number = max((each.number for each in self._deliveries_of(job.id)), default=0)
        for delivery in update.deliveries:
            if delivery.id not in self._deliveries:
                number += 1
                self._deliveries[delivery.id] = replace(delivery, number=number)
        for event in update.only_newest:
            self._keep_newest(job.id, event)
        return job

    def _keep_newest(self, job_id: str, event: str) -> None:
        *old, _ = [each for each in self._deliveries_of(job_id) if each.event == event]
        for delivery in old:
            if delivery.state is not DeliveryState.PENDING or delivery.lease_until is None:
                del self._deliveries[delivery.id]

    def _find_by_key(self, key: str | None) -> Job | None:
        if key is None:
            return None
        return next((job for job in self._jobs.values() if job.idempotency_key == key), None)

    def _in_state(self, state: JobState) -> list[Job]:
        return [job for job in self._jobs.values() if job.state is state]

    def _count(self, state: JobState) -> int:
        return len(self._in_state(state))

    def _is_running_with(self, job_id: str, fence: int) -> bool:
        job = self._jobs.get(job_id)
        return job is not None and job.state is JobState.RUNNING and job.fence == fence

    def _deliveries_of(self, job_id: str) -> Iterator[Delivery]:
        return (delivery for delivery in self._deliveries.values() if delivery.job_id == job_id)

    def _has_pending_delivery(self, job_id: str) -> bool:
        return any(
            delivery.state is DeliveryState.PENDING for delivery in self._deliveries_of(job_id)
        )


def _take_per_host(due: Iterable[Delivery], per_host: int) -> list[Delivery]:
    """Return the first ``per_host`` deliveries to each host, in order."""
    count_by_host: Counter[str] = Counter()
    within_limit = []
    for delivery in due:
        count_by_host[delivery.host] += 1
        if count_by_host[delivery.host] <= per_host:
            within_limit.append(delivery)
    return within_limit


def _without(job: Job, bulky_fields: Collection[str]) -> Job:
    """Return the job with no other bulky fields than these."""
    return replace(
        job,
        input=job.input if "input" in bulky_fields else {},
        output=job.output if "output" in bulky_fields else None,
    )


def _by_number(delivery: Delivery) -> int:
    return delivery.number
