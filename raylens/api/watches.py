"""Watches: cameras and folders that the server looks at until it is told to stop.

Each is a job of the queue, with its guarantees: it survives restarts, and its webhooks are
delivered as those of other jobs.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Request
from pydantic import BeforeValidator, Field
from starlette.responses import JSONResponse

from raylens.api import sse
from raylens.api.answers import EVENTS as EVENT_STREAM
from raylens.api.answers import answers
from raylens.api.answers import watches as shapes
from raylens.api.context import Context
from raylens.api.job_request import JobReader, read_idempotency_key
from raylens.api.jobs import KEEPALIVE_S, MAX_PAGE, check_cursor, check_job_id, like_job_id
from raylens.api.model_selection import select_model
from raylens.core.config import AppConfig
from raylens.core.errors import InvalidRequest, QueueFull, UnknownJob
from raylens.core.wire import Body, Text
from raylens.jobs.feed import JobFeed
from raylens.jobs.job import Job, JobState, Webhook, compute_rank, new_id
from raylens.jobs.ports import JobService
from raylens.jobs.store import JobQuery
from raylens.jobs.types.base import ENDLESS_S
from raylens.jobs.types.watch import (
    EVENT_ENDED,
    EVENT_STARTED,
    EVENTS,
    JOB_TYPE,
    RESULT,
    WatchInput,
    WatchRecord,
)
from raylens.jobs.webhooks import format_timestamp
from raylens.net.address import AllowList
from raylens.net.lookup import LookUp, look_up
from raylens.realtime.pipeline import task_of
from raylens.realtime.sessions import check_frames, validate_settings
from raylens.realtime.settings import MoondreamConfig, MoondreamFeature
from raylens.realtime.sources.guard import SourceGuard, shown_source

PATH = "/api/v1/watches"
MAX_SOURCE_CHARS = 2048
MAX_FPS = 30.0
RETRY_AFTER_S = 60.0
DEFAULTS = {"temperature": 0.0, "tracking": False, "inference_interval": 1}
"""Settings of the pipeline that suit video which nobody looks at: ``fps`` takes the place of the
interval."""
_ACTIVE = (JobState.QUEUED, JobState.RUNNING)
_LISTED_EVENTS = Literal[EVENTS]  # type: ignore[valid-type]


class WebhookFields(Body):
    url: Text
    secret: Text | None = None


def _read_webhook(value: Any) -> Any:
    return {"url": value} if isinstance(value, str) else value


class WatchRequest(Body):
    """Body of ``POST /api/v1/watches``."""

    source: Annotated[str, Field(min_length=1, max_length=MAX_SOURCE_CHARS)]
    """``rtsp://…``, ``http://…`` (MJPEG, or a picture), or a folder under ``media_root``."""
    fps: Annotated[float, Field(gt=0, le=MAX_FPS)] = 1.0
    """Frames that the model sees in a second, at most."""
    pipeline: Annotated[dict[str, Any], Field(default_factory=dict)]
    """Settings of the Moondream pipeline."""
    events: list[_LISTED_EVENTS] | None = None
    """What the webhook is told. Unset means starts and ends; of captions, each result."""
    webhook: Annotated[WebhookFields | None, BeforeValidator(_read_webhook)] = None


def router(
    context: Context,
    reader: JobReader,
    jobs: JobService,
    all_jobs: JobService,
    feed: JobFeed,
    guard: SourceGuard,
) -> APIRouter:
    """Return the routes. ``jobs`` are those of the client, and ``all_jobs`` everybody's."""
    routes = APIRouter(prefix=PATH, tags=["Live video"])
    limit = context.config.jobs.watches.max_running

    @routes.post("", status_code=202, summary="Start a watch", **answers(shapes.Watch, status=202))
    async def start(body: WatchRequest, http: Request) -> JSONResponse:
        key, digest = read_idempotency_key(http), _digest(body)
        job = None if key is None else await jobs.find_submitted(key, digest)
        if job is None:
            watch_input = await _check(context, guard, body)
            webhook = await _check_webhook(reader, body)
            await _check_room(all_jobs, limit)
            job = await jobs.submit(_make_job(watch_input, webhook, key, digest), {})
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
        **answers(None, EVENT_STREAM),
    )
    async def events(watch_id: str, last_event_id: Annotated[str, Header()] = "") -> Any:
        job = await _get(jobs, watch_id)
        return await sse.stream(_events(feed, jobs, job, last_event_id))

    @routes.put("/{watch_id}", summary="Start a watch again", **answers(shapes.Watch))
    async def restart(watch_id: str) -> dict[str, Any]:
        job = await _get(jobs, watch_id)
        if job.state not in _ACTIVE:
            await _check_room(all_jobs, limit)
        return watch_as_json(await jobs.requeue(job.id))

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


