"""Runs the units of a job, such as its pictures, and retries each of them on its own."""

from __future__ import annotations

import asyncio
import math
import random
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from raylens.core.errors import FailureClass, RaylensError
from raylens.jobs.failures import should_retry
from raylens.jobs.transitions import RetryPolicy
from raylens.jobs.types.base import JobContext
from raylens.jobs.work import run_in_time

Result = TypeVar("Result")

HELD_POLL_S = 1.0
"""Seconds between two looks at groups that are held back, while others run."""


@dataclass(frozen=True)
class UnitAttempt:
    """One attempt at a unit."""

    unit: int
    deadline: float
    """When it times out, in seconds since the epoch, on this machine's clock."""
    is_last: bool
    """Whether a transient failure now is the unit's result."""


@dataclass
class _Group:
    """Units that need the same capacity."""

    refused_in_a_row: int = 0
    holds: int = 0
    """How often the group was held back since its last success."""
    held_until: float = -math.inf


class UnitRunner(Generic[Result]):
    """Runs units, ``concurrency`` at a time.

    - A transient failure uses up one of the unit's ``max_attempts``. The unit runs again after the
      others and a backoff. The failure of the last attempt is its result.
    - A permanent failure is its result at once.
    - A unit that lacks capacity is left for the job's next attempt, and the others go on. If
      ``concurrency`` units of a group in a row lack it, the group is held back for a while.
    - The run ends when no unit is left but those without capacity.

    ``attempts`` counts the failed attempts so far, by unit. It starts with those of earlier runs,
    and is part of what a job reports, so that the next run starts with it.

    ``work`` runs one attempt. ``finish`` is called with the result of each unit, and ``on_retry``
    after each failed attempt that is followed by another. ``group_of`` returns what a unit needs
    capacity of, such as its model.
    """

    def __init__(
        self,
        context: JobContext,
        concurrency: int,
        attempts: Mapping[str, int],
        work: Callable[[UnitAttempt], Coroutine[Any, Any, Result]],
        finish: Callable[[int, Result | RaylensError], Awaitable[None]],
        on_retry: Callable[[], Awaitable[None]],
        group_of: Callable[[int], str] = lambda _: "",
    ) -> None:
        config = context.config
        self.attempts = {int(unit): count for unit, count in attempts.items()}
        self._clock = context.clock
        self._is_first_run = context.job.progress is None
        self._concurrency = concurrency
        self._max_attempts = config.max_attempts
        self._timeout_s = config.attempt_timeout_s
        self._policy = RetryPolicy(config.backoff_s, config.max_backoff_s)
        self._work = work
        self._finish = finish
        self._on_retry = on_retry
        self._group_of = group_of
        self._pending: deque[tuple[int, float]] = deque()
        """Units that wait, each with the earliest time of its next attempt on the monotonic
        clock."""
        self._groups: defaultdict[str, _Group] = defaultdict(_Group)
        self._held: defaultdict[str, list[tuple[int, float]]] = defaultdict(list)
        """Units of groups that are held back."""
        self._in_flight = 0
        self._capacity_error: RaylensError | None = None
        """The last lack of capacity."""

    async def run(self, units: Iterable[int]) -> None:
        """Run all units.

        Raises a lack of capacity if units are left because of it, and what ``finish`` or
        ``on_retry`` raises.
        """
        order = list(units)
        if not self._is_first_run:
            # Units that lack capacity each time must not come first each time.
            random.shuffle(order)
        self._pending.extend((unit, 0.0) for unit in order)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self._concurrency, len(self._pending))):
                    group.create_task(self._drain())
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        if self._capacity_error is not None:
            raise self._capacity_error

    async def _drain(self) -> None:
        while (item := self._next()) is not None or await self._wait_for_others():
            if item is None:
                continue
            unit, not_before = item
            self._in_flight += 1
            try:
                await asyncio.sleep(max(0.0, not_before - self._clock.monotonic()))
                await self._attempt(unit)
            finally:
                self._in_flight -= 1

    async def _wait_for_others(self) -> bool:
        """Wait a little if groups are held back while other units run. Return whether these still
        run, so that there may be more to do."""
        if not self._in_flight or not self._held:
            return False
        await asyncio.sleep(HELD_POLL_S)
        return self._in_flight > 0

    def _next(self) -> tuple[int, float] | None:
        """Take the next unit of a group that isn't held back."""
        now = self._clock.monotonic()
        for name in [name for name in self._held if self._groups[name].held_until <= now]:
            self._pending.extend(self._held.pop(name))
        while self._pending:
            item = self._pending.popleft()
            name = self._group_of(item[0])
            if self._groups[name].held_until <= now:
                return item
            self._held[name].append(item)
        return None

    def _refuse(self, group: _Group, error: RaylensError) -> None:
        """Record that a unit of the group lacked capacity."""
        self._capacity_error = error
        group.refused_in_a_row += 1
        now = self._clock.monotonic()
        if group.refused_in_a_row >= self._concurrency and group.held_until <= now:
            group.holds += 1
            group.held_until = now + self._policy.delay(group.holds, error.retry_after)

    async def _attempt(self, unit: int) -> None:
        group = self._groups[self._group_of(unit)]
        failures = self.attempts.get(unit, 0)
        is_last = failures + 1 >= self._max_attempts
        deadline = self._clock.time() + self._timeout_s
        try:
            work = self._work(UnitAttempt(unit, deadline, is_last))
            result = await run_in_time(work, self._timeout_s)
        except RaylensError as error:
            if error.failure_class is FailureClass.CAPACITY:
                self._refuse(group, error)
                return
            group.refused_in_a_row = group.holds = 0
            if should_retry(error, is_last):
                self.attempts[unit] = failures + 1
                delay_s = self._policy.delay(failures + 1, error.retry_after)
                self._pending.append((unit, self._clock.monotonic() + delay_s))
                await self._on_retry()
            else:
                self.attempts.pop(unit, None)
                await self._finish(unit, error)
        else:
            group.refused_in_a_row = group.holds = 0
            self.attempts.pop(unit, None)
            await self._finish(unit, result)

    @property
    def attempts_as_json(self) -> dict[str, int]:
        return {str(unit): count for unit, count in self.attempts.items()}
