"""``create_app``: the whole HTTP surface over a :class:`raylens.core.ports.VisionService`."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

from raylens import __version__
from raylens.api import caption_service, moondream, openai, preprocess, system
from raylens.api import jobs as job_routes
from raylens.api.context import Context
from raylens.api.errors import add_error_handlers
from raylens.api.media import Media
from raylens.api.middleware import (
    REQUEST_ID_HEADER,
    BodyMiddleware,
    ConcurrencyLimitMiddleware,
    RequestIdMiddleware,
)
from raylens.core.catalog import Catalog
from raylens.core.config import AppConfig
from raylens.core.ports import VisionService
from raylens.jobs.ports import JobService

LOCALHOST = r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?"


def create_app(
    service: VisionService,
    config: AppConfig,
    jobs: JobService | None = None,
    *,
    echo_request_id: bool = True,
) -> FastAPI:
    """An ASGI application; ``service`` does the work, and ``jobs`` what can wait.

    ``echo_request_id`` is off behind a proxy that does it.
    """
    app = FastAPI(
        title="raylens",
        version=__version__,
        description="Vision-language models behind the APIs that clients already speak.",
        redirect_slashes=False,  # no POST is ever answered by a redirect
    )
    context = Context(service, config, Catalog(config), Media(config.limits))
    for dialect in (openai, moondream, preprocess, system):
        app.include_router(dialect.router(context))
    if jobs is not None:
        for queued in (job_routes, caption_service):
            app.include_router(queued.router(context, jobs))
    add_error_handlers(app)
    # The last one added is the first that a request meets.
    app.add_middleware(
        BodyMiddleware, limit=config.limits.max_body_bytes, patience=config.limits.body_patience_s
    )
    app.add_middleware(ConcurrencyLimitMiddleware, room=config.limits.max_in_flight)
    app.add_middleware(RequestIdMiddleware, echo=echo_request_id)
    app.add_middleware(CORSMiddleware, **_cors(config))
    return app


def _cors(config: AppConfig) -> dict[str, Any]:
    origins: dict[str, Any] = (
        {"allow_origin_regex": LOCALHOST}
        if config.cors_origins is None
        else {"allow_origins": config.cors_origins}
    )
    return {
        **origins,
        "allow_methods": ["GET", "POST", "PUT", "DELETE"],
        "allow_headers": ["*"],  # clients send many of their own; no cookie is ever honoured
        "expose_headers": [REQUEST_ID_HEADER, "Retry-After"],
    }
