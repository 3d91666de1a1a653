"""The job queue: accepts jobs, runs them, and delivers webhooks, over one store."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import statistics
import time
import uuid
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from raylens.core.config import JobsConfig
from raylens.core.errors import Conflict, Overloaded, QueueFull, RaylensError, UnknownJob
from raylens.jobs.blobs import BlobStorage
from raylens.jobs.dispatcher import ChangeWriter, Dispatcher, SaveProgress
from raylens.jobs.group_commit import GroupCommit
from raylens.jobs.inference import InferenceClient
from raylens.jobs.job import Delivery, Job, JobState, Stats
from raylens.jobs.llm import make_llm
from raylens.jobs.metrics import JobMetrics
from raylens.jobs.ports import JobService
from raylens.jobs.store import Change, ComputeUpdate, JobStore
from raylens.jobs.transitions import JobUpdate, cancel, move_to_store_clock, requeue
from raylens.jobs.types.base import JobContext, JobType
from raylens.jobs.webhook_dispatcher import WebhookClient, WebhookDispatcher
from raylens.jobs.webhooks import STARTED, make_delivery

logger = logging.getLogger(__name__)

CLEANUP_PERIOD_S = 60.0
COUNTS_PERIOD_S = 1.0
"""Seconds between updates of the jobs-by-state metric."""
PURGE_BATCH = 200
"""Maximum number of jobs deleted per transaction."""
BLOB_REMOVAL_BATCH = 10
"""Maximum number of blobs removed per transaction.

It is small, because each removal may be a call to remote storage within the transaction.
"""
BLOB_GRACE_S = 3600.0
"""How long an unreferenced blob is kept after its last touch, in seconds.

This covers the time between writing a blob and adding its job.
"""
WATCH_POLL_S = 1.0
"""Seconds between reads of a watched job. Another process may be running it."""
STATS_SAMPLE = 1000
"""Number of recent jobs that the duration statistics cover."""
AVERAGE_WEIGHT = 1 / 20
"""Weight of the latest job in the moving average of durations."""
MAX_ADVISED_RETRY_AFTER_S = 60.0
"""Longest ``Retry-After`` of a full queue, in seconds."""
SUBMIT_RETRY_AFTER_S = 5.0
"""``Retry-After`` for a job that couldn't be stored, in seconds."""


