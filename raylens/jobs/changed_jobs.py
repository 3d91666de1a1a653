"""The jobs that change, whichever they are, for any number of readers in a process."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from raylens.jobs.job import Job
from raylens.jobs.ports import JobService

MAX_JOBS = 1000
"""Changed jobs that are read at a time. A reader who has missed more has to list the jobs."""


@dataclass(frozen=True)
class ChangedJobs:
    """The newest versions of the jobs that have changed since a cursor, and the next cursor.

    ``versions`` has them by id, and None for a job that was removed. It is None if any job may have
    changed.
    """

    cursor: str
    versions: Mapping[str, Job | None] | None


@dataclass(frozen=True)
class _OwnedChanges:
    changed: ChangedJobs
    owners: Mapping[str, str]

    def of(self, owner: str) -> ChangedJobs:
        """Return what concerns the jobs of an owner; of everybody, if that is empty."""
        versions = self.changed.versions
        if not owner or versions is None:
            return self.changed
        own = {key: job for key, job in versions.items() if self.owners[key] == owner}
        return ChangedJobs(self.changed.cursor, own)


class ChangedJobsReader:
    """Reads changed jobs. Calls with the same cursor share one wait and one read.

    Readers that keep up with the changes all have the newest cursor, so their number hardly
    matters.
    """

    def __init__(self, jobs: JobService) -> None:
        self._jobs = jobs
        self._calls: dict[tuple[str, frozenset[str]], asyncio.Task[_OwnedChanges]] = {}

    async def read(self, cursor: str, owner: str, bulky_fields: Collection[str]) -> ChangedJobs:
        """Return the jobs of an owner that have changed since a cursor.

        Raises what :class:`~raylens.jobs.ports.JobService` raises.
        """
        return (await self._read(cursor, frozenset(bulky_fields), 0, owner)).of(owner)

    async def wait(
        self, cursor: str, owner: str, bulky_fields: Collection[str], timeout_s: float
    ) -> ChangedJobs:
        """Return as :meth:`read` does, but wait for the first change of any job.

        The wait ends after ``timeout_s`` seconds, or when that of another reader does.
        """
        key = cursor, frozenset(bulky_fields)
        call = self._calls.get(key)
        if call is None:
            call = self._calls[key] = asyncio.create_task(self._read(*key, timeout_s))
            call.add_done_callback(lambda _: self._calls.pop(key))
        return (await asyncio.shield(call)).of(owner)  # another reader may wait for it, too

    async def _read(
        self, cursor: str, bulky_fields: frozenset[str], timeout_s: float, owner: str = ""
    ) -> _OwnedChanges:
        """Read the jobs of an owner; of everybody, if that is empty."""
        changes = await self._jobs.wait_for_changes(cursor or None, timeout_s)
        if changes.owners is None:
            return _OwnedChanges(ChangedJobs(changes.cursor, None), {})
        owners = {key: name for key, name in changes.owners.items() if owner in ("", name)}
        if len(owners) > MAX_JOBS:
            return _OwnedChanges(ChangedJobs(changes.cursor, None), {})
        found = await self._jobs.get_many(owners.keys(), bulky_fields) if owners else {}
        versions = {job_id: found.get(job_id) for job_id in owners}
        return _OwnedChanges(ChangedJobs(changes.cursor, versions), owners)
