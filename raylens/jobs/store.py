"""The interface of a job store.

A store makes no decisions about the states of jobs: it selects jobs, and atomically applies updates
that its callers compute. It does disable and reset deliveries itself. ``tests/contract/`` runs one
suite of tests over every implementation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

from raylens.core.errors import (
    Conflict,
    InsufficientStorage,
    Overloaded,
    QueueFull,
    RaylensError,
)
from raylens.jobs.files import StoredFile
from raylens.jobs.job import BULKY_FIELDS, Delivery, Job, JobState
from raylens.jobs.transitions import JobUpdate

STORAGE_RETRY_AFTER_S = 60.0
"""``Retry-After`` if there is no room for a job's pictures, in seconds."""


class QueueStartupError(Exception):
    """The job queue can't start.

    A setting is invalid, or the store or blob storage can't be opened or can't guarantee
    durability. The message names the setting.
    """


class StoreUnavailable(Overloaded):
    """The store can't be read or written at the moment."""

    code = "store_unavailable"


ComputeUpdate = Callable[[Job], JobUpdate]
"""Computes a stored job's update. It must be safe to call again."""


@dataclass(frozen=True)
class Change:
    """A change to one stored job.

    With a ``fence``, ``update`` is applied only if the job is running and its fence is still this
    one. If ``update`` raises an error of :mod:`raylens.core.errors`, the job stays as it is, and
    the error is the result of the change.
    """

    id: str
    update: ComputeUpdate
    fence: int | None = None


@dataclass(frozen=True)
class NextDue:
    """When a store has something to do next; infinity if nothing is known."""

    claim: float = math.inf
    """A job can be claimed."""
    expiry: float = math.inf
    """The deadline of a queued job passes."""


@dataclass(frozen=True)
class JobQuery:
    """Which jobs to list, newest first."""

    limit: int
    states: Collection[JobState] = ()
    """An empty collection means any state."""
    type: str | None = None
    before_id: str | None = None
    """Only jobs older than this one."""
    owner: str | None = None
    """None means anybody's."""
    bulky_fields: Collection[str] = BULKY_FIELDS
    """Which of :data:`BULKY_FIELDS` to read. The others are empty."""


@dataclass(frozen=True)
class TypeFilter:
    """A selection of job types: those of ``names``, or all others."""

    names: frozenset[str] = frozenset()
    selects_others: bool = True

    def selects(self, job_type: str) -> bool:
        return (job_type in self.names) is not self.selects_others


ANY_TYPE = TypeFilter()
MAX_DELIVERIES = 100
"""Deliveries in one answer."""
NO_SHARES: Mapping[str, int] = MappingProxyType({})


