"""Requests for watches: their sources, settings and webhooks."""

from __future__ import annotations

import hashlib
import json
import time
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from raylens.api.context import Context
from raylens.api.job_request import JobReader
from raylens.api.model_selection import select_model
from raylens.core.config import AppConfig
from raylens.core.errors import InvalidRequest, UnknownSession
from raylens.core.wire import Body, Text
from raylens.jobs.job import Job, Webhook, compute_rank, new_id
from raylens.jobs.types.base import ENDLESS_S
from raylens.jobs.types.watch import (
    EVENT_ENDED,
    EVENT_STARTED,
    EVENTS,
    JOB_TYPE,
    RESULT,
    WatchInput,
    find_session,
)
from raylens.net.address import AllowList
from raylens.net.lookup import LookUp, look_up
from raylens.realtime.pipeline import task_of
from raylens.realtime.ports import SessionClient, WebRtcService
from raylens.realtime.sessions import check_frames, validate_settings
from raylens.realtime.settings import MoondreamConfig, MoondreamFeature
from raylens.realtime.sources.guard import SourceGuard

MAX_SOURCE_CHARS = 2048
MAX_FPS = 30.0
MAX_ATTEMPTS = 100
"""In a row that end before they have begun: each that has begun is progress."""
DEFAULTS = {"temperature": 0.0, "tracking": False, "inference_interval": 1}
"""Settings of the pipeline that suit video which nobody looks at: ``fps`` takes the place of the
interval."""
_STARTS_AND_ENDS = (EVENT_STARTED, EVENT_ENDED)


class WebhookFields(Body):
    url: Text
    secret: Text | None = None


def _read_webhook(value: Any) -> Any:
    return {"url": value} if isinstance(value, str) else value


class WatchRequest(Body):
    """Body of ``POST /api/v1/watches``."""

    source: Annotated[str, Field(min_length=1, max_length=MAX_SOURCE_CHARS)]
    """``rtsp://…``, ``http://…`` (MJPEG, or a picture), a folder under ``media_root``, or
    ``session:ID``."""
    fps: Annotated[float, Field(gt=0, le=MAX_FPS)] = 1.0
    """Frames that the model sees in a second, at most."""
    pipeline: Annotated[dict[str, Any], Field(default_factory=dict)]
    """Settings of the Moondream pipeline."""
    events: Annotated[list[Literal[EVENTS]], Field(max_length=16)] | None = None  # type: ignore[valid-type]
    """What the webhook is told. If unset: starts and ends, or for captions, each result."""
    webhook: Annotated[WebhookFields | None, BeforeValidator(_read_webhook)] = None

    def chosen_events(self, default: tuple[str, ...]) -> tuple[str, ...]:
        return default if self.events is None else tuple(self.events)

    @property
    def digest(self) -> str:
        """SHA-256 of the request."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def source_guard(config: AppConfig, look_up: LookUp = look_up) -> SourceGuard:
    """Return what admits the sources that a configuration allows. Raises ``ValueError``."""
    hosts = AllowList.parse(config.jobs.watches.allow, excludes_others=True)
    return SourceGuard(hosts, config.media_root, look_up)


class WatchReader:
    """Turns requests into the jobs of watches."""

    def __init__(
        self,
        context: Context,
        jobs: JobReader,
        look_up: LookUp,
        webrtc: WebRtcService | None,
    ) -> None:
        self._context = context
        self._jobs = jobs
        self._guard = source_guard(context.config, look_up)
        self._webrtc = webrtc

    async def read(self, body: WatchRequest, client: SessionClient) -> Job:
        """Raises ``InvalidRequest``, ``UnknownModel`` and ``UnknownSession``."""
        session_id = find_session(body.source)
        if session_id is None:
            watch_input = await self._read_source(body)
        else:
            watch_input = await self._read_session(body, session_id, client)
        webhook = None
        if body.webhook is not None:
            webhook = Webhook(body.webhook.url, body.webhook.secret)
            await self._jobs.check_webhook(webhook, "webhook.url", "webhook.secret")
        return _make_job(watch_input, webhook, body.digest)

    async def _read_source(self, body: WatchRequest) -> WatchInput:
        given = {**DEFAULTS, **body.pipeline}
        settings = validate_settings(MoondreamConfig, given, "pipeline")
        check_frames(settings, self._context.config.realtime.max_frames, "pipeline")
        is_caption = settings.feature is MoondreamFeature.CAPTION
        events = body.chosen_events((RESULT,) if is_caption else _STARTS_AND_ENDS)
        if is_caption and not set(_STARTS_AND_ENDS).isdisjoint(events):
            raise InvalidRequest("events: captions have no start and end; choose result", "events")
        self._context.check_text_length(len(settings.prompt), "pipeline")
        await select_model(
            self._context, settings.model or None, "realtime", task_of(settings), "pipeline.model"
        )
        await self._guard.check(body.source)
        pipeline = settings.model_dump(mode="json", include=set(given))
        return WatchInput(source=body.source, fps=body.fps, pipeline=pipeline, events=events)

    async def _read_session(
        self, body: WatchRequest, session_id: str, client: SessionClient
    ) -> WatchInput:
        for name in ("fps", "pipeline"):
            if name in body.model_fields_set:
                raise InvalidRequest(f"{name}: the session has settings of its own", name)
        if self._webrtc is None:
            raise UnknownSession(f"source: unknown session {session_id[:100]!r}", "source")
        await self._webrtc.state(session_id, client)
        return WatchInput(source=body.source, events=body.chosen_events(_STARTS_AND_ENDS))


def _make_job(watch_input: WatchInput, webhook: Webhook | None, digest: str) -> Job:
    now = time.time()
    return Job(
        id=new_id(),
        type=JOB_TYPE,
        input=watch_input.model_dump(mode="json", exclude_unset=True),
        created_at=now,
        deadline=now + ENDLESS_S,
        max_attempts=MAX_ATTEMPTS,
        rank=compute_rank(0, now),
        webhook=webhook,
        digest=digest,
        run_after=now,
    )
