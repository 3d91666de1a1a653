"""Drains the server of a ``raylens run``: no new requests, and an end of what has begun."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import httpx
import ray
from ray.exceptions import RayError

from deployments.draining import find_queue_actors
from deployments.ray_environment import DRAIN_FILE
from raylens.api.draining import SECONDS_LEFT
from raylens.core.endpoint import Endpoint

PERIOD_S = 0.25
CALL_TIMEOUT_S = 10.0


class JobQueues(Protocol):
    """The job queues of a server."""

    def drain(self) -> int:
        """Have no further job begun. Returns how many run."""
        ...

    def hand_over(self) -> None:
        """Put the jobs that run back into the store, for the next start."""
        ...


class ServerDrain:
    """Drains the server at ``endpoint``.

    The proxy refuses requests as long as the file exists that ``RAYLENS_DRAIN_FILE`` names, and
    tells how many are left. ``report`` gets a line about what is left, when that has changed.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        report: Callable[[str], None],
        queues: JobQueues | None = None,
        transport: httpx.BaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._file = Path(os.environ[DRAIN_FILE])
        self._url = f"{endpoint.url}/ready"
        self._report = report
        self._queues = queues or QueueActors()
        self._transport = transport
        self._clock = clock
        self._sleep = sleep
        self._reported = ""
        self._requests = 1  # there may be one, until the proxy tells

    def run(self, timeout_s: float) -> None:
        """Return when nothing is left, or after ``timeout_s`` seconds."""
        deadline = self._clock() + timeout_s
        jobs = 0
        self._write({SECONDS_LEFT: timeout_s})
        with httpx.Client(timeout=CALL_TIMEOUT_S, transport=self._transport) as client:
            while True:
                jobs = self._queues.drain()
                self._write({"jobs": jobs, SECONDS_LEFT: round(deadline - self._clock(), 1)})
                requests = self._count_requests(client)
                self._tell(
                    f"{_count(requests, 'request')} in flight, {_count(jobs, 'job')} running"
                )
                if not (requests or jobs):
                    break
                if self._clock() >= deadline:
                    self._tell(f"what is left ends now, after {timeout_s:g} s; jobs go on later")
                    break
                self._sleep(PERIOD_S)
        if jobs:
            self._queues.hand_over()

    def _count_requests(self, client: httpx.Client) -> int:
        """Return how many requests are in flight; 0 if there is no proxy any more.

        A proxy that is too busy to tell may still be in the middle of answers.
        """
        try:
            self._requests = int(client.get(self._url).json().get("requests", 1))
        except httpx.ConnectError:
            self._requests = 0
        except (httpx.HTTPError, ValueError):
            self._requests = max(1, self._requests)
        return self._requests

    def _tell(self, text: str) -> None:
        if text != self._reported:
            self._reported = text
            self._report(text)

    def _write(self, drain: dict[str, Any]) -> None:
        """Renew the file in one step: nobody may read half of it."""
        new = self._file.with_suffix(".new")
        new.write_text(json.dumps(drain))
        new.replace(self._file)


class QueueActors(JobQueues):
    """The queues of this Ray cluster. Those that don't answer count as idle: their jobs are safe in
    the store."""

    def drain(self) -> int:
        return sum(self._call("drain"))

    def hand_over(self) -> None:
        self._call("hand_over", CALL_TIMEOUT_S)

    def _call(self, method: str, *arguments: Any) -> list[Any]:
        try:
            actors = find_queue_actors()
            calls = [getattr(actor, method).remote(*arguments) for actor in actors]
            return list(ray.get(calls, timeout=CALL_TIMEOUT_S))
        except (RayError, ValueError):  # ValueError: it has just ended
            return []


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
