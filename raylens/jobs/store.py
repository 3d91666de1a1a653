"""What the queue asks of a store. One suite of tests holds all implementations to it:
``tests/contract/``.

A store decides nothing: it applies functions of :mod:`raylens.jobs.transitions` to rows that it has
locked.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from raylens.core.errors import Conflict, QueueFull, RaylensError
from raylens.jobs.job import Delivery, Job, JobState


@dataclass(frozen=True)
class Transition:
    """A job after a change, and the deliveries that come with it, in one transaction. Their numbers
    are the store's."""

    job: Job
    deliveries: tuple[Delivery, ...] = ()


class StoreUnusable(Exception):
    """The store can't be opened, or can't keep what it promises; the message names the setting."""


class StoreUnreachable(StoreUnusable):
    """Its server doesn't answer, or doesn't let us in: another try may find it otherwise."""


Apply = Callable[[Job], Transition]


@dataclass(frozen=True)
class Change:
    """``apply`` to the job of this ``id``; with a ``fence`` only while it runs under that one.

    An ``apply`` that raises one of :mod:`raylens.core.errors` changes nothing, and the error is the
    change's result.
    """

    id: str
    apply: Apply
    fence: int | None = None


class JobStore(Protocol):
    """Jobs, deliveries and the references to blobs. Each method is one transaction, and durable
    once it returns."""

    async def open(self) -> None:
        """Connects, and brings the schema up to date. Raises ``StoreUnusable``, or
        ``StoreUnreachable``."""
        ...

    async def close(self) -> None: ...

    async def skew(self) -> float:
        """Seconds that the store's clock is ahead of this machine's: all who share a store go by
        its clock."""
        ...

    async def add(self, jobs: Sequence[Job], capacity: int) -> list[Job | RaylensError]:
        """For each job: itself, now stored; the one that is stored under its id, or under its key
        with its digest; ``Conflict`` for its key with another digest; ``QueueFull`` where
        ``capacity`` jobs wait."""
        ...

    async def get(self, job_id: str) -> Job | None: ...

    async def page(self, states: Collection[JobState], limit: int, before: str | None) -> list[Job]:
        """The newest jobs first, in any state where ``states`` is empty; those older than the id
        ``before``."""
        ...

    async def counts(self) -> dict[JobState, int]:
        """How many jobs are in each state; 0 where none is."""
        ...

    async def waiting(self, limit: int) -> int:
        """How many jobs are queued, counted up to ``limit``."""
        ...

    async def durations(self, limit: int) -> list[float]:
        """Seconds from start to end of the jobs that succeeded last."""
        ...

    async def claim(self, count: int, now: float, apply: Apply) -> list[Job]:
        """Applies to at most ``count`` jobs that are queued and due, or run under a lease that has
        ended, by rank.

        No two claims take the same job, from whatever process.
        """
        ...

    async def renew(self, fences: Mapping[str, int], until: float) -> set[str]:
        """Extends the leases of the jobs that still run under these fences, by id, and tells which
        do."""
        ...

    async def change(self, changes: Sequence[Change]) -> list[Job | RaylensError | None]:
        """What each change made of its job; None where there is no such job under that fence."""
        ...

    async def deliveries(self, job_id: str) -> list[Delivery]:
        """All of a job's, in the order of their numbers."""
        ...

    async def claim_deliveries(
        self, count: int, per_host: int, now: float, until: float, busy: Collection[str]
    ) -> list[Delivery]:
        """At most ``count`` that are pending and due, with a lease until ``until``: at most
        ``per_host`` to one host, and none to the hosts in ``busy``.

        Due ones to an endpoint that is gone become disabled instead.
        """
        ...

    async def settle_delivery(
        self, delivery: Delivery, slow_until: float | None, gone: bool
    ) -> bool:
        """Stores how an attempt went, under its fence. ``slow_until`` holds all else to the same
        URL until then; ``gone`` disables it, for this and all later deliveries. False where another
        has claimed it meanwhile."""
        ...

    async def redeliver(self, job_id: str, number: int, now: float) -> Delivery | None:
        """Makes a delivery pending again, from its first attempt, and its endpoint no longer gone."""
        ...

    async def purge(self, before: float, limit: int) -> int:
        """Removes at most ``limit`` jobs that ended before then and have no delivery pending; how
        many."""
        ...

    async def touch_blobs(self, digests: Collection[str], now: float) -> None:
        """Notes that these blobs are about to be written and referred to."""
        ...

    async def collect_blobs(self, before: float, limit: int, remove: Callable[[str], None]) -> int:
        """Calls ``remove`` for at most ``limit`` blobs that no job refers to and that were last
        touched before then, while nobody can touch them; how many."""
        ...


def admit(job: Job, known: Job | None, waiting: int, capacity: int) -> Job | RaylensError:
    """Whether a job may be added, where ``known`` has its id or its key already: the result of
    :meth:`JobStore.add`."""
    if known is not None:
        if known.id == job.id or known.digest == job.digest:
            return known
        return Conflict("Idempotency-Key: another request came under this key", "Idempotency-Key")
    if waiting >= capacity:
        return QueueFull(
            f"{waiting} jobs wait; the limit is {capacity}", "jobs.capacity", capacity, waiting
        )
    return job
