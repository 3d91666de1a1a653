"""The jobs dialect: background jobs, their events, and their webhook deliveries."""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing, suppress
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Request, Response
from starlette.responses import JSONResponse
from starlette.types import Scope

from raylens.api import sse
from raylens.api.answers import EVENTS, answers
from raylens.api.answers import jobs as shapes
from raylens.api.job_json import (
    FIELDS,
    LIST_FIELDS,
    delivery_as_json,
    find_bulky,
    job_as_json,
    parse_fields,
)
from raylens.api.job_request import JobReader, JobRequest
from raylens.api.own_jobs import owner_of_request
from raylens.core.errors import InvalidRequest, PermissionDenied, Unauthorized, UnknownJob
from raylens.jobs.changed_jobs import ChangedJobs
from raylens.jobs.feed import JobFeed
from raylens.jobs.job import Job, JobState, unknown_job
from raylens.jobs.ports import JobService
from raylens.jobs.store import MAX_DELIVERIES, JobQuery

PATH = "/api/v1/jobs"
MAX_PAGE = 1000
MAX_IDS = 200
"""Ids in ``ids``: they have to fit into a URL."""
MAX_DIGEST_CHARS = 64
MAX_DELIVERY_NUMBER = 2**31 - 1
KEEPALIVE_S = 15.0
_EVENT_ANSWERS = answers(None, EVENTS)
_EVENT_ANSWERS["responses"][204] = {
    "description": "Last-Event-ID is the last event of a job that has ended"
}
_JOB_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def _like(pattern: str) -> Any:
    """Return a parameter that is described by a pattern. The route checks it itself, and says what
    is wrong in better words."""
    return Query(json_schema_extra={"pattern": f"^({pattern})?$"})


def like_job_id() -> Any:
    """Return a parameter that is a job's id or empty."""
    return _like(_JOB_ID.pattern)


def _list_of(names: Iterable[str]) -> Any:
    """Return a parameter that is described as a comma-separated list of names."""
    return _like(f"({'|'.join(names)}|,)*")


def router(
    reader: JobReader, jobs: JobService, feed: JobFeed, authorize: Callable[[Scope], None]
) -> APIRouter:
    """Return the dialect's routes. ``authorize`` raises if a client may not go on."""
    routes = APIRouter(prefix=PATH, tags=["Jobs"])

    @routes.post("", status_code=202, summary="Submit a job", **answers(shapes.Job, status=202))
    async def submit(body: JobRequest, http: Request) -> JSONResponse:
        job = await reader.submit(http, body, jobs)
        location = f"{http.scope.get('root_path', '')}{PATH}/{job.id}"
        return JSONResponse(job_as_json(job), 202, {"Location": location})

    @routes.get(
        "/events",
        summary="Stream what changes of all jobs as server-sent events",
        **answers(None, EVENTS),
    )
    async def all_events(
        http: Request,
        fields: Annotated[str, _list_of(FIELDS)] = "",
        last_event_id: Annotated[str, Header()] = "",
    ) -> Any:
        shown = parse_fields(fields)
        check_key = partial(authorize, http.scope)
        return await sse.stream(_all_events(feed, shown, last_event_id, check_key))

    @routes.get(
        "/{job_id}/events",
        summary="Stream a job's state and progress as server-sent events until it ends",
        **_EVENT_ANSWERS,
    )
    async def events(job_id: str, last_event_id: Annotated[str, Header()] = "") -> Any:
        job = (await jobs.get_many([check_job_id(job_id)], ())).get(job_id)
        if job is None:
            raise unknown_job(job_id)
        if job.state.is_terminal and _event_id(job) == last_event_id:
            return Response(status_code=204)  # by which clients stop to reconnect
        return await sse.stream(_events(feed, job_id, last_event_id))

    _add_listing(routes, jobs)
    _add_job_routes(routes, jobs)
    _add_delivery_routes(routes, jobs)
    return routes


