"""Budgets of clients, which the replicas of the ingress lease from one ledger.

A budget of a rate is a token bucket: it holds what a minute allows, and fills up evenly. Another
kind of budget is a number of places, which are held and given back. A replica leases some of
either in advance, so that most requests need no call.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

MINUTE_S = 60.0
SWEEP_S = 10.0
"""Shortest time between two looks for budgets to forget."""
LEASE_S = 15.0
"""After this time, places of a replica that doesn't renew its lease are free again."""


@dataclass(frozen=True)
class Budget:
    """A limit of a client. The same budget has the same name in all replicas."""

    client: str
    name: str
    limit: int


@dataclass(frozen=True)
class Grant:
    """The ledger's answer."""

    amount: float
    """What the replica may use, at most what it asked for."""
    left: float
    """What is left of the budget."""
    retry_after: float
    """Seconds until there may be more; 0 if something was granted."""
    sharers: int
    """Replicas that have lately used the budget."""


@dataclass
class _Account:
    """The state of one budget."""

    level: float
    """Of a rate: what is left at the time ``filled_at``."""
    filled_at: float
    seen_at: dict[str, float] = field(default_factory=dict)
    """When each replica has last used the budget."""
    held: dict[str, int] = field(default_factory=dict)
    """Of places: how many each replica holds."""


class Ledger:
    """Keeps the budgets. ``clock`` returns seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._accounts: dict[Budget, _Account] = {}
        self._swept_at = clock()

    def spend(self, budget: Budget, replica: str, debt: float, wanted: float) -> Grant:
        """Take ``debt``, which has been used already, off a rate, and then up to ``wanted``.

        The level may fall below zero; nothing is granted until it is above zero again.
        """
        account = self._account(budget, replica)
        per_second = budget.limit / MINUTE_S
        now = self._clock()
        account.level = min(budget.limit, account.level + per_second * (now - account.filled_at))
        account.filled_at = now
        account.level -= debt
        unit = min(1.0, wanted)
        amount = 0.0
        if wanted > 0 and account.level >= unit:
            amount = min(wanted, account.level)
            account.level -= amount
        retry_after = 0.0 if amount else max(0.0, unit - account.level) / per_second
        return Grant(amount, account.level, retry_after, len(account.seen_at))

    def hold(self, budget: Budget, replica: str, held: int, wanted: int) -> Grant:
        """Note that a replica holds ``held`` places, and grant it up to ``wanted`` more."""
        account = self._account(budget, replica)
        account.held[replica] = held
        free = budget.limit - sum(account.held.values())
        amount = max(0, min(wanted, free))
        account.held[replica] += amount
        return Grant(amount, max(0, free - amount), 0.0 if amount else 1.0, len(account.seen_at))

    def refill(self, budget: Budget, level: float) -> None:
        """Set what is left of a rate."""
        account = self._account(budget)
        account.level, account.filled_at = level, self._clock()

    def _account(self, budget: Budget, replica: str | None = None) -> _Account:
        now = self._clock()
        account = self._accounts.get(budget)
        if account is None:
            if now - self._swept_at > SWEEP_S:
                self._forget_idle(now)
            account = self._accounts[budget] = _Account(budget.limit, now)
        if replica is not None:
            account.seen_at[replica] = now
        for name in [name for name, at in account.seen_at.items() if now - at > LEASE_S]:
            del account.seen_at[name]
            account.held.pop(name, None)
        return account

    def _forget_idle(self, now: float) -> None:
        """Forget budgets that have been whole again for a while."""
        self._swept_at = now
        for budget, account in list(self._accounts.items()):
            is_idle = now - max(account.seen_at.values(), default=-math.inf) > MINUTE_S
            filled = account.level + (now - account.filled_at) * budget.limit / MINUTE_S
            if is_idle and filled >= budget.limit:
                del self._accounts[budget]
