"""The server's job queue, as its client sees it.

::

    ClientError
      Refused          the server has answered, and says no
      Unreachable      no answer came for as long as was waited
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any, Self
from urllib.parse import quote

import httpx

from raylens.net.retry_after import parse_retry_after

Job = dict[str, Any]
"""A job as the server shows it; docs/jobs.md has its fields."""

PATH = "/api/v1/jobs"
DEFAULT_SERVER = "http://127.0.0.1:8000"
SUCCEEDED, FAILED, CANCELED = "succeeded", "failed", "canceled"
ENDED = frozenset({SUCCEEDED, FAILED, CANCELED})
PAGE = 100
BUSY = frozenset({429, 503})
BROKEN = frozenset({500, 502, 504})
"""What a server and its proxy say while a part of it starts anew."""
LEAST_WAIT_S, LONGEST_WAIT_S, USUAL_WAIT_S = 0.2, 30.0, 1.0
"""Bounds of what ``Retry-After`` may ask for, and what is waited where it is missing."""
LONGEST_BACKOFF_S = 5.0
TIMEOUT = httpx.Timeout(60.0, connect=10.0, pool=None)
"""A stream of events sends something every 15 s."""


class ClientError(Exception):
    """The root; the message is for the person at the command line."""


class Refused(ClientError):
    """An error of the server's; the message is its ``detail``."""

    def __init__(self, status: int, detail: str, retry_after: float | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.retry_after = retry_after


class Unreachable(ClientError):
    """``answers_others``: in the meantime other requests were answered, so it is about this one."""

    def __init__(self, message: str, answers_others: bool = False) -> None:
        super().__init__(message)
        self.answers_others = answers_others


def check_server(server: str) -> str:
    """The URL of a server. Raises ``ValueError`` for what is none."""
    try:
        url = httpx.URL(server)
    except httpx.InvalidURL as error:
        raise ValueError(f"{server!r}: {error}") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError(f"{server!r} is no URL such as {DEFAULT_SERVER}")
    return server


class Client:
    """Asks again where that may help, so a server may be busy, or start anew, in the middle of a
    long run.

    ``patience_s``: how long a connection that fails is tried again. ``waits_for_room``: a server
    that is only busy (429, 503) is waited for without end. ``say`` is told, once, of whatever is
    waited for. All methods raise ``ClientError``.
    """

    def __init__(
        self,
        server: str = DEFAULT_SERVER,
        patience_s: float = 60.0,
        *,
        waits_for_room: bool = False,
        say: Callable[[str], None] = lambda text: None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.server = server
        self.patience_s = patience_s
        self.waits_for_room = waits_for_room
        self.heard_at = 0.0
        self._say = say
        self._told: set[str] = set()
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        self._http = httpx.AsyncClient(
            base_url=server, timeout=TIMEOUT, limits=limits, transport=transport
        )

    async def __aenter__(self) -> Self:
        await self._http.__aenter__()
        return self

    async def __aexit__(self, *raised: Any) -> None:
        await self._http.__aexit__(*raised)

    async def submit(self, body: bytes, key: str) -> Job:
        """Sends a job as JSON. The same ``key`` with the same body gives the job that it gave
        before."""
        headers = {"Content-Type": "application/json", "Idempotency-Key": key}
        return await self._call("POST", PATH, content=body, headers=headers)

    async def get(self, job_id: str) -> Job:
        return await self._call("GET", _path(job_id))

    async def retry(self, job_id: str) -> Job:
        """Queues a failed or canceled job again."""
        return await self._call("PUT", _path(job_id))

    async def cancel(self, job_id: str) -> Job:
        return await self._call("DELETE", _path(job_id))

    async def newest(self, limit: int, status: str = "") -> list[Job]:
        """At most so many jobs, the newest first; ``status`` is one or more states with commas
        between."""
        jobs: list[Job] = []
        where = {"status": status} if status else {}
        while len(jobs) < limit:
            page = await self._call(
                "GET", PATH, params={"limit": min(PAGE, limit - len(jobs)), **where}
            )
            jobs += page["jobs"]
            if not page["next_cursor"]:
                break
            where["cursor"] = page["next_cursor"]
        return jobs

    async def follow(self, job_id: str) -> AsyncGenerator[Job, None]:
        """The job now and at each change of it, without its input, until its end; connects anew
        where it must."""
        patience = _RetryPolicy(self)
        while True:
            try:
                async with self._http.stream("GET", f"{_path(job_id)}/events") as response:
                    if not response.is_success:
                        await response.aread()
                    self._check(response)
                    async for job in _events(response):
                        self._hear()
                        patience.renew()
                        yield job
                        if job["status"] in ENDED:
                            return
                raise httpx.RemoteProtocolError("the events ended before the job did")
            except (httpx.TransportError, Refused) as error:
                await patience.after(error)

    async def last(self, job_id: str) -> Job:
        """The job at its end, which is waited for."""
        job: Job = {}
        async for seen in self.follow(job_id):
            job = seen
        return job

    def tell(self, kind: str, text: str) -> None:
        """Says what is waited for: once, and not for every request that waits."""
        if kind not in self._told:
            self._told.add(kind)
            self._say(text)

    async def _call(self, method: str, path: str, **given: Any) -> Job:
        patience = _RetryPolicy(self)
        while True:
            try:
                response = await self._http.request(method, path, **given)
                self._check(response)
                return _json(response)
            except (httpx.TransportError, Refused) as error:
                await patience.after(error)

    def _check(self, response: httpx.Response) -> None:
        """Raises ``Refused`` for an error."""
        if response.status_code not in BROKEN:
            self._hear()
        if not response.is_success:
            raise Refused(
                response.status_code,
                _detail(response),
                parse_retry_after(response.headers.get("retry-after"), LONGEST_WAIT_S),
            )

    def _hear(self) -> None:
        self.heard_at = time.monotonic()
        self._told.discard(_RetryPolicy.LOST)


class _RetryPolicy:
    """How long one request goes on being tried."""

    LOST, ROOM = "lost", "room"

    def __init__(self, client: Client) -> None:
        self._client = client
        self._failing_since: float | None = None
        self._backoff_s = LEAST_WAIT_S

    def renew(self) -> None:
        """The server lives. The backoff stays: a stream that ends at once, again and again, isn't
        asked for faster."""
        self._failing_since = None

    async def after(self, error: httpx.TransportError | Refused) -> None:
        """Sleeps until the next try, or raises what the failure means where trying again won't do."""
        if isinstance(error, Refused) and error.status not in BUSY | BROKEN:
            raise error
        if isinstance(error, Refused) and error.status in BUSY and self._client.waits_for_room:
            self.renew()
            self._client.tell(self.ROOM, f"waiting for the server: {error}")
        else:
            self._bear(error)
        await asyncio.sleep(self._wait(error) * random.uniform(1.0, 1.25))

    def _bear(self, error: httpx.TransportError | Refused) -> None:
        """Raises once the patience is over."""
        now, patience = time.monotonic(), self._client.patience_s
        if self._failing_since is None:
            self._failing_since = now
        why = str(error) or type(error).__name__
        if now < self._failing_since + patience:
            self._client.tell(
                self.LOST, f"{self._client.server}: {why}; trying again for up to {patience:g} s"
            )
        elif isinstance(error, Refused):
            raise error
        else:
            heard = self._client.heard_at > self._failing_since
            message = f"{self._client.server}: no answer in {patience:g} s: {why}. Is the server up, and --server right?"
            raise Unreachable(message, heard) from None

    def _wait(self, error: httpx.TransportError | Refused) -> float:
        if isinstance(error, Refused) and error.status in BUSY:
            asked = USUAL_WAIT_S if error.retry_after is None else error.retry_after
            return min(max(asked, LEAST_WAIT_S), LONGEST_WAIT_S)
        wait = self._backoff_s
        self._backoff_s = min(2 * wait, LONGEST_BACKOFF_S)
        return wait


def _path(job_id: str) -> str:
    return f"{PATH}/{quote(job_id, safe='')}"


def _json(response: httpx.Response) -> Job:
    try:
        answer = response.json()
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise Refused(response.status_code, f"{response.url} answers without JSON: is it raylens?")
    return answer


def _detail(response: httpx.Response) -> str:
    try:
        return str(response.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return f"{response.status_code} {response.text[:200].strip() or response.reason_phrase}"


async def _events(response: httpx.Response) -> AsyncIterator[Job]:
    """The data of server-sent events (WHATWG HTML, section 9.2), one line each; comments are left
    out."""
    async for line in _lines(response):
        if line.startswith(b"data:"):
            yield json.loads(line.removeprefix(b"data:"))


async def _lines(response: httpx.Response) -> AsyncIterator[bytes]:
    """httpx's own lines end at U+2028 and U+0085 too, which a caption may hold."""
    rest = b""
    async for chunk in response.aiter_bytes():
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line
