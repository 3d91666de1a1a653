"""The job queue: accepts jobs, runs them, and delivers webhooks, over one store."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import socket
import statistics
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any
from weakref import WeakValueDictionary

from raylens.core.client_limits import NO_LIMITS, ClientLimits
from raylens.core.config import JobsConfig
from raylens.core.errors import (
    InsufficientStorage,
    Overloaded,
    QueueFull,
    RaylensError,
    TooManyRequests,
    UnknownJob,
)
from raylens.jobs.blobs import BlobMissing, compute_digest
from raylens.jobs.changes import ChangeLog, Changes
from raylens.jobs.cleaner import Cleaner, log_errors
from raylens.jobs.clock import StoreClock
from raylens.jobs.dispatcher import Dispatcher, JobRunner
from raylens.jobs.files import StoredFile, UnknownFile, shift_file_times, unknown_file
from raylens.jobs.group_commit import GroupCommit
from raylens.jobs.job import (
    BULKY_FIELDS,
    Delivery,
    Job,
    JobState,
    Stats,
    new_id,
    shift_delivery_times,
    shift_times,
    unknown_job,
)
from raylens.jobs.metrics import JobMetrics
from raylens.jobs.picture_storage import PictureStorage
from raylens.jobs.ports import JobService
from raylens.jobs.progress import ChangeWriter
from raylens.jobs.rate_limit import RateLimit
from raylens.jobs.store import (
    MAX_DELIVERIES,
    Change,
    ComputeUpdate,
    JobQuery,
    JobStore,
    TypeFilter,
    check_share,
)
from raylens.jobs.transitions import JobUpdate, cancel, move_to_store_clock, requeue
from raylens.jobs.webhook_dispatcher import WebhookClient, WebhookDispatcher
from raylens.jobs.webhooks import make_delivery, make_event_delivery

logger = logging.getLogger(__name__)

STATE_PERIOD_S = 5.0
"""Seconds between updates of the jobs-by-state metric."""
STATS_SAMPLE = 1000
"""Number of recent jobs that the duration statistics cover."""
AVERAGE_WEIGHT = 1 / 20
"""Weight of the latest job in the moving average of durations."""
MAX_ADVISED_RETRY_AFTER_S = 60.0
"""Longest ``Retry-After`` of a full queue, in seconds."""
RETRY_AFTER_S = 5.0
"""``Retry-After`` for a request that the queue didn't answer in time, in seconds."""
MINUTE_S = 60.0
ACTIVE = (JobState.QUEUED, JobState.RUNNING)
MAX_WATCHES = 4096
"""The largest limit on jobs without an end."""
FILE_TTL_S = 30 * 86_400.0
"""How long an uploaded file is kept, in seconds."""
PART_BYTES = 4 * 2**20
"""Largest part of an uploaded file. A download is read part by part."""
PICTURE_BYTES = 64 * 2**20
"""Size of a large picture or video, for the time limit of its download."""
SLOWEST_BYTES_PER_S = 10 * 2**20
"""Bytes a second that a storage reads and writes at the least, for time limits."""


