"""The worker pool of ``raylens caption``: one job per picture."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from raylens.cli.caption_job import CaptionOptions, PictureError, encode_job
from raylens.cli.client import CANCELED, FAILED, SUCCEEDED, TERMINAL, Client, Job
from raylens.cli.errors import StatusError, Unreachable
from raylens.cli.job_waiter import JobWaiter
from raylens.cli.results import Result

MAX_UPLOADS = 4
"""Pictures that are held in memory at a time, however many jobs are in flight."""
MAX_SUBMISSIONS = 3
"""Submissions of one picture. A server whose store was replaced has lost its jobs."""
_PICTURE_STATUSES = frozenset({409, 413, 415, 422, 500})
"""HTTP statuses of errors that may concern one picture only."""
_SHARED_FIELDS = ("input.prompt", "input.model", "input.length", "job_type")
"""Fields that are the same for every picture. An error message that begins with one of them would
recur for all."""


class Captioner:
    """A pool of workers that caption pictures through the job queue.

    ``on_result`` receives each result as soon as its job ends. ``retry_failed``: retry a job once
    if an earlier run left it failed or canceled.
    """

    def __init__(
        self,
        client: Client,
        options: CaptionOptions,
        retry_failed: bool,
        on_result: Callable[[Result], None],
    ) -> None:
        self._client = client
        self._waiter = JobWaiter(client)
        self._options = options
        self._retry_failed = retry_failed
        self._on_result = on_result
        self._uploads = asyncio.Semaphore(MAX_UPLOADS)
        self._retried_ids: set[str] = set()

    async def caption_all(self, pictures: Iterable[Path], in_flight: int) -> None:
        """Caption all pictures, ``in_flight`` at a time.

        Raises ``ClientError`` if an error concerns more than one picture, and whatever
        ``on_result`` raises.
        """
        queue = iter(pictures)
        try:
            async with self._waiter, asyncio.TaskGroup() as group:
                for _ in range(in_flight):
                    group.create_task(self._work(queue))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _work(self, queue: Iterator[Path]) -> None:
        for picture in queue:
            self._on_result(await self._caption(picture))

    async def _caption(self, picture: Path) -> Result:
        """Return a picture's result.

        Raises ``ClientError`` if the error concerns the other pictures too.
        """
        file = str(picture)
        try:
            job = await self._run_job(picture)
        except PictureError as error:
            return _failure(file, error.code, str(error))
        except StatusError as error:
            if error.status not in _PICTURE_STATUSES or str(error).startswith(_SHARED_FIELDS):
                raise
            return _failure(file, f"http_{error.status}", str(error))
        except Unreachable as error:
            if not error.server_is_up:
                raise
            return _failure(file, "connection_lost", str(error))
        return _to_result(file, job)

    async def _run_job(self, picture: Path) -> Job:
        """Submit a picture, again if the server loses the job, and return the job at its end."""
        for _ in range(MAX_SUBMISSIONS):
            job = await self._submit(picture)
            try:
                return await self._finish(job)
            except StatusError as error:
                if error.status != 404:
                    raise
        raise PictureError("job_not_found", f"the server lost the job {MAX_SUBMISSIONS} times")

    async def _submit(self, picture: Path) -> Job:
        async with self._uploads:
            body, key = await asyncio.to_thread(encode_job, picture, self._options)
            return await self._client.submit(body, key)

    async def _finish(self, job: Job) -> Job:
        """Wait until a job ends, and return it. Retry it first if it is due for a retry."""
        if self._should_retry(job):
            job = await self._retry(job["id"])
        return job if job["status"] in TERMINAL else await self._waiter.wait_for_end(job["id"])

    def _should_retry(self, job: Job) -> bool:
        has_failed = job["status"] in (FAILED, CANCELED)
        return self._retry_failed and has_failed and job["id"] not in self._retried_ids

    async def _retry(self, job_id: str) -> Job:
        # Pictures with the same bytes share a job, which is retried once.
        self._retried_ids.add(job_id)
        try:
            return await self._client.retry(job_id)
        except StatusError as error:
            if error.status != 409:
                raise
            refusal = error
        job = await self._client.get(job_id)
        if job["status"] in (FAILED, CANCELED):
            # The server no longer has its pictures. Without the job, the picture is sent again.
            await self._client.delete(job_id)
            raise StatusError(404, str(refusal))
        return job  # another client has just retried it


def _to_result(file: str, job: Job) -> Result:
    """Return the result of a job that has ended."""
    if job["status"] == SUCCEEDED:
        output = job["output"]
        return Result(file, output["caption"], output.get("model"), job_id=job["id"])
    error = job["error"] if job["status"] == FAILED else None
    if not error:
        return _failure(file, job["status"], f"the job was {job['status']}", job["id"])
    return _failure(file, error["code"], error["message"], job["id"])


def _failure(file: str, code: str, message: str, job_id: str | None = None) -> Result:
    return Result(file, error={"code": code, "message": message}, job_id=job_id)
