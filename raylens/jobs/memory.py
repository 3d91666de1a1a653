"""A store that forgets: the behaviour of :mod:`raylens.jobs.store` in dictionaries, for tests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from raylens.core.errors import RaylensError
from raylens.jobs.job import Delivery, DeliveryState, Job, JobState
from raylens.jobs.store import Apply, Change, Transition, admit


class MemoryStore:
    """Implements :class:`raylens.jobs.store.JobStore`. No method awaits, so each is a transaction."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}
        self._deliveries: dict[str, Delivery] = {}
        self._gone: set[str] = set()
        self._blobs: dict[str, float] = {}

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def skew(self) -> float:
        return 0.0

    async def add(self, jobs: Sequence[Job], capacity: int) -> list[Job | RaylensError]:
        added = []
        for job in jobs:
            known = self._jobs.get(job.id) or self._with_key(job.idempotency_key)
            result = admit(job, known, self._count(JobState.QUEUED), capacity)
            if result is job:
                self._jobs[job.id] = job
            added.append(result)
        return added

    async def get(self, job_id: str) -> Job | None:
        return self._jobs.get(job_id)

    async def page(self, states: Collection[JobState], limit: int, before: str | None) -> list[Job]:
        found = (
            job
            for job in sorted(self._jobs.values(), key=lambda job: job.id, reverse=True)
            if (not states or job.state in states) and (before is None or job.id < before)
        )
        return [job for job, _ in zip(found, range(limit), strict=False)]

    async def counts(self) -> dict[JobState, int]:
        return {state: self._count(state) for state in JobState}

    async def waiting(self, limit: int) -> int:
        return min(limit, self._count(JobState.QUEUED))

    async def durations(self, limit: int) -> list[float]:
        ended = sorted(
            self._in(JobState.SUCCEEDED), key=lambda job: job.finished_at or 0, reverse=True
        )[:limit]
        return [job.seconds for job in ended if job.seconds is not None]

    async def claim(self, count: int, now: float, apply: Apply) -> list[Job]:
        due = [job for job in self._in(JobState.QUEUED) if job.run_after <= now]
        due += [job for job in self._in(JobState.RUNNING) if (job.lease_until or 0) <= now]
        chosen = sorted(due, key=lambda job: (job.rank, job.id))[:count]
        return [self._put(apply(job)) for job in chosen]

    async def renew(self, fences: Mapping[str, int], until: float) -> set[str]:
        held = {job_id for job_id, fence in fences.items() if self._runs_under(job_id, fence)}
        for job_id in held:
            self._jobs[job_id] = replace(self._jobs[job_id], lease_until=until)
        return held

    async def change(self, changes: Sequence[Change]) -> list[Job | RaylensError | None]:
        return [self._change(change) for change in changes]

    def _change(self, change: Change) -> Job | RaylensError | None:
        job = self._jobs.get(change.id)
        if job is None or (change.fence is not None and not self._runs_under(job.id, change.fence)):
            return None
        try:
            return self._put(change.apply(job))
        except RaylensError as error:
            return error

    async def deliveries(self, job_id: str) -> list[Delivery]:
        return sorted(self._of(job_id), key=lambda delivery: delivery.number)

    async def claim_deliveries(
        self, count: int, per_host: int, now: float, until: float, busy: Collection[str]
    ) -> list[Delivery]:
        due = sorted(
            (
                delivery
                for delivery in self._deliveries.values()
                if delivery.state is DeliveryState.PENDING
                and delivery.next_at <= now
                and (delivery.lease_until or 0) <= now
                and delivery.host not in busy
            ),
            key=lambda delivery: (delivery.next_at, delivery.id),
        )
        claimed = []
        taken: Counter[str] = Counter()
        for delivery in due:
            taken[delivery.host] += 1
            if taken[delivery.host] > per_host or taken.total() > count:
                continue
            if delivery.webhook.url in self._gone:
                delivery = replace(delivery, state=DeliveryState.DISABLED)
            else:
                delivery = replace(delivery, fence=delivery.fence + 1, lease_until=until)
                claimed.append(delivery)
            self._deliveries[delivery.id] = delivery
        return claimed

    async def settle_delivery(
        self, delivery: Delivery, slow_until: float | None, gone: bool
    ) -> bool:
        stored = self._deliveries.get(delivery.id)
        if stored is None or stored.fence != delivery.fence:
            return False
        self._deliveries[delivery.id] = replace(delivery, lease_until=None)
        if gone:
            self._gone.add(delivery.webhook.url)
        if slow_until is not None:
            for other in self._deliveries.values():
                if (
                    other.webhook.url == delivery.webhook.url
                    and other.state is DeliveryState.PENDING
                ):
                    self._deliveries[other.id] = replace(
                        other, next_at=max(other.next_at, slow_until)
                    )
        return True

    async def redeliver(self, job_id: str, number: int, now: float) -> Delivery | None:
        for delivery in self._of(job_id):
            if delivery.number == number:
                self._gone.discard(delivery.webhook.url)
                fresh = replace(
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
                self._deliveries[delivery.id] = fresh
                return fresh
        return None

    async def purge(self, before: float, limit: int) -> int:
        ended = [
            job
            for job in self._jobs.values()
            if job.state.is_terminal
            and (job.finished_at or 0) < before
            and not self._has_pending(job.id)
        ][:limit]
        for job in ended:
            del self._jobs[job.id]
            for delivery in list(self._of(job.id)):
                del self._deliveries[delivery.id]
        return len(ended)

    async def touch_blobs(self, digests: Collection[str], now: float) -> None:
        self._blobs.update(dict.fromkeys(digests, now))

    async def collect_blobs(self, before: float, limit: int, remove: Callable[[str], None]) -> int:
        used = {digest for job in self._jobs.values() for digest in job.blobs}
        unused = [
            digest
            for digest, touched in self._blobs.items()
            if digest not in used and touched < before
        ][:limit]
        for digest in unused:
            remove(digest)
            del self._blobs[digest]
        return len(unused)

    def _put(self, transitions: Transition) -> Job:
        job = transitions.job
        self._jobs[job.id] = job
        number = len(list(self._of(job.id)))
        for delivery in transitions.deliveries:
            number += 1
            self._deliveries[delivery.id] = replace(delivery, number=number)
        return job

    def _with_key(self, key: str | None) -> Job | None:
        return next(
            (job for job in self._jobs.values() if key is not None and job.idempotency_key == key),
            None,
        )

    def _in(self, state: JobState) -> list[Job]:
        return [job for job in self._jobs.values() if job.state is state]

    def _count(self, state: JobState) -> int:
        return Counter(job.state for job in self._jobs.values())[state]

    def _runs_under(self, job_id: str, fence: int) -> bool:
        job = self._jobs.get(job_id)
        return job is not None and job.state is JobState.RUNNING and job.fence == fence

    def _of(self, job_id: str) -> Iterator[Delivery]:
        return (delivery for delivery in self._deliveries.values() if delivery.job_id == job_id)

    def _has_pending(self, job_id: str) -> bool:
        return any(delivery.state is DeliveryState.PENDING for delivery in self._of(job_id))
