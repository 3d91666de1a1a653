"""A client of the job queue's actor, for other processes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from ray import serve
from ray.exceptions import RayActorError, RayError, RayTaskError

from raylens.core.errors import ModelFailed, Overloaded, RaylensError
from raylens.jobs.changes import Changes
from raylens.jobs.files import StoredFile
from raylens.jobs.group_commit import GroupCommit
from raylens.jobs.job import BULKY_FIELDS, Delivery, Job, Stats
from raylens.jobs.ports import JobService
from raylens.jobs.queue import PART_BYTES, PICTURE_BYTES, SLOWEST_BYTES_PER_S
from raylens.jobs.store import MAX_DELIVERIES, JobQuery

QUEUE_ACTOR_NAME = "jobs"
"""Name of the queue's actor among the deployment actors of the ingress."""
RECONNECT_S = 0.25
"""Pause between two attempts to reach the actor, in seconds."""
TRANSPORT_S = 0.5
"""What a call may take beyond the queue's own time limit, in seconds."""
RETRY_AFTER_S = 5.0
"""``Retry-After`` if the queue can't be reached, in seconds."""
MAX_SHARED_BYTES = 64 * 1024
"""A job with more picture bytes than this is submitted in a call of its own."""
MAX_SHARED_JOBS = 32
"""Largest number of jobs that are submitted in one call."""
Submission = tuple[Job, Mapping[str, bytes]]


def find_queue_actor() -> Any:
    return serve.get_deployment_actor(QUEUE_ACTOR_NAME)


class JobQueueClient(JobService):
    """The job queue in another process.

    A call is made again if the actor's death has interrupted it. That is safe, because no method of
    the queue does its work twice. After ``timeout_s`` seconds in all, it raises ``Overloaded``.

    ``find_actor`` returns the handle of the actor, and raises ``ValueError`` if there is none.
    """

    def __init__(self, timeout_s: float, find_actor: Callable[[], Any] = find_queue_actor) -> None:
        self._timeout_s = timeout_s + TRANSPORT_S
        self._find_actor = find_actor
        self._actor: Any = None
        # The look-up may block. It must not occupy the threads that decode pictures.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="find-queue")
        self._finding: asyncio.Future[Any] | None = None
        # A call costs more than a small job, so jobs that arrive together share one.
        self._small_jobs: GroupCommit[Submission, Job | RaylensError] = GroupCommit(
            self._submit_all, MAX_SHARED_JOBS
        )

    async def _submit_all(self, submissions: list[Submission]) -> list[Job | RaylensError]:
        return await self._call("submit_all", submissions)

    async def submit(self, job: Job, pictures: Mapping[str, bytes]) -> Job:
        if sum(map(len, pictures.values())) > MAX_SHARED_BYTES:
            return await self._call("submit", job, dict(pictures))
        async with _time_limit(self._timeout_s):
            result = await self._small_jobs.submit((job, pictures))
        if isinstance(result, RaylensError):
            raise result
        return result

    async def find_submitted(self, idempotency_key: str, digest: str) -> Job | None:
        return await self._call("find_submitted", idempotency_key, digest)

    async def get(self, job_id: str) -> Job:
        return await self._call("get", job_id)

    async def get_many(
        self, job_ids: Collection[str], bulky_fields: Collection[str] = BULKY_FIELDS
    ) -> dict[str, Job]:
        return await self._call("get_many", frozenset(job_ids), frozenset(bulky_fields))

    async def list_jobs(self, query: JobQuery) -> list[Job]:
        return await self._call("list_jobs", query)

    async def read_picture(self, job_id: str, digest: str) -> bytes:
        wait_s = PICTURE_BYTES / SLOWEST_BYTES_PER_S
        return await self._call("read_picture", job_id, digest, wait_s=wait_s)

    async def cancel(self, job_id: str) -> Job:
        return await self._call("cancel", job_id)

    async def remove(self, job_id: str) -> Job:
        return await self._call("remove", job_id)

    async def requeue(self, job_id: str) -> Job:
        return await self._call("requeue", job_id)

    async def stats(self) -> Stats:
        return await self._call("stats")

    async def wait_for_changes(self, cursor: str | None, timeout_s: float) -> Changes:
        return await self._call("wait_for_changes", cursor, timeout_s, wait_s=timeout_s)

    async def deliveries(
        self, job_id: str, limit: int = MAX_DELIVERIES, before: int | None = None
    ) -> list[Delivery]:
        return await self._call("deliveries", job_id, limit, before)

    async def redeliver(self, job_id: str, number: int) -> Delivery:
        return await self._call("redeliver", job_id, number)

    async def add_file(self, file: StoredFile, data: bytes) -> StoredFile:
        wait_s = len(data) / SLOWEST_BYTES_PER_S
        return await self._call("add_file", file, data, wait_s=wait_s)

    async def get_file(self, file_id: str) -> StoredFile:
        return await self._call("get_file", file_id)

    async def keep_file(self, file_id: str, seconds: float) -> StoredFile:
        return await self._call("keep_file", file_id, seconds)

    async def read_file_part(self, file_id: str, number: int) -> bytes | None:
        wait_s = PART_BYTES / SLOWEST_BYTES_PER_S
        return await self._call("read_file_part", file_id, number, wait_s=wait_s)

    async def list_files(
        self,
        purpose: str | None,
        limit: int,
        after_id: str | None,
        newest_first: bool,
        owner: str | None = None,
    ) -> list[StoredFile]:
        return await self._call("list_files", purpose, limit, after_id, newest_first, owner)

    async def remove_file(self, file_id: str) -> None:
        await self._call("remove_file", file_id)

    async def take_settings(self, settings: Mapping[str, Any] | None) -> None:
        """Tell the queue the live settings, for jobs that run from now on."""
        await self._call_actor(lambda actor: actor.take_settings.remote(settings))

    async def _call(self, method: str, *arguments: Any, wait_s: float = 0.0) -> Any:
        return await self._call_actor(
            lambda actor: actor.call.remote(method, *arguments), wait_s=wait_s
        )

    async def _call_actor(self, call: Callable[[Any], Any], wait_s: float = 0.0) -> Any:
        async with _time_limit(self._timeout_s + wait_s):
            while True:
                try:
                    if self._actor is None:
                        self._actor = await self._find()
                    return await call(self._actor)
                except RayTaskError as error:
                    raise _unwrap(error) from error
                except (RayActorError, ValueError):  # the actor has died, or hasn't started
                    self._actor = None
                except RayError as error:
                    message = f"the job queue can't be reached ({type(error).__name__})"
                    raise Overloaded(message, retry_after=RETRY_AFTER_S) from error
                await asyncio.sleep(RECONNECT_S)

    async def _find(self) -> Any:
        """Return the actor's handle. Calls that need it at the same time share one look-up."""
        if self._finding is None or self._finding.done():
            loop = asyncio.get_running_loop()
            self._finding = loop.run_in_executor(self._thread, self._find_actor)
            # Otherwise asyncio logs an error that no call waits for any more.
            self._finding.add_done_callback(asyncio.Future.exception)
        return await asyncio.shield(self._finding)


@asynccontextmanager
async def _time_limit(seconds: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        message = "the job queue can't be reached at the moment"
        raise Overloaded(message, retry_after=RETRY_AFTER_S) from None


def _unwrap(error: RayTaskError) -> RaylensError:
    """Return the error that the queue raised."""
    if isinstance(error.cause, RaylensError):
        return error.cause
    return ModelFailed(f"the job queue failed: {type(error.cause).__name__}")
