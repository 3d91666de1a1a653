"""An HTTP client for the server's job queue."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Self
from urllib.parse import quote, urlencode

import httpx

from raylens.cli.errors import BUSY, RESTARTING, StatusError, Unreachable
from raylens.net.retry_after import parse_retry_after

Job = dict[str, Any]
"""A job as the server's JSON describes it; docs/jobs.md lists the fields."""

PATH = "/api/v1/jobs"
DEFAULT_SERVER = "http://127.0.0.1:8000"
KEY_VARIABLE = "RAYLENS_API_KEY"
"""The environment variable with the API key. On the command line, other users could see it."""
SUCCEEDED = "succeeded"
FAILED = "failed"
CANCELED = "canceled"
TERMINAL = frozenset({SUCCEEDED, FAILED, CANCELED})
PAGE_SIZE = 100
MAX_IDS = 200
"""Most jobs that one request may ask for by their ids."""
NO_ROUTES = "/-/routes"
"""In the text of Ray Serve's 404, while its proxy has no application to send requests to."""
MIN_WAIT_S = 0.2
"""Shortest wait between two attempts, and the first backoff."""
MAX_RETRY_AFTER_S = 30.0
"""Longest ``Retry-After`` that is obeyed."""
DEFAULT_RETRY_AFTER_S = 1.0
"""Wait for a busy server that sends no ``Retry-After``."""
MAX_BACKOFF_S = 5.0
TIMEOUT = httpx.Timeout(60.0, connect=10.0, pool=None)
"""A stream of events sends at least a comment every 15 s, well within the read timeout."""
_OUTAGE = "outage"
"""A reason to wait. The others are the statuses of a busy server; each is reported once."""


def check_server(server: str) -> str:
    """Return the server's base URL, also for a URL such as OpenAI's clients take, with ``/v1``.

    Raises ``ValueError`` if it is not an HTTP URL.
    """
    try:
        url = httpx.URL(server)
    except httpx.InvalidURL as error:
        raise ValueError(f"{server!r}: {error}") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError(f"{server!r}: expected a URL such as {DEFAULT_SERVER}")
    return server.rstrip("/").removesuffix("/v1")