class JobStore(Protocol):
    """Jobs, their deliveries, and their references to blobs.

    Each method is one transaction, and its effects are durable when it returns. Times are in
    seconds since the epoch, on the store's clock. Every method raises ``StoreUnavailable`` or
    ``InsufficientStorage`` if the store fails for a reason that may pass.
    """

    async def open(self) -> None:
        """Connect, and migrate the schema to the latest version.

        Raises ``QueueStartupError``, or ``StoreUnavailable`` if a retry may succeed.
        """
        ...

    async def close(self) -> None: ...

    async def read_clock(self) -> float:
        """Return the time of the store's clock.

        All processes that share a store use its clock. It follows this machine's monotonic clock,
        or the database server's, so no step of this machine's wall clock moves it.
        """
        ...

    async def add(
        self, new_jobs: Sequence[Job], capacity: int, shares: Mapping[str, int] = NO_SHARES
    ) -> list[Job | RaylensError]:
        """Add jobs, and return a result for each.

        - The job itself: it is now stored.
        - A stored job: it has the same id, or the same idempotency key and digest.
        - ``Conflict``: a stored job has the same idempotency key and another digest.
        - ``QueueFull``: ``capacity`` jobs are queued, or those of ``shares`` of the job's client.
        """
        ...

    async def get(
        self, job_ids: Collection[str], bulky_fields: Collection[str] = BULKY_FIELDS
    ) -> dict[str, Job]:
        """Return the jobs that exist, by id, with these of :data:`BULKY_FIELDS`."""
        ...

    async def list_jobs(self, query: JobQuery) -> list[Job]: ...

    async def count_by_state(self) -> dict[JobState, int]:
        """Return the number of jobs in every state, zeros included.

        It takes no longer if there are many jobs.
        """
        ...

    async def check_counts(self) -> None:
        """Correct the counts if they are wrong.

        A release of raylens that doesn't keep them may have used the store during an update.
        """
        ...

    async def recent_durations(self, limit: int, types: TypeFilter = ANY_TYPE) -> list[float]:
        """Return the durations, in seconds, of the last ``limit`` jobs that succeeded, of some
        types."""
        ...

    async def claim(
        self,
        count: int,
        now: float,
        update: ComputeUpdate,
        held_models: Collection[str] = (),
        types: TypeFilter = ANY_TYPE,
    ) -> list[Job]:
        """Apply ``update`` to at most ``count`` claimable jobs of some types, lowest rank first.

        Return the updated jobs. A job is claimable if it is queued, due and not of a model in
        ``held_models``, or if it is running and its lease has expired. Concurrent claims never
        return the same job, even from different processes.
        """
        ...

    async def expire(self, limit: int, now: float, update: ComputeUpdate) -> list[Job]:
        """Apply ``update`` to at most ``limit`` jobs whose deadline has passed. They are queued, or
        their lease has expired. Return the updated jobs.
        """
        ...

    async def next_due(
        self,
        held_models: Collection[str] = (),
        with_claims: bool = True,
        types: TypeFilter = ANY_TYPE,
    ) -> NextDue:
        """Return when :meth:`claim` of some types and :meth:`expire` find something next.

        Without ``with_claims``, ``claim`` stays unknown, which is faster if many jobs are queued.
        """
        ...

    async def renew(self, fences: Mapping[str, int], until: float) -> set[str]:
        """Extend leases to ``until``.

        ``fences`` maps job ids to fences. A lease is extended only if the job is running with that
        fence. Return the ids of those jobs.
        """
        ...

    async def change(self, changes: Sequence[Change]) -> list[Job | RaylensError | None]:
        """Apply changes in order, and return the changed job or the error for each.

        A result is None if the job doesn't exist, or if the change has a fence and the job isn't
        running with it.
        """
        ...

    async def remove(self, job_id: str) -> Job | None:
        """Delete a job that has ended, its deliveries and its references to blobs.

        Return the job, or None if it doesn't exist. Raises ``Conflict`` if it hasn't ended.
        """
        ...

    async def deliveries(
        self, job_id: str, limit: int = MAX_DELIVERIES, before: int | None = None
    ) -> list[Delivery]:
        """Return the last deliveries of a job, of those with numbers below ``before``, ordered by
        number."""
        ...

    async def claim_deliveries(
        self, count: int, per_host: int, now: float, until: float, busy_hosts: Collection[str]
    ) -> list[Delivery]:
        """Claim at most ``count`` due deliveries under a lease that ends at ``until``.

        At most ``per_host`` go to one host, and none to a host in ``busy_hosts``. A due delivery to
        an endpoint that has answered 410 becomes disabled instead.
        """
        ...

    async def next_delivery_due(self, busy_hosts: Collection[str]) -> float:
        """Return when a delivery without a lease is due next; infinity if there is none."""
        ...

    async def settle_delivery(
        self, delivery: Delivery, pause_until: float | None, is_gone: bool
    ) -> bool:
        """Store a delivery after an attempt. Return False if its fence is no longer current.

        ``pause_until`` postpones every pending delivery to the same URL until then. ``is_gone``
        disables the URL until :meth:`redeliver` enables it again.
        """
        ...

    async def redeliver(self, job_id: str, number: int, now: float) -> Delivery | None:
        """Reset a delivery to pending with no attempts made, and re-enable its URL.

        Return None if the job has no delivery of this number.
        """
        ...

    async def purge(self, ended_before: float, limit: int) -> int:
        """Delete at most ``limit`` jobs that ended before ``ended_before``, and return how many.

        Jobs with a pending delivery are kept.
        """
        ...

    async def purge_deliveries(self, due_before: float, limit: int) -> int:
        """Delete at most ``limit`` deliveries that are not pending, and return how many.

        They are those whose last attempt was due before ``due_before``. The last one of each job is
        kept.
        """
        ...

    async def drop_pictures(self, ended_before: float, limit: int) -> int:
        """Delete the references of failed and canceled jobs to their pictures, and return how many
        jobs it was, at most ``limit``.

        They are the jobs that ended before ``ended_before``; they become ``pictures_removed``.
        """
        ...

    async def touch_blobs(self, sizes: Mapping[str, int], now: float, max_bytes: float) -> set[str]:
        """Register blobs with their sizes in bytes, and set their last-touched time to ``now``.

        :meth:`mark_unused_blobs` spares recently touched ones, which leaves time to add the job
        that refers to them. Return the digests of blobs that are being removed; they are left as
        they are. Raises ``InsufficientStorage`` if all blobs together would exceed ``max_bytes``.
        """
        ...

    async def mark_unused_blobs(
        self, touched_before: float, now: float, until: float, limit: int
    ) -> list[str]:
        """Mark at most ``limit`` unused blobs as being removed until ``until``. Return their
        digests.

        A blob is unused if no job and no file refers to it, and if it was last touched before
        ``touched_before``. It can't be touched while it is marked. The caller removes the blobs
        before ``until``, and then calls :meth:`forget_blobs` or :meth:`unmark_blobs`.
        """
        ...

    async def forget_blobs(self, digests: Collection[str]) -> None:
        """Delete the records of blobs that have been removed."""
        ...

    async def renew_marks(self, digests: Collection[str], until: float) -> None:
        """Let the marks of blobs that are being removed last until ``until``."""
        ...

    async def unmark_blobs(self, digests: Collection[str], touched_at: float) -> None:
        """Take back the marks of blobs that were not removed, as if they were last touched at
        ``touched_at``."""
        ...

    async def add_file(self, file: StoredFile, digests: Sequence[str]) -> None:
        """Add a file with its parts in order, unless it exists already."""
        ...

    async def append_to_file(
        self,
        file: StoredFile,
        digest: str,
        size: int,
        job_id: str,
        fence: int,
        replaces: str | None = None,
    ) -> None:
        """Append a part to a file, which grows by ``size`` bytes and is added if it doesn't exist.

        With ``replaces``, the part replaces the last one, which must have this digest. The file
        expires as ``file`` says.

        Raises ``Conflict`` unless the job is running with this fence.
        """
        ...

    async def get_file(self, file_id: str) -> StoredFile | None: ...

    async def keep_file(self, file_id: str, until: float) -> StoredFile | None:
        """Let a file expire at ``until`` at the earliest. Return it, if it exists."""
        ...

    async def file_part(self, file_id: str, number: int) -> str | None:
        """Return the digest of a part, counted from 0; None if there is no such part."""
        ...

    async def file_parts(self, file_id: str) -> list[str]:
        """Return the digests of a file's parts in order; none if the file doesn't exist."""
        ...

    async def list_files(
        self,
        purpose: str | None,
        limit: int,
        after_id: str | None,
        newest_first: bool,
        owner: str | None = None,
    ) -> list[StoredFile]:
        """Return at most ``limit`` files in order of their ids.

        ``purpose`` and ``owner`` may be None for any. With an ``after_id``, only files behind that
        one in the order are returned.
        """
        ...

    async def count_queued(self, client: str) -> int:
        """Return how many of a client's jobs are queued."""
        ...

    async def client_bytes(self, client: str, besides: Collection[str]) -> int:
        """Return the bytes of the blobs that a client's jobs and files refer to, without those of
        which ``besides`` has the digests.

        It takes longer the more jobs and files the client has.
        """
        ...

    async def remove_file(self, file_id: str) -> bool:
        """Delete a file and its references to blobs. Return whether it existed."""
        ...

    async def purge_files(self, now: float, limit: int) -> int:
        """Delete at most ``limit`` files that have expired, and return how many."""
        ...


