"""The budgets of clients, as one replica of the ingress uses them."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from abc import abstractmethod
from collections import OrderedDict, defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from raylens.core.errors import TooManyRequests
from raylens.core.ledger import LEASE_S, MINUTE_S, Budget, Grant, Ledger

logger = logging.getLogger(__name__)

AHEAD_S = 1.0
"""A replica leases what a rate allows in this time."""
SPARE_PLACES = 16
"""A replica keeps one place in so many for the next request."""
RETRY_S = 2.0
"""Time without calls to a ledger that doesn't answer."""
PLACE_RETRY_S = 1.0
"""``Retry-After`` if all places are taken."""
MAX_CLIENTS = 10_000
"""Clients whose rates a replica remembers."""
RENEWALS = 3
"""Renewals of places in the time of their lease."""


class LedgerService(Protocol):
    """A ledger that other replicas use, too."""

    async def spend(self, budget: Budget, replica: str, debt: float, wanted: float) -> Grant:
        """As :meth:`Ledger.spend`. Raises ``ConnectionError`` if the ledger doesn't answer."""
        ...

    async def hold(self, budget: Budget, replica: str, held: int, wanted: int) -> Grant:
        """As :meth:`Ledger.hold`. Raises ``ConnectionError`` if the ledger doesn't answer."""
        ...


class RemoteLedger(LedgerService):
    """A ledger in another process."""

    async def spend(self, budget: Budget, replica: str, debt: float, wanted: float) -> Grant:
        return await self.call("spend", budget, replica, debt, wanted)

    async def hold(self, budget: Budget, replica: str, held: int, wanted: int) -> Grant:
        return await self.call("hold", budget, replica, held, wanted)

    @abstractmethod
    async def call(self, method: str, *arguments: Any) -> Grant:
        """Call a method of :class:`Ledger`. Raises ``ConnectionError``."""


@dataclass(frozen=True)
class Standing:
    """Where a client stands with a rate."""

    budget: Budget
    left: float
    retry_after: float = 0.0
    """Seconds until a request is allowed; 0 if one is."""

    @property
    def full_after(self) -> float:
        """Seconds until the whole budget is there again."""
        return max(0.0, self.budget.limit - self.left) / self.budget.limit * MINUTE_S


