"""Threads that work for several clients in turn."""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from typing import Any, TypeVar

from raylens.core.fairness import fairest
from raylens.core.types import Caller, Priority

Result = TypeVar("Result")


@dataclass(eq=False)
class _Work:
    run: Callable[[], Any]
    client: str
    priority: Priority
    arrival_number: int
    arrived_at: float
    future: Future[Any] = field(default_factory=Future)


class FairPool:
    """A pool of threads whose queue is shared fairly.

    The client goes first whose work has taken the least time lately, as in start-time fair queueing
    (Goyal, Vin and Cheng, 1996). A client that comes back gets no credit for the time in which it
    asked for nothing. Jobs give way to interactive requests.
    """

    def __init__(
        self, threads: int, name: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._clock = clock
        self._lock = threading.Lock()
        self._numbers = count()
        self._waiting: list[_Work] = []
        self._unfinished: Counter[str] = Counter()
        """Work of each client that is waiting or running."""
        self._running: dict[_Work, float] = {}
        """When each began."""
        self._seconds: defaultdict[str, float] = defaultdict(float)
        """What the work of each client has taken that has ended."""

    def submit(self, run: Callable[[], Result], caller: Caller) -> Future[Result]:
        """Call ``run`` in a thread when its turn comes, unless the future is canceled before."""
        client = caller.client
        with self._lock:
            if client not in self._unfinished:
                self._seconds[client] = max(self._seconds[client], self._lowest(self._totals()))
            self._unfinished[client] += 1
            work = _Work(run, client, caller.priority, next(self._numbers), self._clock())
            self._waiting.append(work)
        self._threads.submit(self._run_next)  # as often as there is work
        return work.future

    def _run_next(self) -> None:
        with self._lock:
            work = fairest(self._waiting, self._totals())
            self._waiting.remove(work)
            self._running[work] = self._clock()
        if not work.future.set_running_or_notify_cancel():
            self._end(work)
            return
        try:
            result = self._run(work)
        except BaseException as error:
            work.future.set_exception(error)
        else:
            work.future.set_result(result)

    def _run(self, work: _Work) -> Any:
        try:
            return work.run()
        finally:
            self._end(work)

    def _end(self, work: _Work) -> None:
        client = work.client
        with self._lock:
            self._seconds[client] += self._clock() - self._running.pop(work)
            self._unfinished[client] -= 1
            if not self._unfinished[client]:
                del self._unfinished[client]
            lowest = self._lowest(self._totals())
            for other in self._seconds.keys() - self._unfinished.keys():
                if not self._unfinished or self._seconds[other] <= lowest:
                    del self._seconds[other]  # it would begin there anyway

    def _totals(self) -> defaultdict[str, float]:
        """Return what the work of each client has taken, that which is running included."""
        totals = self._seconds.copy()
        now = self._clock()
        for work, started in self._running.items():
            totals[work.client] += now - started
        return totals

    def _lowest(self, totals: defaultdict[str, float]) -> float:
        return min((totals[client] for client in self._unfinished), default=0.0)
