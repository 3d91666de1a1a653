"""The HTTP application over a :class:`raylens.core.ports.VisionService`."""

from __future__ import annotations

from typing import Any, cast

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from starlette.types import Lifespan

from raylens import __version__
from raylens.api import (
    batches,
    caption_jobs,
    caption_service,
    completions,
    files,
    frame_socket,
    generate,
    moondream,
    ollama,
    ollama_models,
    openai,
    playground,
    preprocess,
    relay,
    responses,
    system,
    watches,
)
from raylens.api import jobs as job_routes
from raylens.api import pipelines as pipeline_routes
from raylens.api import status as status_routes
from raylens.api import webrtc as webrtc_routes
from raylens.api.access_log import (
    MODEL_HEADER,
    AccessLogMiddleware,
    RecordedService,
    RequestMetrics,
)
from raylens.api.auth import JOB_PATHS, AuthMiddleware
from raylens.api.client_limits import RATE_HEADERS, ClientLimitsMiddleware
from raylens.api.context import CheckMedia, Context
from raylens.api.contract import describe
from raylens.api.docs import add_pages
from raylens.api.draining import CLOSE_S, WebSocketDrainMiddleware
from raylens.api.errors import add_error_handlers
from raylens.api.job_request import JobReader
from raylens.api.media import Media
from raylens.api.middleware import (
    REQUEST_ID_HEADER,
    AdmissionMiddleware,
    RequestIdMiddleware,
)
from raylens.api.origins import LOCALHOST, OriginMiddleware, allows
from raylens.api.own_jobs import OwnJobs
from raylens.api.request_body import BodyReader
from raylens.api.routes import RouteTable
from raylens.api.shared import Shared
from raylens.api.watch_request import WatchReader
from raylens.core.catalog import Catalog
from raylens.core.config import AppConfig, AuthConfig
from raylens.core.key_source import KeySource
from raylens.core.live_settings import live_view
from raylens.core.ports import VisionService
from raylens.jobs.ports import JobService
from raylens.net.lookup import LookUp, look_up
from raylens.net.media_root import MediaRoot
from raylens.realtime.ports import WebRtcService
from raylens.status.ports import StatusSource

DIALECTS = (
    openai,
    responses,
    completions,
    ollama,
    ollama_models,
    moondream,
    caption_service,
    generate,
    preprocess,
    playground,
    system,
)
"""Modules of the dialects that need no job queue."""
EXPOSED_HEADERS = [
    REQUEST_ID_HEADER,
    MODEL_HEADER,
    "Retry-After",
    "Server-Timing",
    *RATE_HEADERS,
]
"""Headers that web pages of other origins may read."""
MULTIPART_BYTES = 64 * 2**10
"""What a multipart form may add to the size of its file."""