def _add_listing(routes: APIRouter, jobs: JobService) -> None:
    @routes.get("", summary="List the jobs, newest first", **answers(shapes.JobPage))
    async def list_jobs(
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 100,
        status: Annotated[str, _list_of(JobState)] = "",
        cursor: Annotated[str, like_job_id()] = "",
        fields: Annotated[str, _list_of(FIELDS)] = "",
        ids: str = "",
    ) -> dict[str, Any]:
        shown = parse_fields(fields)
        states = _parse_states(status)
        before_id = check_cursor(cursor)
        if ids:
            by_id = await jobs.get_many(_parse_ids(ids), find_bulky(shown))
            found = [job for job in by_id.values() if not states or job.state in states]
            found.sort(key=lambda job: job.id, reverse=True)
            return {"jobs": [job_as_json(job, shown) for job in found], "next_cursor": None}
        # One job more than the limit tells whether a next page exists.
        matches = await jobs.list_jobs(
            JobQuery(limit + 1, states, before_id=before_id, bulky_fields=find_bulky(shown))
        )
        page = matches[:limit]
        return {
            "jobs": [job_as_json(job, shown) for job in page],
            "next_cursor": page[-1].id if len(matches) > limit else None,
        }


def _add_job_routes(routes: APIRouter, jobs: JobService) -> None:
    @routes.get("/{job_id}", summary="Show a job", **answers(shapes.Job))
    async def get(job_id: str) -> dict[str, Any]:
        return job_as_json(await jobs.get(check_job_id(job_id)))

    @routes.get(
        "/{job_id}/pictures/{digest}",
        summary="Download a picture of a job",
        **answers(None, "application/octet-stream"),
    )
    async def picture(job_id: str, digest: str) -> Response:
        data = await jobs.read_picture(check_job_id(job_id), digest[:MAX_DIGEST_CHARS])
        # A browser must never take what somebody has sent for a page of this server.
        headers = {"Content-Disposition": "attachment", "X-Content-Type-Options": "nosniff"}
        return Response(data, media_type="application/octet-stream", headers=headers)

    @routes.put("/{job_id}", summary="Queue a failed or canceled job again", **answers(shapes.Job))
    async def retry(job_id: str) -> dict[str, Any]:
        return job_as_json(await jobs.requeue(check_job_id(job_id)))

    @routes.delete(
        "/{job_id}", summary="Cancel a job, or remove one that has ended", **answers(shapes.Job)
    )
    async def delete(job_id: str) -> dict[str, Any]:
        job = await jobs.get(check_job_id(job_id))
        if job.state.is_terminal:
            return job_as_json(await jobs.remove(job_id))
        return job_as_json(await jobs.cancel(job_id))  # Conflict if it has just ended

    @routes.post("/{job_id}/cancel", summary="Cancel a job", **answers(shapes.Job))
    async def cancel(job_id: str) -> dict[str, Any]:
        return job_as_json(await jobs.cancel(check_job_id(job_id)))


def _add_delivery_routes(routes: APIRouter, jobs: JobService) -> None:
    @routes.get(
        "/{job_id}/deliveries",
        summary="List the last deliveries of a job's webhooks, of those before a number",
        **answers(shapes.Deliveries),
    )
    async def deliveries(
        job_id: str,
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = MAX_DELIVERIES,
        before: Annotated[int | None, Query(ge=1, le=MAX_DELIVERY_NUMBER)] = None,
    ) -> dict[str, Any]:
        page = await jobs.deliveries(check_job_id(job_id), limit, before)
        return {"deliveries": [delivery_as_json(delivery) for delivery in page]}

    @routes.post(
        "/{job_id}/deliveries/{number}/redeliver",
        status_code=202,
        summary="Send a delivery again",
        **answers(shapes.Delivery, status=202),
    )
    async def redeliver(job_id: str, number: Annotated[int, Path(ge=1)]) -> dict[str, Any]:
        if number > MAX_DELIVERY_NUMBER:
            raise UnknownJob(f"delivery: job {job_id[:64]} has no such delivery", "delivery")
        return delivery_as_json(await jobs.redeliver(check_job_id(job_id), number))