def admit(
    job: Job,
    existing: Job | None,
    queued: int,
    capacity: int,
    own_queued: int = 0,
    share: int | None = None,
) -> Job | RaylensError:
    """Return the result of :meth:`JobStore.add` for one job.

    ``existing`` is a stored job with the same id or the same idempotency key. ``own_queued`` of the
    ``queued`` jobs are the client's, which may have ``share``.
    """
    if existing is not None:
        if existing.id == job.id or existing.digest == job.digest:
            return existing
        message = "Idempotency-Key: already used for a different request"
        return Conflict(message, "Idempotency-Key")
    if queued >= capacity:
        message = f"{queued} jobs are queued; the limit is {capacity}"
        return QueueFull(message, "jobs.capacity", capacity, queued)
    return (share is not None and check_share(own_queued, share)) or job


def check_share(own_queued: int, share: int) -> QueueFull | None:
    """Return the error if a client has as many jobs in the queue as it may."""
    if own_queued < share:
        return None
    message = f"your limit of {share} queued jobs is reached"
    return QueueFull(message, "max_queued_jobs", share, own_queued)


def check_quota(stored_bytes: int, new_bytes: int, max_bytes: float) -> None:
    """Raise ``InsufficientStorage`` if all blobs together would exceed ``max_bytes``."""
    if stored_bytes + new_bytes > max_bytes:
        raise InsufficientStorage(
            f"the pictures and files of jobs take {stored_bytes} bytes, and {new_bytes} more were"
            f" sent; the limit is {max_bytes:.0f} bytes (jobs.max_picture_bytes)",
            "jobs.max_picture_bytes",
            max_bytes,
            stored_bytes + new_bytes,
            STORAGE_RETRY_AFTER_S,
        )