class JobQueue(JobService):
    """The queue of one process. :meth:`serve` does the background work.

    Several queues, in as many processes, may share one store. ``clock`` and ``pictures`` are shared
    with ``runner``.
    """

    def __init__(
        self,
        store: JobStore,
        pictures: PictureStorage,
        runner: JobRunner,
        webhook_client: WebhookClient,
        secrets: Sequence[str],
        config: JobsConfig,
        clock: StoreClock,
        metrics: JobMetrics | None = None,
        limits_of: Callable[[str], ClientLimits] = lambda client: NO_LIMITS,
    ) -> None:
        """``limits_of`` returns the limits of a client."""
        self._store = store
        self._config = config
        self._metrics = metrics or JobMetrics()
        self._clock = clock
        self._runner = runner
        self._pictures = pictures
        self._cleaner = Cleaner(store, pictures.blobs, config, clock)
        self._add_writer: GroupCommit[Job, Job | RaylensError] = GroupCommit(
            lambda jobs: store.add(jobs, config.capacity, self._shares(jobs))
        )
        self._limits_of = limits_of
        self._being_stored: defaultdict[str, list[Mapping[str, bytes]]] = defaultdict(list)
        """What is just being stored for each client whose bytes are limited."""
        self._checks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """Held while what a client stores is compared with its limit."""
        self._change_writer: ChangeWriter = GroupCommit(store.change)
        self._change_log = ChangeLog()
        self._redeliveries = RateLimit(config.webhooks.redeliveries_per_minute, MINUTE_S)
        self._average_duration_s = 1.0  # a first guess
        owner = f"{socket.gethostname()[:32]}:{os.getpid()}:{uuid.uuid4().hex[:8]}"

        def make_dispatcher(types: TypeFilter, limit: Callable[[], int]) -> Dispatcher:
            return Dispatcher(
                store,
                self._change_writer,
                runner,
                config,
                types,
                limit,
                owner,
                self._clock,
                self._with_deliveries,
                self._make_event_delivery,
                self._on_change,
                self._metrics,
            )

        # A watch runs until somebody stops it. It must not take a place from jobs that end.
        self._endless = endless = runner.endless_types
        self._dispatchers = (
            make_dispatcher(TypeFilter(endless), lambda: config.workers),
            make_dispatcher(TypeFilter(endless, False), lambda: config.watches.max_running),
        )
        self._counting_watches = asyncio.Lock()
        self._handing_over: asyncio.Task[None] | None = None
        """Hands over the watches."""
        self._webhook_dispatcher = WebhookDispatcher(
            store, webhook_client, secrets, config.webhooks, self._clock.now, self._metrics
        )

    async def open(self) -> None:
        """Open the store.

        Raises ``QueueStartupError``, or ``StoreUnavailable`` if a retry may succeed.
        """
        await self._store.open()
        self._clock.set(await self._store.read_clock())

    async def serve(self) -> None:
        """Run jobs, deliver webhooks, clean up and record metrics until canceled."""
        async with asyncio.TaskGroup() as group:
            for dispatcher in self._dispatchers:
                group.create_task(dispatcher.serve())
            group.create_task(self._webhook_dispatcher.serve())
            group.create_task(self._cleaner.serve())
            group.create_task(self._record_state_periodically())

    async def close(self) -> None:
        await self._store.close()

    def drain(self) -> int:
        """Run no further jobs, and end the watches here, so that other processes go on with them.

        Return how many jobs run.
        """
        self.pause()
        if self._handing_over is None:
            _, watches = self._dispatchers
            self._handing_over = asyncio.create_task(watches.hand_over())
        return self.running

    @property
    def running(self) -> int:
        """Jobs that this process runs. A claim on its way counts as one."""
        return sum(dispatcher.running for dispatcher in self._dispatchers)

    def pause(self, seconds: float = math.inf) -> None:
        """Run no further job for a time; everything else goes on."""
        for dispatcher in self._dispatchers:
            dispatcher.pause(seconds)

    def wake(self) -> None:
        """Look for jobs soon, which another process may have added."""
        for dispatcher in self._dispatchers:
            dispatcher.wake()

    async def hand_over(self) -> None:
        """Stop the jobs that run here, and let other processes begin them at once.

        :meth:`pause` it before. Returns when that is stored.
        """
        await asyncio.gather(*(dispatcher.hand_over() for dispatcher in self._dispatchers))

    async def submit(self, job: Job, pictures: Mapping[str, bytes]) -> Job:
        async with self._time_limit():
            job = move_to_store_clock(job, self._clock.now())
            try:
                async with self._place_for(job), self._room_for(job.client, pictures):
                    await self._prepare(job.client, pictures)
                    result = await self._add_writer.submit(job)
            except (TooManyRequests, InsufficientStorage) as error:
                result = await self._find_first(job) or error
        if isinstance(result, RaylensError):
            raise self._with_retry_after(result)
        self._change_log.append(result.id, result.owner)
        self._dispatcher_of(job).wake()
        return self._for_callers(result)

    def _shares(self, jobs: Sequence[Job]) -> dict[str, int]:
        """Return how many jobs each client may have in the queue, if that is limited."""
        limits = {job.client: self._limits_of(job.client).max_queued_jobs for job in jobs}
        return {client: limit for client, limit in limits.items() if limit is not None}

    async def _check_share(self, client: str) -> None:
        """Raise ``QueueFull`` if a client may have no further job in the queue."""
        share = self._limits_of(client).max_queued_jobs
        if share is not None:
            refusal = check_share(await self._store.count_queued(client), share)
            if refusal is not None:
                raise self._with_retry_after(refusal)

    @asynccontextmanager
    async def _room_for(self, client: str, new: Mapping[str, bytes]) -> AsyncIterator[None]:
        """Keep what a client stores within its limit. ``new`` is stored within the context.

        Raises ``TooManyRequests``.
        """
        limit = self._limits_of(client).max_picture_bytes
        if limit is None or not new:
            yield
            return
        async with self._checks.setdefault(client, asyncio.Lock()):
            blobs = [*self._being_stored.get(client, ()), new]
            sizes = {digest: len(data) for each in blobs for digest, data in each.items()}
            size = sum(sizes.values()) + await self._store.client_bytes(client, sizes)
            if size > limit:
                message = (
                    f"your jobs and files would take {size} bytes; your limit is {int(limit)} bytes"
                )
                raise TooManyRequests(message, "max_picture_bytes", int(limit), size, RETRY_AFTER_S)
            self._being_stored[client].append(new)
        try:
            yield
        finally:
            self._being_stored[client].remove(new)
            if not self._being_stored[client]:
                del self._being_stored[client]

    @asynccontextmanager
    async def _place_for(self, job: Job) -> AsyncIterator[None]:
        """Keep the jobs without an end within their limit. Raises ``QueueFull``."""
        if job.type not in self._endless:
            yield
            return
        async with self._counting_watches:
            query = JobQuery(MAX_WATCHES, ACTIVE, job.type, bulky_fields=())
            active = [each for each in await self._store.list_jobs(query) if each.id != job.id]
            own = [each for each in active if each.client == job.client]
            share = self._limits_of(job.client).max_sessions
            limit = self._config.watches.max_running
            if share is not None and len(own) >= share:
                message = f"{len(own)} of your watches run; your limit is {share}"
                raise QueueFull(message, "max_sessions", share, len(own))
            if len(active) >= limit:
                message = (
                    f"{len(active)} watches run; the limit is {limit} (jobs.watches.max_running)"
                )
                raise QueueFull(message, "jobs.watches.max_running", limit, len(active))
            yield

    async def _prepare(self, client: str, pictures: Mapping[str, bytes]) -> None:
        """Store the pictures of a submission. Raises ``QueueFull`` and ``InsufficientStorage``."""
        await self._pictures.check_free_space()
        if pictures:
            await self._check_capacity()
            await self._check_share(client)
            await self._pictures.store(pictures)

    async def _find_first(self, job: Job) -> Job | RaylensError | None:
        """Return the stored job if this submission repeats its own, and ``Conflict`` if it reuses
        the idempotency key of another."""
        (result,) = await self._store.add([job], 0)  # with a capacity of 0, it adds nothing
        return None if isinstance(result, QueueFull) else result

    async def find_submitted(self, idempotency_key: str, digest: str) -> Job | None:
        job = Job(
            id=new_id(),
            type="",
            input={},
            created_at=0.0,
            deadline=0.0,
            max_attempts=1,
            rank=0.0,
            idempotency_key=idempotency_key,
            digest=digest,
        )
        async with self._time_limit():
            result = await self._find_first(job)
        if isinstance(result, RaylensError):
            raise result
        return None if result is None else self._for_callers(result)

    async def submit_all(
        self, submissions: Sequence[tuple[Job, Mapping[str, bytes]]]
    ) -> list[Job | RaylensError]:
        """Submit several jobs with their pictures, and return a job or an error for each."""

        async def submit(job: Job, pictures: Mapping[str, bytes]) -> Job | RaylensError:
            try:
                return await self.submit(job, pictures)
            except RaylensError as error:
                return error
            except Exception:
                logger.exception("job %s: storing the job failed", job.id)
                message = "storing the job failed; see the server's log"
                return Overloaded(message, retry_after=RETRY_AFTER_S)

        return list(await asyncio.gather(*(submit(job, pictures) for job, pictures in submissions)))

    async def get(self, job_id: str) -> Job:
        return _require((await self.get_many([job_id])).get(job_id), job_id)

    async def get_many(
        self, job_ids: Collection[str], bulky_fields: Collection[str] = BULKY_FIELDS
    ) -> dict[str, Job]:
        async with self._time_limit():
            jobs = await self._store.get(job_ids, bulky_fields)
        return {job_id: self._for_callers(job) for job_id, job in jobs.items()}

    async def list_jobs(self, query: JobQuery) -> list[Job]:
        async with self._time_limit():
            jobs = await self._store.list_jobs(query)
        return [self._for_callers(job) for job in jobs]

    async def read_picture(self, job_id: str, digest: str) -> bytes:
        async with self._time_limit(PICTURE_BYTES):
            job = _require((await self._store.get([job_id], ())).get(job_id), job_id)
            if digest in job.blobs:
                with suppress(BlobMissing):
                    return await self._pictures.blobs.get_async(digest)
        raise UnknownFile(f"digest: job {job_id} has no such picture, or no longer", "digest")

    async def cancel(self, job_id: str) -> Job:
        canceled_now = False

        def update(job: Job) -> JobUpdate:
            nonlocal canceled_now
            canceled_now = job.state is not JobState.CANCELED
            if not canceled_now:  # the call was repeated
                return JobUpdate(job)
            canceled = self._with_deliveries(job, cancel(job, self._clock.now()))
            output, events = self._runner.last_events(job)
            told = (self._make_event_delivery(job, *event) for event in events)
            deliveries = (*filter(None, told), *canceled.deliveries)
            return JobUpdate(replace(canceled.job, output=output), deliveries)

        job = await self._change(job_id, update)
        self._dispatcher_of(job).stop(job_id)
        if canceled_now:
            self._metrics.record_end(job.type, job.state, job.duration_s)
        return job

    async def remove(self, job_id: str) -> Job:
        async with self._time_limit():
            job = _require(await self._store.remove(job_id), job_id)
        self._on_change(job)
        self._cleaner.wake()
        return self._for_callers(job)

    async def requeue(self, job_id: str) -> Job:
        async with self._time_limit():
            await self._check_capacity()
            job = (await self._store.get([job_id], ())).get(job_id)
            await self._check_share(_require(job, job_id).client)

        def update(job: Job) -> JobUpdate:
            timeout_s = self._runner.timeout(job)
            is_endless = job.type in self._endless
            max_attempts = job.max_attempts if is_endless else self._config.max_attempts
            return JobUpdate(requeue(job, self._clock.now(), max_attempts, timeout_s))

        async with self._place_for(_require(job, job_id)):
            return await self._change(job_id, update)

    async def stats(self) -> Stats:
        async with self._time_limit():
            counts, durations = await asyncio.gather(
                self._store.count_by_state(),
                self._store.recent_durations(STATS_SAMPLE, TypeFilter(self._endless)),
            )
        mean = statistics.fmean(durations) if durations else None
        p95 = sorted(durations)[(len(durations) * 95 - 1) // 100] if durations else None
        return Stats(counts, self._config.capacity, self._config.workers, mean, p95)

    async def wait_for_changes(self, cursor: str | None, timeout_s: float) -> Changes:
        return await self._change_log.wait(cursor, timeout_s)

    async def deliveries(
        self, job_id: str, limit: int = MAX_DELIVERIES, before: int | None = None
    ) -> list[Delivery]:
        await self.get(job_id)
        async with self._time_limit():
            deliveries = await self._store.deliveries(job_id, limit, before)
        return [shift_delivery_times(each, self._clock.wall_offset) for each in deliveries]

    async def redeliver(self, job_id: str, number: int) -> Delivery:
        last = await self.deliveries(job_id, 1, number + 1)
        delivery = None
        if any(each.number == number for each in last):
            self._redeliveries.check(job_id, self._clock.now(), "this job's deliveries")
            async with self._time_limit():
                delivery = await self._store.redeliver(job_id, number, self._clock.now())
        if delivery is None:
            raise UnknownJob(f"delivery: job {job_id} has no delivery {number}", "delivery")
        self._webhook_dispatcher.wake()
        return shift_delivery_times(delivery, self._clock.wall_offset)

    async def add_file(self, file: StoredFile, data: bytes) -> StoredFile:
        async with self._time_limit(len(data)):
            await self._pictures.check_free_space()
            now = self._clock.now()
            stored = replace(file, created_at=now, expires_at=now + FILE_TTL_S)
            parts = [data[start : start + PART_BYTES] for start in range(0, len(data), PART_BYTES)]
            digests = [await asyncio.to_thread(compute_digest, part) for part in parts]
            by_digest = dict(zip(digests, parts, strict=True))
            async with self._room_for(file.client, by_digest):
                await self._pictures.store(by_digest)
                await self._store.add_file(stored, digests)
        return self._file_for_callers(stored)

    async def get_file(self, file_id: str) -> StoredFile:
        async with self._time_limit():
            file = await self._store.get_file(file_id)
        return self._file_for_callers(_require_file(file, file_id))

    async def keep_file(self, file_id: str, seconds: float) -> StoredFile:
        async with self._time_limit():
            file = await self._store.keep_file(file_id, self._clock.now() + seconds)
        return self._file_for_callers(_require_file(file, file_id))

    async def read_file_part(self, file_id: str, number: int) -> bytes | None:
        async with self._time_limit(PART_BYTES):
            digest = await self._store.file_part(file_id, number)
            if digest is None:
                return None
            try:
                return await self._pictures.blobs.get_async(digest)
            except BlobMissing:
                message = f"file_id: a part of file {file_id} is missing"
                raise UnknownFile(message, "file_id") from None

    async def list_files(
        self,
        purpose: str | None,
        limit: int,
        after_id: str | None,
        newest_first: bool,
        owner: str | None = None,
    ) -> list[StoredFile]:
        async with self._time_limit():
            files = await self._store.list_files(purpose, limit, after_id, newest_first, owner)
        return [self._file_for_callers(file) for file in files]

    async def remove_file(self, file_id: str) -> None:
        async with self._time_limit():
            if not await self._store.remove_file(file_id):
                _require_file(None, file_id)
        self._cleaner.wake()

    def _file_for_callers(self, file: StoredFile) -> StoredFile:
        return shift_file_times(file, self._clock.wall_offset)

    @asynccontextmanager
    async def _time_limit(self, size: int = 0) -> AsyncIterator[None]:
        """Raise ``Overloaded`` if the work takes longer than a caller waits for it.

        Work on many bytes may take longer: ``size`` is their number.
        """
        limit_s = self._config.queue_timeout_s + size / SLOWEST_BYTES_PER_S
        try:
            async with asyncio.timeout(limit_s):
                yield
        except TimeoutError:
            message = f"the job queue didn't answer within {limit_s:g} s (jobs.queue_timeout_s)"
            raise Overloaded(message, None, limit_s, None, RETRY_AFTER_S) from None

    def _with_deliveries(self, before: Job, job: Job) -> JobUpdate:
        """Pair a job in a new state with the webhook delivery for that state, if there is one.

        That of ``job.started`` is for the first attempt only, or the first one after a requeue.
        """
        is_again = before.started_at is not None
        if job.state is JobState.RUNNING and (is_again or not self._config.webhooks.started):
            return JobUpdate(job)
        base_url = self._config.webhooks.public_url.rstrip("/")
        offset = self._clock.wall_offset
        # What the endpoint reads is on the wall clock.
        delivery = make_delivery(
            shift_times(job, offset),
            self._clock.now() + offset,
            f"{base_url}/api/v1/jobs/{job.id}",
        )
        return JobUpdate(job, (shift_delivery_times(delivery, -offset),) if delivery else ())

    def _make_event_delivery(
        self, job: Job, event: str, data: Mapping[str, Any]
    ) -> Delivery | None:
        offset = self._clock.wall_offset
        delivery = make_event_delivery(job, event, data, self._clock.now() + offset)
        return None if delivery is None else shift_delivery_times(delivery, -offset)

    def _dispatcher_of(self, job: Job) -> Dispatcher:
        return self._dispatchers[job.type in self._endless]

    def _for_callers(self, job: Job) -> Job:
        """Return the job with its times on the wall clock."""
        return shift_times(job, self._clock.wall_offset)

    def _on_change(self, job: Job) -> None:
        self._change_log.append(job.id, job.owner)
        if job.webhook is not None:
            self._webhook_dispatcher.wake()
        is_endless = job.type in self._endless
        if job.state is JobState.SUCCEEDED and job.duration_s is not None and not is_endless:
            change = job.duration_s - self._average_duration_s
            self._average_duration_s += AVERAGE_WEIGHT * change

    async def _change(self, job_id: str, update: ComputeUpdate) -> Job:
        """Change a job at a user's request, whichever process runs it."""
        async with self._time_limit():
            result = await self._change_writer.submit(Change(job_id, update))
        if isinstance(result, RaylensError):
            raise result
        job = _require(result, job_id)
        self._on_change(job)
        self._dispatcher_of(job).wake()
        return self._for_callers(job)

    async def _check_capacity(self) -> None:
        """Raise ``QueueFull`` if the queue is full."""
        capacity = self._config.capacity
        if (await self._store.count_by_state())[JobState.QUEUED] >= capacity:
            message = f"{capacity} jobs are queued; the limit is {capacity}"
            raise self._with_retry_after(QueueFull(message, "jobs.capacity"))

    def _with_retry_after(self, error: RaylensError) -> RaylensError:
        """Add a ``Retry-After`` to ``QueueFull``: the estimated time until the next job starts."""
        if not isinstance(error, QueueFull):
            return error
        estimate = self._average_duration_s / self._config.workers
        retry_after = min(MAX_ADVISED_RETRY_AFTER_S, max(1.0, estimate))
        return QueueFull(error.message, error.field, error.limit, error.actual, retry_after)

    async def _record_state_periodically(self) -> None:
        while True:
            is_available = False
            with log_errors("counting the jobs failed"):
                await self._record_state()
                is_available = True
            self._metrics.record_store(is_available)
            with log_errors("looking at the free space of the disk failed"):
                await self._record_free_space()
            await asyncio.sleep(STATE_PERIOD_S)

    async def _record_state(self) -> None:
        self._metrics.record_counts(await self._store.count_by_state())
        due = await self._store.next_due()
        self._metrics.record_wait(max(0.0, self._clock.now() - due.claim))

    async def _record_free_space(self) -> None:
        free_bytes = await self._pictures.free_bytes()
        if math.isfinite(free_bytes):
            self._metrics.record_free_bytes(free_bytes, self._config.min_free_bytes)


def _require_file(file: StoredFile | None, file_id: str) -> StoredFile:
    if file is None:
        raise unknown_file(file_id)
    return file


def _require(job: Job | None, job_id: str) -> Job:
    if job is None:
        raise unknown_job(job_id)
    return job