def check_job_id(job_id: str) -> str:
    """Return ``job_id`` if it has the form of this server's ids.

    No job has an id of another form: raises ``UnknownJob`` without a look-up.
    """
    if not _JOB_ID.fullmatch(job_id):
        raise unknown_job(job_id)
    return job_id


def check_cursor(cursor: str) -> str | None:
    """Return a cursor, None if it is empty. Raises ``InvalidRequest`` if it is malformed."""
    if cursor and not _JOB_ID.fullmatch(cursor):
        raise InvalidRequest("cursor: expected the next_cursor of a page", "cursor")
    return cursor or None


def _parse_states(status: str) -> frozenset[JobState]:
    names = [name for name in status.split(",") if name]
    known = [state.value for state in JobState]
    for name in names:
        if name not in known:
            raise InvalidRequest(
                f"status: unknown state {name[:32]!r}; known: {', '.join(known)}", "status"
            )
    return frozenset(map(JobState, names))


def _parse_ids(ids: str) -> frozenset[str]:
    job_ids = frozenset(job_id for job_id in ids.split(",") if _JOB_ID.fullmatch(job_id))
    if len(job_ids) > MAX_IDS:
        raise InvalidRequest(
            f"ids: {len(job_ids)} ids; the limit is {MAX_IDS}", "ids", MAX_IDS, len(job_ids)
        )
    return job_ids


async def _events(feed: JobFeed, job_id: str, last_event_id: str) -> AsyncGenerator[str, None]:
    """Yield ``state`` first and on every change of state, attempt or error, and ``progress`` in
    between.

    A client that reconnects doesn't get the event again that it has got last. Comments keep the
    connection alive. If this process drains, the stream ends before the job does, and the client
    has to reconnect.
    """
    previous: Job | None = None
    async with aclosing(feed.watch(job_id, KEEPALIVE_S)) as versions:
        async for job in versions:
            if job is previous or (previous is None and _event_id(job) == last_event_id):
                yield ": keepalive\n\n"
            elif previous is None or _state_of(job) != _state_of(previous):
                yield _job_event("state", job)
            else:
                yield _job_event("progress", job)
            previous = job
    if feed.is_handed_over and previous is not None and not previous.state.is_terminal:
        yield sse.handover()


async def _all_events(
    feed: JobFeed, shown: frozenset[str], last_event_id: str, check_key: Callable[[], None]
) -> AsyncGenerator[str, None]:
    """Yield ``job`` for each job that has changed, ``removed`` for each that is gone, and ``reset``
    if any may have changed. The stream ends if the client's key is taken away.

    The id of an event is the cursor of the changes with which a client that reconnects goes on.
    """
    batches = feed.watch_all(last_event_id, owner_of_request(), find_bulky(shown), KEEPALIVE_S)
    with suppress(Unauthorized, PermissionDenied):
        async with aclosing(batches):
            async for changed in batches:
                check_key()
                yield _changed_events(changed, shown) or ": keepalive\n\n"
    yield sse.handover()


def _changed_events(changed: ChangedJobs, shown: frozenset[str]) -> str:
    if changed.versions is None:
        return sse.event({}, "reset", changed.cursor)
    # Whoever loses the connection in between gets all of them again.
    last = len(changed.versions) - 1
    return "".join(
        sse.event(
            {"id": job_id} if job is None else job_as_json(job, shown),
            "removed" if job is None else "job",
            changed.cursor if index == last else "",
        )
        for index, (job_id, job) in enumerate(changed.versions.items())
    )


def _state_of(job: Job) -> tuple[Any, ...]:
    return job.state, job.attempts, job.problem


def _event_id(job: Job) -> str:
    """Return the same id in every process for what an event shows of a job."""
    shown = repr((*_state_of(job), job.progress))
    return hashlib.blake2b(shown.encode(), digest_size=8).hexdigest()


def _job_event(name: str, job: Job) -> str:
    return sse.event(job_as_json(job, LIST_FIELDS), name, _event_id(job))