@dataclass
class _RateLease:
    left: float
    """Of the budget, beside the credit, at ``left_at``: the last call of the ledger."""
    left_at: float
    credit: float = 0.0
    """Below zero, it is what the ledger doesn't yet know of."""
    sharers: int = 1
    """Replicas that use the budget."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass
class _PlaceLease:
    leased: int = 0
    used: int = 0
    callers: int = 0
    """Those who use a place or wait for one."""
    was_used: bool = True
    """Since the last renewal."""
    sharers: int = 1
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Leases:
    """What this replica has leased from the ledger.

    If the ledger doesn't answer, the replica goes on alone, with its part of each budget: what the
    ledger last left, divided by the replicas that used it.
    """

    def __init__(
        self, ledger: LedgerService | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ledger = ledger
        self._own_ledger = Ledger(clock)
        self._clock = clock
        self._replica = uuid.uuid4().hex
        self._silent_until = float("-inf")
        self._rates: OrderedDict[Budget, _RateLease] = OrderedDict()
        """The last used one is last."""
        self._places: defaultdict[Budget, _PlaceLease] = defaultdict(_PlaceLease)
        self._tasks: set[asyncio.Task[None]] = set()
        self._renewal: asyncio.Task[None] | None = None

    async def spend(self, budget: Budget, cost: int) -> Standing:
        """Spend ``cost``, 0 or 1, of a rate, and return where its client stands.

        With a cost of 0, what is used becomes known later (:meth:`charge`). Nothing is spent if the
        standing has a ``retry_after``.
        """
        lease = self._rate(budget)
        async with lease.lock:
            retry_after = 0.0
            if lease.credit < 1:
                ahead = max(1.0, budget.limit / MINUTE_S * AHEAD_S)
                retry_after = await self._settle(budget, lease, ahead)
            if lease.credit < 1:
                return Standing(budget, lease.left, max(retry_after, 0.001))
            lease.credit -= cost
            return Standing(budget, lease.left + lease.credit)

    def charge(self, budget: Budget, amount: int) -> None:
        """Take what has been used off a rate."""
        lease = self._rate(budget)
        lease.credit -= amount
        if lease.credit < 0:
            self._start(self._pay_debt(budget, lease))

    @asynccontextmanager
    async def hold(self, budget: Budget, may_exceed: bool = False) -> AsyncIterator[None]:
        """Hold a place within the context, even beyond the limit if it ``may_exceed`` that. Raises
        ``TooManyRequests`` if there is none."""
        lease = self._places[budget]
        lease.callers += 1
        lease.was_used = True
        try:
            await self._take_place(budget, lease, may_exceed)
            try:
                yield
            finally:
                lease.used -= 1
        finally:
            lease.callers -= 1
            if lease.leased > self._needed(budget, lease) or not lease.leased:
                self._start(self._give_back(budget, lease))

    async def _take_place(self, budget: Budget, lease: _PlaceLease, may_exceed: bool) -> None:
        async with lease.lock:
            if lease.used >= lease.leased:
                ahead = max(1, budget.limit // SPARE_PLACES)
                grant = await self._hold(budget, lease, ahead)
                lease.leased += int(grant.amount)
            if lease.used >= lease.leased and may_exceed:
                lease.leased = lease.used + 1
                await self._hold(budget, lease, 0)
            if lease.used >= lease.leased:
                message = f"your limit of {budget.limit} {budget.name} at a time is reached"
                raise TooManyRequests(message, None, budget.limit, budget.limit, PLACE_RETRY_S)
            lease.used += 1
        if self._renewal is None:
            self._renewal = self._start(self._renew())

    def _rate(self, budget: Budget) -> _RateLease:
        lease = self._rates.setdefault(budget, _RateLease(budget.limit, self._clock()))
        self._rates.move_to_end(budget)
        if len(self._rates) > MAX_CLIENTS:
            self._rates.popitem(last=False)
        return lease

    async def _pay_debt(self, budget: Budget, lease: _RateLease) -> None:
        async with lease.lock:
            if lease.credit < 0:
                await self._settle(budget, lease, 0.0)

    async def _settle(self, budget: Budget, lease: _RateLease, wanted: float) -> float:
        """Tell the ledger what has been used, and lease more. Returns its ``retry_after``.

        More may be used meanwhile (:meth:`charge` doesn't wait).
        """
        debt = max(0.0, -lease.credit)
        lease.credit += debt
        grant = await self._spend(budget, lease, debt, wanted)
        lease.credit += grant.amount
        return grant.retry_after

    def standing(self, budget: Budget) -> Standing:
        """Return where a client stands with a rate, as far as this replica knows."""
        lease = self._rate(budget)
        refilled = (self._clock() - lease.left_at) * budget.limit / MINUTE_S
        left = min(budget.limit, lease.left + lease.credit + refilled)
        return Standing(budget, max(0.0, left))

    @staticmethod
    def _needed(budget: Budget, lease: _PlaceLease) -> int:
        """Return the places in use, and a few to spare for a client that has lately used one, if
        all replicas together spare no more than a quarter of the limit."""
        may_spare = lease.was_used and 4 * lease.sharers <= SPARE_PLACES
        spare = budget.limit // SPARE_PLACES if may_spare else 0
        return max(lease.used, min(lease.used + spare, budget.limit))

    async def _give_back(self, budget: Budget, lease: _PlaceLease) -> None:
        """Give back the places that aren't needed."""
        async with lease.lock:
            needed = self._needed(budget, lease)
            if lease.leased > needed:
                lease.leased = needed
                await self._hold(budget, lease, 0)
        if not (lease.leased or lease.callers) and self._places.get(budget) is lease:
            del self._places[budget]

    async def _renew(self) -> None:
        while self._places:
            await asyncio.sleep(LEASE_S / RENEWALS)
            for budget, lease in list(self._places.items()):
                lease.was_used, was_used = bool(lease.callers), lease.was_used
                if was_used:
                    async with lease.lock:
                        await self._hold(budget, lease, 0)
                else:
                    await self._give_back(budget, lease)
        self._renewal = None

    async def _spend(self, budget: Budget, lease: _RateLease, debt: float, wanted: float) -> Grant:
        if self._ledger is not None and self._clock() >= self._silent_until:
            try:
                grant = await self._ledger.spend(budget, self._replica, debt, wanted)
            except ConnectionError as error:
                self._note_silence(error)
            else:
                lease.left, lease.left_at = grant.left, self._clock()
                lease.sharers = grant.sharers
                self._own_ledger.refill(_part(budget, lease.sharers), grant.left / lease.sharers)
                return grant
        own = self._own_ledger.spend(_part(budget, lease.sharers), self._replica, debt, wanted)
        lease.left, lease.left_at = own.left, self._clock()
        return own

    async def _hold(self, budget: Budget, lease: _PlaceLease, wanted: int) -> Grant:
        if self._ledger is not None and self._clock() >= self._silent_until:
            try:
                grant = await self._ledger.hold(budget, self._replica, lease.leased, wanted)
            except ConnectionError as error:
                self._note_silence(error)
            else:
                lease.sharers = grant.sharers
                return grant
        part = _part(budget, lease.sharers)
        return self._own_ledger.hold(part, self._replica, lease.leased, wanted)

    def _note_silence(self, error: ConnectionError) -> None:
        logger.warning("the ledger of the limits doesn't answer: %s", error)
        self._silent_until = self._clock() + RETRY_S

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _part(budget: Budget, sharers: int) -> Budget:
    """Return what one of several replicas may use of a budget."""
    return replace(budget, limit=max(1, budget.limit // sharers))