class Client:
    """A client of the job queue that retries its requests.

    The server may be busy, or restart, in the middle of a long run.

    ``patience_s``: how long a failing request is retried. ``waits_while_busy``: wait without limit
    if the server is only busy (429, 503, 507). ``notify`` receives a message about each reason to
    wait, once. ``sleep`` waits for a number of seconds. All methods raise ``ClientError``.

    The API key comes from the environment variable ``RAYLENS_API_KEY``.
    """

    def __init__(
        self,
        server: str = DEFAULT_SERVER,
        patience_s: float = 60.0,
        *,
        waits_while_busy: bool = False,
        notify: Callable[[str], None] = lambda message: None,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.server = server
        self.patience_s = patience_s
        self.waits_while_busy = waits_while_busy
        self.sleep = sleep
        self.last_response_at = 0.0
        self._notify = notify
        self._notified_reasons: set[str] = set()
        key = os.environ.get(KEY_VARIABLE)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        self._http = httpx.AsyncClient(
            base_url=server,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=TIMEOUT,
            limits=limits,
            transport=transport,
        )

    async def __aenter__(self) -> Self:
        await self._http.__aenter__()
        return self

    async def __aexit__(self, *exception: Any) -> None:
        await self._http.__aexit__(*exception)

    async def ask(self, path: str, body: dict[str, Any]) -> Job:
        """Post JSON to a route that changes nothing, and return its answer."""
        return await self._call("POST", path, json=body)

    async def ask_once(self, path: str, body: dict[str, Any]) -> Job:
        """Post JSON as :meth:`ask` does, without trying again.

        Raises ``StatusError`` and ``httpx.TransportError``.
        """
        response = await self._http.post(path, json=body)
        self._check_status(response)
        return _parse_object(response)

    async def submit(self, body: bytes, key: str) -> Job:
        """Submit a job as JSON. The same ``key`` with the same body returns the same job."""
        headers = {"Content-Type": "application/json", "Idempotency-Key": key}
        return await self._call("POST", PATH, content=body, headers=headers)

    async def get(self, job_id: str) -> Job:
        return await self._call("GET", _path(job_id))

    async def retry(self, job_id: str) -> Job:
        """Queue a failed or canceled job again."""
        return await self._call("PUT", _path(job_id))

    async def cancel(self, job_id: str) -> Job:
        """Cancel a job. Raises ``StatusError`` (409) if it has succeeded or failed."""
        return await self._call("POST", f"{_path(job_id)}/cancel")

    async def delete(self, job_id: str) -> Job | None:
        """Cancel a job and return it; if it has ended, remove it, and return None.

        ``DELETE`` is not sent for a job that hasn't ended: if the answer were lost, a second one
        would remove the job that the first one canceled. Raises ``StatusError`` (409) if the job
        succeeds or fails just before it is canceled.
        """
        job = await self.get(job_id)
        if job["status"] not in TERMINAL:
            return await self.cancel(job_id)
        try:
            await self._call("DELETE", _path(job_id))
        except StatusError as error:
            # 404: it is removed already, perhaps by a request whose answer was lost.
            if error.status != 404:
                raise
        return None

    async def get_many(self, job_ids: Sequence[str], fields: Sequence[str]) -> list[Job]:
        """Return the given fields of the jobs, in any order. Jobs that don't exist are left out."""
        jobs: list[Job] = []
        for start in range(0, len(job_ids), MAX_IDS):
            ids = ",".join(job_ids[start : start + MAX_IDS])
            # An escaped comma would be three times as long, and a long URL may be refused.
            query = urlencode({"ids": ids, "fields": ",".join(fields)}, safe=",")
            page = await self._call("GET", f"{PATH}?{query}")
            jobs += page["jobs"]
        return jobs

    async def list_newest(self, limit: int, status: str = "") -> list[Job]:
        """Return at most ``limit`` jobs, newest first.

        ``status`` filters by state; several states are separated by commas.
        """
        jobs: list[Job] = []
        query = {"status": status} if status else {}
        while len(jobs) < limit:
            page_size = min(PAGE_SIZE, limit - len(jobs))
            page = await self._call("GET", PATH, params={"limit": page_size, **query})
            jobs += page["jobs"]
            if not page["next_cursor"]:
                break
            query["cursor"] = page["next_cursor"]
        return jobs

    async def follow(self, job_id: str) -> AsyncGenerator[Job, None]:
        """Yield the job, without its input, now and at each change until it ends.

        Reconnects if the stream breaks, so a state may be repeated, and if the server hands it
        over.
        """
        retry_policy = _RetryPolicy(self)
        events = _Events()
        while True:
            try:
                path = f"{_path(job_id)}/events"
                async with self._http.stream("GET", path, headers=events.headers) as response:
                    if not response.is_success:
                        await response.aread()
                    self._check_status(response)
                    async for job in events.read(response):
                        self._record_response()
                        retry_policy.record_response()
                        yield job
                        if job["status"] in TERMINAL:
                            return
                if events.reconnect_s is None:
                    raise httpx.RemoteProtocolError("the events ended before the job did")
                await self.sleep(events.reconnect_s)
            except (httpx.TransportError, StatusError) as error:
                await retry_policy.wait_or_raise(error)

    def notify_once(self, reason: str, message: str) -> None:
        """Send a message about a reason to wait, once for all requests that wait for it."""
        if reason not in self._notified_reasons:
            self._notified_reasons.add(reason)
            self._notify(message)

    async def _call(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        retry_policy = _RetryPolicy(self)
        while True:
            try:
                response = await self._http.request(method, path, **options)
                self._check_status(response)
                return _parse_object(response)
            except (httpx.TransportError, StatusError) as error:
                await retry_policy.wait_or_raise(error)

    def _check_status(self, response: httpx.Response) -> None:
        """Raise ``StatusError`` unless the response is a success.

        Any status but those of a restart shows that the server is up.
        """
        status = _status_of(response)
        if status not in RESTARTING:
            self._record_response()
        if not response.is_success:
            retry_after = parse_retry_after(response.headers.get("retry-after"), MAX_RETRY_AFTER_S)
            raise StatusError(status, _read_detail(response), retry_after)

    def _record_response(self) -> None:
        """Note that the server is up; the next outage is reported again."""
        self.last_response_at = time.monotonic()
        self._notified_reasons.discard(_OUTAGE)


class _RetryPolicy:
    """The retries of one request: their time limit and their backoff."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._failing_since: float | None = None
        self._backoff_s = MIN_WAIT_S

    def record_response(self) -> None:
        """Restart the time limit, since the server is up.

        The backoff stays as it is. Otherwise a stream that ends at once, again and again, would be
        requested at the fastest rate.
        """
        self._failing_since = None

    async def wait_or_raise(self, error: httpx.TransportError | StatusError) -> None:
        """Wait before the next attempt.

        Raises ``StatusError`` if a retry cannot help, and ``ClientError`` if time is up.
        """
        status = error.status if isinstance(error, StatusError) else None
        if status is not None and status not in BUSY | RESTARTING:
            raise error
        if status in BUSY and self._client.waits_while_busy:
            self.record_response()
            self._client.notify_once(f"busy: {status}", f"waiting for the server: {error}")
        else:
            self._check_patience(error)
        await self._client.sleep(self._next_wait_s(error) * random.uniform(1.0, 1.25))

    def _check_patience(self, error: httpx.TransportError | StatusError) -> None:
        """Raise ``ClientError`` if the request has failed for longer than the client's patience."""
        now = time.monotonic()
        if self._failing_since is None:
            self._failing_since = now
        server = self._client.server
        patience = self._client.patience_s
        reason = str(error) or type(error).__name__
        if now < self._failing_since + patience:
            message = f"{server}: {reason}; retrying for up to {patience:g} s"
            self._client.notify_once(_OUTAGE, message)
            return
        if isinstance(error, StatusError):
            raise error
        raise Unreachable(
            f"{server}: no response for {patience:g} s: {reason}. "
            "Is the server running, and is --server correct?",
            server_is_up=self._client.last_response_at > self._failing_since,
        ) from None

    def _next_wait_s(self, error: httpx.TransportError | StatusError) -> float:
        if isinstance(error, StatusError) and error.status in BUSY:
            wait = DEFAULT_RETRY_AFTER_S if error.retry_after is None else error.retry_after
            return min(max(wait, MIN_WAIT_S), MAX_RETRY_AFTER_S)
        wait = self._backoff_s
        self._backoff_s = min(2 * wait, MAX_BACKOFF_S)
        return wait


def _status_of(response: httpx.Response) -> int:
    """Return the status; 502 for the 404 of a proxy that has no application yet.

    That 404 says nothing about the path, so nobody may take it for a job that is gone.
    """
    if response.status_code == 404 and NO_ROUTES in response.text:
        return 502
    return response.status_code


def _path(job_id: str) -> str:
    return f"{PATH}/{quote(job_id, safe='')}"


def _parse_object(response: httpx.Response) -> dict[str, Any]:
    """Return the response's JSON object. Raises ``StatusError`` if it holds none."""
    try:
        body = response.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise StatusError(
            response.status_code,
            f"{response.url}: expected a JSON object; is this a raylens server?",
        )
    return body


def _read_detail(response: httpx.Response) -> str:
    """Return the message of an error, in the shape of our own API or of OpenAI's."""
    with suppress(ValueError, KeyError, TypeError):
        body = response.json()
        return str(body["detail"] if "detail" in body else body["error"]["message"])
    return f"{response.status_code} {response.text[:200].strip() or response.reason_phrase}"


class _Events:
    """Reads streams of server-sent events (WHATWG HTML, section 9.2), one line of data per event.

    Comments are skipped.
    """

    def __init__(self) -> None:
        self._last_id = ""
        self.reconnect_s: float | None = None
        """When to reconnect, if the server has ended the last stream to hand it over."""

    @property
    def headers(self) -> dict[str, str]:
        """What lets the next stream begin after the last event."""
        return {"Last-Event-ID": self._last_id} if self._last_id else {}

    async def read(self, response: httpx.Response) -> AsyncIterator[Job]:
        self.reconnect_s = None
        async for line in _read_lines(response):
            name, _, value = line.partition(b":")
            if name == b"data":
                yield json.loads(value)
            elif name == b"id":
                self._last_id = value.strip().decode("ascii", "ignore")
            elif name == b"retry" and value.strip().isdigit():
                self.reconnect_s = int(value) / 1000


async def _read_lines(response: httpx.Response) -> AsyncIterator[bytes]:
    """Yield the lines that end with LF.

    ``httpx.Response.aiter_lines`` also splits at U+2028 and U+0085, which a caption may contain.
    """
    rest = b""
    async for chunk in response.aiter_bytes():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line
