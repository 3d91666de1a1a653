"""Watches: cameras and folders that the server looks at until it is told to stop.

Each is a job of the queue, with its guarantees: it survives restarts, and its webhooks are
delivered as those of other jobs.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from starlette.responses import JSONResponse, Response

from raylens.api import sse
from raylens.api.answers import EVENTS as EVENT_STREAM
from raylens.api.answers import answers
from raylens.api.answers import watches as shapes
from raylens.api.job_request import read_idempotency_key
from raylens.api.jobs import KEEPALIVE_S, MAX_PAGE, check_cursor, check_job_id, like_job_id
from raylens.api.watch_request import WatchReader, WatchRequest
from raylens.api.webrtc import identify_client
from raylens.core.errors import Conflict, UnknownJob
from raylens.jobs.feed import JobFeed
from raylens.jobs.job import Job, JobState
from raylens.jobs.ports import JobService
from raylens.jobs.store import JobQuery
from raylens.jobs.types.watch import JOB_TYPE, WatchRecord
from raylens.jobs.webhooks import format_timestamp
from raylens.realtime.sources.guard import shown_source

PATH = "/api/v1/watches"
_EVENT_ANSWERS = answers(None, EVENT_STREAM)
_EVENT_ANSWERS["responses"][204] = {
    "description": "Last-Event-ID is the last event of a watch that has ended"
}


def router(reader: WatchReader, jobs: JobService, feed: JobFeed) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(prefix=PATH, tags=["Live video"])

    @routes.post("", status_code=202, summary="Start a watch", **answers(shapes.Watch, status=202))
    async def start(body: WatchRequest, http: Request) -> JSONResponse:
        key = read_idempotency_key(http)
        earlier = None if key is None else await jobs.find_submitted(key, body.digest)
        if earlier is None:
            new = replace(await reader.read(body, identify_client(http)), idempotency_key=key)
        job = earlier or await jobs.submit(new, {})
        location = f"{http.scope.get('root_path', '')}{PATH}/{job.id}"
        return JSONResponse(watch_as_json(job), 202, {"Location": location})

    @routes.get("", summary="List the watches, newest first", **answers(shapes.WatchPage))
    async def list_watches(
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 100,
        cursor: Annotated[str, like_job_id()] = "",
    ) -> dict[str, Any]:
        # One more than the limit tells whether a next page exists.
        query = JobQuery(limit + 1, type=JOB_TYPE, before_id=check_cursor(cursor))
        matches = await jobs.list_jobs(query)
        page = matches[:limit]
        return {
            "watches": [watch_as_json(job) for job in page],
            "next_cursor": page[-1].id if len(matches) > limit else None,
        }

    @routes.get("/{watch_id}", summary="Show a watch", **answers(shapes.Watch))
    async def get(watch_id: str) -> dict[str, Any]:
        return watch_as_json(await _get(jobs, watch_id))

    @routes.get(
        "/{watch_id}/events",
        summary="Stream a watch's state, results and events as server-sent events",
        **_EVENT_ANSWERS,
    )
    async def events(watch_id: str, last_event_id: Annotated[str, Header()] = "") -> Any:
        job = await _get(jobs, watch_id)
        if job.state.is_terminal and last_event_id == _last_id(job):
            return Response(status_code=204)  # by which clients stop to reconnect
        return await sse.stream(_events(feed, job, last_event_id))

    @routes.put("/{watch_id}", summary="Start a watch again", **answers(shapes.Watch))
    async def restart(watch_id: str) -> dict[str, Any]:
        job = await _get(jobs, watch_id)
        if job.state.is_terminal:
            return watch_as_json(await jobs.requeue(job.id))
        raise Conflict(f"watch_id: the watch is {job.state}; stop it first", "watch_id")

    @routes.delete(
        "/{watch_id}",
        summary="Stop a watch, or remove one that has ended",
        **answers(shapes.Watch),
    )
    async def delete(watch_id: str) -> dict[str, Any]:
        job = await _get(jobs, watch_id)
        is_over = job.state.is_terminal
        return watch_as_json(await (jobs.remove(job.id) if is_over else jobs.cancel(job.id)))

    return routes


async def _get(jobs: JobService, watch_id: str) -> Job:
    """Return the job of a watch. Raises ``UnknownJob``."""
    with suppress(UnknownJob):
        job = (await jobs.get_many([check_job_id(watch_id)])).get(watch_id)
        if job is not None and job.type == JOB_TYPE:
            return job
    raise UnknownJob(f"watch_id: unknown watch {watch_id[:64]!r}", "watch_id")


def watch_as_json(job: Job) -> dict[str, Any]:
    """Return a watch as every route shows it, without passwords and secrets."""
    record = WatchRecord.read(job.output or {})
    problem = job.problem
    return {
        "id": job.id,
        "status": job.state.value,
        "source": shown_source(job.input["source"]),
        "fps": job.input.get("fps", 1.0),
        "pipeline": job.input.get("pipeline", {}),
        "events": job.input.get("events", []),
        "webhook_url": job.webhook and job.webhook.url,
        "created_at": format_timestamp(job.created_at),
        "started_at": format_timestamp(job.started_at),
        "finished_at": format_timestamp(job.finished_at),
        "error": problem
        and {"code": problem.code, "message": problem.message, "field": problem.field},
        "connection": _stamped(record.source) if job.state is JobState.RUNNING else None,
        "last_result": record.result and _stamped(record.result),
        "last_error": record.error and _stamped(record.error),
        "recent_events": [_stamped(event) for event in record.recent_events],
    }


def _stamped(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was told, with its time as text."""
    at = values.get("at")
    return {**values, "at": None if at is None else format_timestamp(at)}


async def _events(feed: JobFeed, job: Job, last_event_id: str) -> AsyncGenerator[str, None]:
    """Yield ``state`` first and if it changes, ``result`` for the newest result, and ``event`` for
    each event.

    A client that reconnects gets the events after the last one that it has got. Comments keep the
    connection alive. If this process drains, the stream ends, and the client has to reconnect.
    """
    last_event = _parse_id(last_event_id)
    state: Any = None
    result: Any = None
    previous: Job | None = None
    async with aclosing(feed.watch(job.id, KEEPALIVE_S, with_output=True)) as versions:
        async for version in versions:
            if version is previous:
                yield ": keepalive\n\n"
                continue
            previous = version
            watch = watch_as_json(replace(version, input=job.input))
            recent = watch["recent_events"]
            if last_event is None:
                last_event = recent[-1]["number"] if recent else 0
            if watch["last_result"] not in (None, result):
                result = watch["last_result"]
                yield sse.event(result, "result")
            for event in recent:
                if event["number"] > last_event:
                    last_event = event["number"]
                    yield sse.event(event, "event", str(last_event))
            new_state = (watch["status"], watch["error"], watch["connection"])
            if new_state != state:
                state = new_state
                event_id = _last_id(version) if version.state.is_terminal else ""
                yield sse.event({**watch, "recent_events": []}, "state", event_id)
    if feed.is_handed_over and previous is not None and not previous.state.is_terminal:
        yield sse.handover()


def _last_id(job: Job) -> str:
    """Return the id of the last event of the stream of a watch that has ended."""
    return f"{WatchRecord.read(job.output or {}).events}.{job.state}"


def _parse_id(last_event_id: str) -> int | None:
    """Return the number of the last event that a client has got; None if it has got none."""
    number = last_event_id.partition(".")[0]
    return int(number) if number.isdecimal() and len(number) < 19 else None