class JobQueue(JobService):
    """The queue of one process. :meth:`serve` does the background work.

    Several queues, in as many processes, may share one store.
    """

    def __init__(
        self,
        store: JobStore,
        blobs: BlobStorage,
        job_types: Mapping[str, JobType],
        inference: InferenceClient,
        webhook_client: WebhookClient,
        secrets: Sequence[str],
        config: JobsConfig,
        metrics: JobMetrics | None = None,
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._job_types = job_types
        self._inference = inference
        self._llm = make_llm(config.llm, inference)
        self._config = config
        self._metrics = metrics or JobMetrics()
        self._clock_skew = 0.0
        self._add_writer: GroupCommit[Job, Job | RaylensError] = GroupCommit(
            lambda jobs: store.add(jobs, config.capacity)
        )
        self._change_writer: ChangeWriter = GroupCommit(store.change)
        self._watchers: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._average_duration_s = 1.0  # a first guess
        self._dispatcher = Dispatcher(
            store,
            self._change_writer,
            self._run_job,
            config,
            owner=f"{socket.gethostname()[:32]}:{os.getpid()}:{uuid.uuid4().hex[:8]}",
            clock=self.now,
            with_deliveries=self._with_deliveries,
            on_change=self._on_change,
            metrics=self._metrics,
        )
        self._webhook_dispatcher = WebhookDispatcher(
            store, webhook_client, secrets, config.webhooks, self.now, self._metrics
        )

    def now(self) -> float:
        """Return the time of the store's clock, in seconds since the epoch."""
        return time.time() + self._clock_skew

    async def open(self) -> None:
        """Open the store.

        Raises ``QueueStartupError``, or ``StoreUnreachable`` if a retry may succeed.
        """
        await self._store.open()
        self._clock_skew = await self._store.clock_skew()

    async def serve(self) -> None:
        """Run jobs, deliver webhooks, clean up and record metrics until canceled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._dispatcher.serve())
            group.create_task(self._webhook_dispatcher.serve())
            group.create_task(self._clean_up_periodically())
            group.create_task(self._record_counts_periodically())

    async def close(self) -> None:
        await self._store.close()

    async def submit(self, job: Job, pictures: Mapping[str, bytes]) -> Job:
        job = move_to_store_clock(job, self.now())
        if pictures:
            await self._check_capacity(job)
            await self._store.touch_blobs(pictures.keys(), self.now())
            await asyncio.gather(
                *(self._blobs.put_async(digest, data) for digest, data in pictures.items())
            )
        result = await self._add_writer.submit(job)
        if isinstance(result, RaylensError):
            raise self._with_retry_after(result)
        self._dispatcher.wake()
        return result

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
                return Overloaded(message, retry_after=SUBMIT_RETRY_AFTER_S)

        return list(await asyncio.gather(*(submit(job, pictures) for job, pictures in submissions)))

    async def get(self, job_id: str) -> Job:
        return _require(await self._store.get(job_id), job_id)

    async def list_jobs(
        self, states: Collection[JobState], limit: int, before_id: str | None
    ) -> list[Job]:
        return await self._store.list_jobs(states, limit, before_id)

    async def cancel(self, job_id: str) -> Job:
        def update(job: Job) -> JobUpdate:
            if job.state is JobState.CANCELED:  # the call was repeated
                return JobUpdate(job)
            return self._with_deliveries(cancel(job, self.now()))

        job = await self._change(job_id, update)
        self._dispatcher.stop(job_id)
        return job

    async def requeue(self, job_id: str) -> Job:
        await self._check_capacity(None)

        def update(job: Job) -> JobUpdate:
            config = self._config
            return JobUpdate(requeue(job, self.now(), config.max_attempts, config.timeout_s))

        return await self._change(job_id, update)

    async def stats(self) -> Stats:
        counts, durations = await asyncio.gather(
            self._store.count_by_state(), self._store.recent_durations(STATS_SAMPLE)
        )
        mean = statistics.fmean(durations) if durations else None
        p95 = sorted(durations)[(len(durations) * 95 - 1) // 100] if durations else None
        return Stats(counts, self._config.capacity, self._config.workers, mean, p95)

    async def watch(self, job_id: str, last_seen: Job | None, timeout_s: float) -> Job:
        end = time.monotonic() + timeout_s
        event = asyncio.Event()
        self._watchers[job_id].add(event)
        try:
            while True:
                event.clear()
                job = await self.get(job_id)
                remaining = end - time.monotonic()
                if last_seen is None or _differ(job, last_seen) or remaining <= 0:
                    return job
                with suppress(TimeoutError):
                    async with asyncio.timeout(min(remaining, WATCH_POLL_S)):
                        await event.wait()
        finally:
            self._watchers[job_id].discard(event)
            if not self._watchers[job_id]:
                del self._watchers[job_id]

    async def deliveries(self, job_id: str) -> list[Delivery]:
        await self.get(job_id)
        return await self._store.deliveries(job_id)

    async def redeliver(self, job_id: str, number: int) -> Delivery:
        await self.get(job_id)
        delivery = await self._store.redeliver(job_id, number, self.now())
        if delivery is None:
            raise UnknownJob(f"delivery: job {job_id} has no delivery {number}", "delivery")
        self._webhook_dispatcher.wake()
        return delivery

    async def _run_job(
        self, job: Job, attempt_deadline: float, save_progress: SaveProgress
    ) -> dict[str, Any]:
        """Run one attempt at a job, and return the job's output.

        ``attempt_deadline`` is in seconds since the epoch, on this machine's clock.
        """
        job_type = self._job_types.get(job.type)
        if job_type is None:
            # Overloaded, because that error is retryable: the package of this type may be
            # installed by the next attempt.
            raise Overloaded(f"job_type: {job.type!r} is not installed", "job_type")
        job_input = job_type.input_model.model_validate(job.input)
        context = JobContext(
            job,
            attempt_deadline,
            self._config,
            self._inference,
            self._blobs,
            self._llm,
            save_progress,
        )
        return await job_type.run(job_input, context)

    def _with_deliveries(self, job: Job) -> JobUpdate:
        """Pair a job in a new state with the webhook delivery for that state, if there is one."""
        if job.state is JobState.RUNNING and not self._config.webhooks.started:
            return JobUpdate(job)
        base_url = self._config.webhooks.public_url.rstrip("/")
        delivery = make_delivery(job, self.now(), f"{base_url}/api/v1/jobs/{job.id}")
        # job.started is sent for the first attempt only.
        if delivery is None or (delivery.event == STARTED and job.attempts > 1):
            return JobUpdate(job)
        return JobUpdate(job, (delivery,))

    def _on_change(self, job: Job) -> None:
        for event in self._watchers.get(job.id, ()):
            event.set()
        if job.webhook is not None:
            self._webhook_dispatcher.wake()
        if job.state is JobState.SUCCEEDED and job.duration_s is not None:
            change = job.duration_s - self._average_duration_s
            self._average_duration_s += AVERAGE_WEIGHT * change

    async def _change(self, job_id: str, update: ComputeUpdate) -> Job:
        """Change a job at a user's request, whichever process runs it."""
        result = await self._change_writer.submit(Change(job_id, update))
        if isinstance(result, RaylensError):
            raise result
        job = _require(result, job_id)
        self._on_change(job)
        self._dispatcher.wake()
        return job

    async def _check_capacity(self, job: Job | None) -> None:
        """Raise ``QueueFull`` if the queue is full, unless ``job`` is already stored.

        Raises ``Conflict`` if its idempotency key was used for a different request.
        """
        capacity = self._config.capacity
        if await self._store.count_queued(capacity) < capacity:
            return
        if job is not None:
            # With a capacity of 0, add() only looks the job up: it returns the stored job,
            # Conflict or QueueFull.
            (result,) = await self._store.add([job], 0)
            if isinstance(result, Conflict):
                raise result
            if isinstance(result, Job):
                return
        message = f"{capacity} jobs are queued; the limit is {capacity}"
        raise self._with_retry_after(QueueFull(message, "jobs.capacity"))

    def _with_retry_after(self, error: RaylensError) -> RaylensError:
        """Add a ``Retry-After`` to ``QueueFull``: the estimated time until the next job starts."""
        if not isinstance(error, QueueFull):
            return error
        estimate = self._average_duration_s / self._config.workers
        retry_after = min(MAX_ADVISED_RETRY_AFTER_S, max(1.0, estimate))
        return QueueFull(error.message, error.field, error.limit, error.actual, retry_after)

    async def _clean_up_periodically(self) -> None:
        while True:
            with _log_errors("cleaning up the store or reading its clock failed"):
                await self._clean_up()
                self._clock_skew = await self._store.clock_skew()
            await asyncio.sleep(CLEANUP_PERIOD_S)

    async def _clean_up(self) -> None:
        """Delete jobs whose results are past their time to live, and unreferenced blobs."""
        while True:
            ended_before = self.now() - self._config.result_ttl_s
            if await self._store.purge(ended_before, PURGE_BATCH) < PURGE_BATCH:
                break
            await asyncio.sleep(0)
        touched_before = self.now() - BLOB_GRACE_S
        while True:
            count = await self._store.remove_unused_blobs(
                touched_before, BLOB_REMOVAL_BATCH, self._remove_blob
            )
            if count < BLOB_REMOVAL_BATCH:
                break
            await asyncio.sleep(0)

    def _remove_blob(self, digest: str) -> None:
        """Remove a blob. An error is logged, so that it doesn't block the other removals."""
        try:
            self._blobs.remove(digest)
        except Exception:
            logger.exception("blob %s: removal failed; the file is left behind", digest)

    async def _record_counts_periodically(self) -> None:
        while True:
            with _log_errors("counting the jobs failed"):
                self._metrics.record_counts(await self._store.count_by_state())
            await asyncio.sleep(COUNTS_PERIOD_S)


@contextmanager
def _log_errors(message: str) -> Iterator[None]:
    """Log an exception under ``message`` and suppress it."""
    try:
        yield
    except Exception:
        logger.exception(message)


def _require(job: Job | None, job_id: str) -> Job:
    if job is None:
        raise UnknownJob(f"job_id: unknown job {job_id[:64]!r}", "job_id")
    return job


def _differ(job: Job, other: Job) -> bool:
    """Return whether two versions of a job differ in what a watcher sees."""
    return (job.state, job.attempts, job.progress, job.problem) != (
        other.state,
        other.attempts,
        other.progress,
        other.problem,
    )
