"""The job queue as the key of a request sees it: its own jobs and files, and nobody else's."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import replace

from raylens.core.fairness import current_client
from raylens.core.keys import current_key
from raylens.jobs.changes import Changes
from raylens.jobs.files import StoredFile, unknown_file
from raylens.jobs.job import BULKY_FIELDS, Delivery, Job, Stats, unknown_job
from raylens.jobs.ports import JobService
from raylens.jobs.store import MAX_DELIVERIES, JobQuery


class OwnJobs(JobService):
    """Passes calls on to a queue, if what they are about belongs to :data:`current_key`.

    What belongs to another key doesn't exist for this one. Without keys, everything belongs to
    everybody.
    """

    def __init__(self, jobs: JobService) -> None:
        self._jobs = jobs

    async def submit(self, job: Job, pictures: Mapping[str, bytes]) -> Job:
        key = job.idempotency_key and _own_idempotency_key(job.idempotency_key)
        own = replace(job, owner=owner_of_request(), client=current_client.get())
        return await self._jobs.submit(replace(own, idempotency_key=key), pictures)

    async def find_submitted(self, idempotency_key: str, digest: str) -> Job | None:
        return await self._jobs.find_submitted(_own_idempotency_key(idempotency_key), digest)

    async def get(self, job_id: str) -> Job:
        return _require_own(await self._jobs.get(job_id))

    async def get_many(
        self, job_ids: Collection[str], bulky_fields: Collection[str] = BULKY_FIELDS
    ) -> dict[str, Job]:
        jobs = await self._jobs.get_many(job_ids, bulky_fields)
        return {job_id: job for job_id, job in jobs.items() if _is_own(job)}

    async def list_jobs(self, query: JobQuery) -> list[Job]:
        return await self._jobs.list_jobs(replace(query, owner=owner_of_request() or None))

    async def read_picture(self, job_id: str, digest: str) -> bytes:
        await self._check(job_id)
        return await self._jobs.read_picture(job_id, digest)

    async def cancel(self, job_id: str) -> Job:
        await self._check(job_id)
        return await self._jobs.cancel(job_id)

    async def remove(self, job_id: str) -> Job:
        await self._check(job_id)
        return await self._jobs.remove(job_id)

    async def requeue(self, job_id: str) -> Job:
        await self._check(job_id)
        return await self._jobs.requeue(job_id)

    async def stats(self) -> Stats:
        return await self._jobs.stats()

    async def wait_for_changes(self, cursor: str | None, timeout_s: float) -> Changes:
        return await self._jobs.wait_for_changes(cursor, timeout_s)

    async def deliveries(
        self, job_id: str, limit: int = MAX_DELIVERIES, before: int | None = None
    ) -> list[Delivery]:
        await self._check(job_id)
        return await self._jobs.deliveries(job_id, limit, before)

    async def redeliver(self, job_id: str, number: int) -> Delivery:
        await self._check(job_id)
        return await self._jobs.redeliver(job_id, number)

    async def add_file(self, file: StoredFile, data: bytes) -> StoredFile:
        own = replace(file, owner=owner_of_request(), client=current_client.get())
        return await self._jobs.add_file(own, data)

    async def get_file(self, file_id: str) -> StoredFile:
        file = await self._jobs.get_file(file_id)
        if not _is_own(file):
            raise unknown_file(file_id)
        return file

    async def keep_file(self, file_id: str, seconds: float) -> StoredFile:
        await self.get_file(file_id)
        return await self._jobs.keep_file(file_id, seconds)

    async def read_file_part(self, file_id: str, number: int) -> bytes | None:
        await self.get_file(file_id)
        return await self._jobs.read_file_part(file_id, number)

    async def list_files(
        self,
        purpose: str | None,
        limit: int,
        after_id: str | None,
        newest_first: bool,
        owner: str | None = None,
    ) -> list[StoredFile]:
        owner = owner_of_request() or None
        return await self._jobs.list_files(purpose, limit, after_id, newest_first, owner)

    async def remove_file(self, file_id: str) -> None:
        await self.get_file(file_id)
        await self._jobs.remove_file(file_id)

    async def _check(self, job_id: str) -> None:
        if owner_of_request():
            jobs = await self._jobs.get_many([job_id], ())
            _require_own(jobs.get(job_id), job_id)


def owner_of_request() -> str:
    """Return the name of the current key; empty without keys."""
    key = current_key.get()
    return "" if key is None else key.name


def _own_idempotency_key(idempotency_key: str) -> str:
    """Return what to store: two owners may choose the same key."""
    owner = owner_of_request()
    if not owner:
        return idempotency_key
    return hashlib.sha256(f"{owner}\0{idempotency_key}".encode()).hexdigest()


def _is_own(item: Job | StoredFile) -> bool:
    return owner_of_request() in ("", item.owner)


def _require_own(job: Job | None, job_id: str = "") -> Job:
    if job is None or not _is_own(job):
        raise unknown_job(job_id or (job.id if job else ""))
    return job