def source_guard(config: AppConfig, look_up: LookUp = look_up) -> SourceGuard:
    """Return what admits the sources that a configuration allows. Raises ``ValueError``."""
    hosts = AllowList.parse(config.jobs.watches.allow, excludes_others=True)
    return SourceGuard(hosts, config.media_root, look_up)


async def _check(context: Context, guard: SourceGuard, body: WatchRequest) -> WatchInput:
    """Return the input of a watch's job. Raises ``InvalidRequest`` and ``UnknownModel``."""
    given = {**DEFAULTS, **body.pipeline}
    settings = validate_settings(MoondreamConfig, given, "pipeline")
    check_frames(settings, context.config.realtime.max_frames, "pipeline")
    is_caption = settings.feature is MoondreamFeature.CAPTION
    events = body.events
    if events is None:
        events = [RESULT] if is_caption else [EVENT_STARTED, EVENT_ENDED]
    elif is_caption and not {EVENT_STARTED, EVENT_ENDED}.isdisjoint(events):
        raise InvalidRequest("events: captions have no start and end; choose result", "events")
    context.check_text_length(len(settings.prompt), "pipeline")
    await select_model(
        context, settings.model or None, "realtime", task_of(settings), "pipeline.model"
    )
    await guard.check(body.source)
    return WatchInput(
        source=body.source,
        fps=body.fps,
        pipeline=settings.model_dump(mode="json", include=given.keys()),
        events=tuple(events),
    )


async def _check_webhook(reader: JobReader, body: WatchRequest) -> Webhook | None:
    if body.webhook is None:
        return None
    webhook = Webhook(body.webhook.url, body.webhook.secret)
    return await reader.check_webhook(webhook, "webhook.url", "webhook.secret")


async def _check_room(jobs: JobService, limit: int) -> None:
    """Raise ``QueueFull`` if there are as many watches as there may be."""
    active = await jobs.list_jobs(JobQuery(limit, _ACTIVE, JOB_TYPE, bulky_fields=()))
    if len(active) >= limit:
        raise QueueFull(
            f"{len(active)} watches run; the limit is {limit} (jobs.watches.max_running)",
            "jobs.watches.max_running",
            limit,
            len(active),
            RETRY_AFTER_S,
        )


def _make_job(
    watch_input: WatchInput, webhook: Webhook | None, key: str | None, digest: str
) -> Job:
    now = time.time()
    return Job(
        id=new_id(),
        type=JOB_TYPE,
        input=watch_input.model_dump(mode="json", exclude_unset=True),
        created_at=now,
        deadline=now + ENDLESS_S,
        max_attempts=100,  # in a row, of which none has begun
        rank=compute_rank(0, now),
        webhook=webhook,
        idempotency_key=key,
        digest=digest,
        run_after=now,
    )


def _digest(body: WatchRequest) -> str:
    text = json.dumps(body.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


async def _get(jobs: JobService, watch_id: str) -> Job:
    """Return the job of a watch. Raises ``UnknownJob``."""
    job = (await jobs.get_many([check_job_id(watch_id)])).get(watch_id)
    if job is None or job.type != JOB_TYPE:
        raise UnknownJob(f"watch_id: unknown watch {watch_id[:64]!r}", "watch_id")
    return job


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


async def _events(
    feed: JobFeed, jobs: JobService, job: Job, last_event_id: str
) -> AsyncGenerator[str, None]:
    """Yield ``state`` first and if it changes, ``result`` for the newest result, and ``event`` for
    each event.

    A client that reconnects gets the events after the last one that it has got. Comments keep the
    connection alive. If this process drains, the stream ends, and the client has to reconnect.
    """
    last_event = int(last_event_id) if last_event_id.isdecimal() else None
    state: Any = None
    result: Any = None
    async with aclosing(feed.watch(job.id, KEEPALIVE_S)) as versions:
        previous: Job | None = None
        async for version in versions:
            if version is previous:
                yield ": keepalive\n\n"
                continue
            previous = version
            watch = watch_as_json(await _get(jobs, job.id))
            recent = watch["recent_events"]
            if last_event is None:
                last_event = recent[-1]["number"] if recent else 0
            new_state = (watch["status"], watch["error"], watch["connection"])
            if new_state != state:
                state = new_state
                yield sse.event({**watch, "recent_events": []}, "state")
            if watch["last_result"] not in (None, result):
                result = watch["last_result"]
                yield sse.event(result, "result")
            for event in recent:
                if event["number"] > last_event:
                    last_event = event["number"]
                    yield sse.event(event, "event", str(last_event))
    if feed.is_handed_over:
        yield sse.handover()