def create_app(
    service: VisionService,
    config: AppConfig,
    jobs: JobService | None = None,
    *,
    pipelines: pipeline_routes.PipelineDefaults | None = None,
    webrtc: WebRtcService | None = None,
    status: StatusSource | None = None,
    shared: Shared | None = None,
    metrics: RequestMetrics | None = None,
    lifespan: Lifespan[FastAPI] | None = None,
    check_media: CheckMedia = lambda media: None,
    look_up: LookUp = look_up,
    echo_request_id: bool = True,
) -> FastAPI:
    """Return an ASGI application over ``service``; with ``jobs``, it has the job routes too.

    ``pipelines`` remembers the pipelines that clients have loaded; the default is this process.
    With ``webrtc``, it has the routes of WebRTC, and with ``status`` that of the status.
    ``shared``, made for the same configuration and ``jobs``, is what this application has in common
    with others before and after it; whoever exchanges them publishes the next one there.
    ``metrics`` receives the record of each request. ``lifespan`` is FastAPI's.
    ``check_media`` checks the header of each picture and video of a job, and ``look_up`` finds the
    addresses of the hosts of webhooks and downloads. ``echo_request_id`` puts the request's id into
    the answer's headers. Turn it off behind a proxy that does the same. Raises ``ValueError`` if
    the configuration's keys can't be read.
    """
    shared = shared or Shared(config, jobs, look_up=look_up)
    app = FastAPI(
        title="raylens",
        version=__version__,
        description="Vision-language models behind the APIs of existing clients.",
        redirect_slashes=False,  # never answer a POST with a redirect
        docs_url=None,
        redoc_url=None,
        # Serve traces requests. FastAPI's own spans would begin a second trace of each, and its log
        # quotes what clients send.
        telemetry={"tracing": False, "metrics": False, "logs": False},
        lifespan=lifespan,
    )
    recorded = cast(VisionService, RecordedService(service))
    context = Context(recorded, config, Catalog(config), _media(config, shared), check_media)
    app.state.context = context
    metrics = metrics or RequestMetrics()
    for dialect in DIALECTS:
        app.include_router(dialect.router(context))
    defaults = pipelines or pipeline_routes.LocalDefaults()
    app.include_router(pipeline_routes.router(context, defaults))
    if webrtc is not None:
        app.include_router(webrtc_routes.router(webrtc, defaults))
    if status is not None:
        app.include_router(status_routes.router(context, status))
    app.include_router(frame_socket.router(shared, metrics))
    app.include_router(relay.router(shared))
    if jobs is not None and shared.feed is not None:
        reader = JobReader(context, look_up)
        own_jobs = OwnJobs(jobs)
        app.include_router(job_routes.router(reader, own_jobs, shared.feed, shared.authorize))
        app.include_router(caption_jobs.router(reader, own_jobs))
        app.include_router(files.router(own_jobs, config.jobs))
        app.include_router(batches.router(own_jobs, config))
        watch_reader = WatchReader(context, reader, look_up, webrtc)
        app.include_router(watches.router(watch_reader, own_jobs, shared.feed))
    add_pages(app)
    describe(app, isinstance(config.auth, AuthConfig), config.defaults.max_timeout_s)
    routes = RouteTable(app.routes)
    add_error_handlers(app, routes)
    uploads = {files.PATH: config.jobs.max_file_bytes + MULTIPART_BYTES}
    # The middleware that is added last handles a request first.
    app.add_middleware(
        AdmissionMiddleware,
        bodies=BodyReader(
            config.limits, config.defaults.max_timeout_s, shared.bodies, shared.uploads, uploads
        ),
        shared=shared,
        queue_paths=JOB_PATHS,
        routes=routes,
    )
    if shared.draining is not None:
        # Replicas have that long to end (deployments/app.py).
        patience_s = config.defaults.max_timeout_s - CLOSE_S
        app.add_middleware(
            WebSocketDrainMiddleware, draining=shared.draining, patience_s=lambda: patience_s
        )
    app.add_middleware(ClientLimitsMiddleware, leases=shared.leases, limits=config.client_limits)
    if isinstance(config.auth, AuthConfig):
        # Sessions outlive the application, and what they may do changes with the configuration.
        app.add_middleware(AuthMiddleware, keys=KeySource(live_view(lambda: shared.config)))
    app.add_middleware(
        OriginMiddleware,
        allowed_hosts=config.allowed_hosts,
        is_allowed_origin=allows(config.cors_origins),
    )
    app.add_middleware(RequestIdMiddleware, echo=echo_request_id)
    app.add_middleware(AccessLogMiddleware, metrics=metrics, routes=routes)
    app.add_middleware(CORSMiddleware, **_cors_options(config))
    if shared.app is None:
        shared.publish(app)
    return app


def _media(config: AppConfig, shared: Shared) -> Media:
    root = MediaRoot(config.media_root) if config.media_root else None
    return Media(config.limits, shared.fetcher, root)


def _cors_options(config: AppConfig) -> dict[str, Any]:
    options: dict[str, Any] = {
        "allow_methods": ["GET", "POST", "PUT", "PATCH", "DELETE"],
        # Clients send many headers of their own. No cookie is ever honored.
        "allow_headers": ["*"],
        "expose_headers": EXPOSED_HEADERS,
    }
    if config.cors_origins is None:
        options["allow_origin_regex"] = LOCALHOST.pattern
    else:
        options["allow_origins"] = config.cors_origins
    return options
