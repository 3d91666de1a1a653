"""Who sends a request, and how clients share what there is too little of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol, TypeVar

from raylens.core.errors import Overloaded
from raylens.core.types import Priority

current_client: ContextVar[str] = ContextVar("current_client", default="")
"""The client of the current request or job: the name of its key, or its address."""
RESERVE = 4
"""A client alone may hold all places of a limit. For others there are so many times fewer more."""


def reserve(limit: int) -> int:
    """Return the places beyond a limit, which one client alone can't take."""
    return max(1, limit // RESERVE)


JOB_RANK_DELAY_S = 10.0


class Waiting(Protocol):
    """What waits for its turn."""

    @property
    def client(self) -> str: ...
    @property
    def priority(self) -> Priority: ...
    @property
    def arrived_at(self) -> float: ...
    @property
    def arrival_number(self) -> int:
        """Orders those that arrived at the same time."""


W = TypeVar("W", bound=Waiting)


def fairest(waiting: Iterable[W], service: Mapping[str, float]) -> W:
    """Return whose turn it is: the client's that has had the least of ``service``, and its first.

    A job's work is ranked as if it had arrived ``JOB_RANK_DELAY_S`` seconds later. Interactive
    requests thus go first, but jobs are not starved.
    """
    first: dict[Priority, W] = {}
    for work in waiting:
        rival = first.setdefault(work.priority, work)
        if (service[work.client], _rank(work)) < (service[rival.client], _rank(rival)):
            first[work.priority] = work
    return min(first.values(), key=_rank)


def _rank(work: Waiting) -> tuple[float, int]:
    """Return what orders the work of one client."""
    delay = JOB_RANK_DELAY_S if work.priority is Priority.JOB else 0.0
    return work.arrived_at + delay, work.arrival_number


class FairPlaces:
    """Counts what each client has in flight; ``what`` says so in errors."""

    def __init__(self, what: str, limit: int, field: str | None = None) -> None:
        self._what = what
        self.limit = limit
        self._field = field
        self._held: Counter[str] = Counter()

    @property
    def in_flight(self) -> int:
        """The places of all clients."""
        return self._held.total()

    def held(self, client: str) -> int:
        """Return the places of a client."""
        return self._held[client]

    def check(self, client: str, asked: int = 1, factor: int = 1, retry_after: float = 1.0) -> None:
        """Raise ``Overloaded`` if the client may not take ``asked`` places more.

        ``factor`` multiplies the limit.
        """
        held, limit = self._held[client], factor * self.limit
        check_share(self._what, asked, held, self.in_flight, limit, retry_after, self._field)

    @contextmanager
    def take(
        self, client: str, asked: int = 1, factor: int = 1, retry_after: float = 1.0
    ) -> Iterator[None]:
        """Hold places within the context. Raises as :meth:`check` does."""
        self.check(client, asked, factor, retry_after)
        self._held[client] += asked
        try:
            yield
        finally:
            self._held[client] -= asked
            if not self._held[client]:
                del self._held[client]


def check_share(
    what: str,
    asked: int,
    held: int,
    in_flight: int,
    limit: int,
    retry_after: float = 1.0,
    field: str | None = None,
) -> None:
    """Raise ``Overloaded`` if a client may not take ``asked`` places more.

    ``held`` of the ``in_flight`` places are the client's. Its share is in proportion to the places
    that are free (Choudhury and Hahne, "Dynamic Queue Length Thresholds", 1998): alone it gets
    ``limit``, and the busier others are, the less. Some places are therefore always left for a
    client that has none. ``what`` says in the message what the places are held by, such as
    ``requests are in flight``.
    """
    spare = reserve(limit)
    free = limit + spare - in_flight
    share = min(limit, limit * free // spare)
    if asked <= free and held + asked <= share:
        return
    others = in_flight - held
    message = f"{held} {what}; the limit is {limit}"
    if others > 0:
        message = f"{held} {what}, beside {others} of other clients; the limit is {limit}, or less"
    raise Overloaded(message, field, limit, held, retry_after)
