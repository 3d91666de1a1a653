"""What an attempt reports while it runs: its progress, and events for the job's webhook."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, Protocol

from raylens.core.errors import Conflict
from raylens.jobs.clock import Clock
from raylens.jobs.failures import InvalidOutput, to_json
from raylens.jobs.group_commit import GroupCommit
from raylens.jobs.job import Delivery, Job, Progress
from raylens.jobs.store import Change
from raylens.jobs.transitions import JobUpdate, report_progress

logger = logging.getLogger(__name__)

RETRY_S = 1.0
"""Seconds to wait before storing an event again."""
PERIOD_S = 0.5
"""Shortest time between two stored reports, in seconds."""

MakeDelivery = Callable[[Job, str, dict[str, Any]], Delivery | None]
"""Makes the delivery of an event, of its name and data; None if the job has no webhook."""
ChangeWriter = GroupCommit[Change, Any]
"""Writes changes, and returns for each what :meth:`raylens.jobs.store.JobStore.change` does."""


class Reporter(Protocol):
    """Takes the reports of an attempt."""

    async def report(
        self, progress: Progress, partial: dict[str, Any] | None, at_once: bool = False
    ) -> None:
        """Report progress and, unless it is None, the output so far.

        Of reports in quick succession, only the last one is stored, unless ``at_once`` is true.
        Raises ``InvalidOutput`` if the output isn't JSON.
        """
        ...

    async def deliver(
        self,
        event: str,
        data: dict[str, Any],
        progress: Progress,
        partial: dict[str, Any],
        only_newest: bool = False,
    ) -> None:
        """Report as :meth:`report` does, and send an event to the job's webhook if it has one.

        With ``only_newest``, it replaces those of its name that were sent, or still wait. Both are
        durable when this returns: while the store is away, it waits. Raises ``Conflict``
        if the attempt no longer counts.
        """
        ...


class ProgressReporter(Reporter):
    """Stores the reports of an attempt, at most one every ``PERIOD_S`` seconds.

    A report that was not stored is kept, and :meth:`apply` adds it to what ends the attempt.
    """

    def __init__(
        self,
        job: Job,
        change_writer: ChangeWriter,
        clock: Clock,
        on_change: Callable[[Job], None],
        make_delivery: MakeDelivery,
    ) -> None:
        self._job = job
        self._change_writer = change_writer
        self._clock = clock
        self._on_change = on_change
        self._make_delivery = make_delivery
        self._unsaved: tuple[Progress, dict[str, Any] | None] | None = None
        self._undelivered: list[Delivery] = []
        """Deliveries that were not stored yet. They go with the report of the same time."""
        self._only_newest: frozenset[str] = frozenset()
        self._counts = True
        """Whether the store still knows this attempt as the job's."""
        self._saved_at = -math.inf
        self._later: asyncio.Task[None] | None = None
        """Stores the newest report once the last stored one is ``PERIOD_S`` old."""

    async def report(
        self, progress: Progress, partial: dict[str, Any] | None, at_once: bool = False
    ) -> None:
        self._unsaved = (progress, partial)
        wait_s = self._saved_at + PERIOD_S - self._clock.monotonic()
        if wait_s <= 0 or at_once or progress.is_complete:
            await self._save()
        elif self._later is None or self._later.done():
            self._later = asyncio.create_task(self._save_later(wait_s))

    async def deliver(
        self,
        event: str,
        data: dict[str, Any],
        progress: Progress,
        partial: dict[str, Any],
        only_newest: bool = False,
    ) -> None:
        self._unsaved = (progress, partial)
        self.check()
        delivery = self._make_delivery(self._job, event, to_json(data))
        if delivery is not None:
            self._undelivered.append(delivery)
            if only_newest:
                self._only_newest = self._only_newest | {event}
        # If the attempt is stopped meanwhile, what isn't stored goes with its end.
        while not await self._save():
            await asyncio.sleep(RETRY_S)
        if not self._counts:
            raise Conflict("the job was canceled, or runs elsewhere")

    async def _save_later(self, wait_s: float) -> None:
        await asyncio.sleep(wait_s)
        with suppress(InvalidOutput):  # the next report or the end of the attempt raises it again
            if self._unsaved is not None:
                await self._save()

    async def _save(self) -> bool:
        """Store what was not stored yet. Return False if the store fails."""
        self.check()
        self._saved_at = self._clock.monotonic()
        unsaved, undelivered = self._unsaved, tuple(self._undelivered)
        change = Change(self._job.id, lambda job: self.add_to(JobUpdate(job)), self._job.fence)
        try:
            saved = await self._change_writer.submit(change)
        except Exception as error:
            # The attempt goes on: the next report replaces this one.
            logger.warning("job %s: storing the progress failed: %s", self._job.id, error)
            return False
        if self._unsaved is unsaved:
            self._unsaved = None
        self._undelivered = [each for each in self._undelivered if each not in undelivered]
        self._counts = isinstance(saved, Job)
        if isinstance(saved, Job):
            self._on_change(saved)
        return True

    def stop(self) -> None:
        """Store no further report: the attempt ends."""
        if self._later is not None:
            self._later.cancel()

    def check(self) -> None:
        """Raise ``InvalidOutput`` if the output so far isn't JSON."""
        if self._unsaved is not None and self._unsaved[1] is not None:
            progress, partial = self._unsaved
            self._unsaved = (progress, to_json(partial))

    def discard_invalid(self) -> None:
        """Forget the report that was not stored if its output isn't JSON."""
        try:
            self.check()
        except InvalidOutput:
            self.discard()

    def discard(self) -> None:
        """Forget the report that was not stored."""
        self._unsaved = None

    def add_to(self, update: JobUpdate) -> JobUpdate:
        """Return an update with the report and the deliveries that were not stored yet."""
        return replace(
            update,
            job=self.apply(update.job),
            deliveries=(*self._undelivered, *update.deliveries),
            only_newest=self._only_newest,
        )

    def apply(self, job: Job) -> Job:
        """Return the job with the report that was not stored yet."""
        return job if self._unsaved is None else report_progress(job, *self._unsaved)
