"""``create_app``: the whole HTTP surface over a :class:`raylens.ports.VisionService`."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

from raylens import __version__
from raylens.api import moondream, openai, system
from raylens.api.catalog import Catalog
from raylens.api.context import TIMEOUT_HEADER, Context
from raylens.api.errors import add_error_handlers
from raylens.api.media import Media
from raylens.api.middleware import REQUEST_ID_HEADER, BodyLimitMiddleware, RequestIdMiddleware
from raylens.config import AppConfig
from raylens.ports import VisionService

LOCALHOST = r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?"
ALLOWED_HEADERS = [
    "Authorization",
    "Content-Type",
    "Idempotency-Key",
    "X-Moondream-Auth",
    REQUEST_ID_HEADER,
    TIMEOUT_HEADER,
]


def create_app(service: VisionService, config: AppConfig, *, echo_request_id: bool = True) -> FastAPI:
    """An ASGI application; ``service`` does the work. ``echo_request_id`` is off behind a proxy that does it."""
    app = FastAPI(
        title="raylens",
        version=__version__,
        description="Vision-language models behind the APIs that clients already speak.",
    )
    context = Context(service, config, Catalog(config), Media(config.limits))
    for dialect in (openai, moondream, system):
        app.include_router(dialect.router(context))
    add_error_handlers(app)
    app.add_middleware(BodyLimitMiddleware, limit=config.limits.max_body_bytes)
    app.add_middleware(CORSMiddleware, **_cors(config))
    app.add_middleware(RequestIdMiddleware, echo=echo_request_id)
    return app


def _cors(config: AppConfig) -> dict[str, Any]:
    origins: dict[str, Any] = (
        {"allow_origin_regex": LOCALHOST} if config.cors_origins is None else {"allow_origins": config.cors_origins}
    )
    return {
        **origins,
        "allow_methods": ["GET", "POST", "PUT", "DELETE"],
        "allow_headers": ALLOWED_HEADERS,
        "expose_headers": [REQUEST_ID_HEADER, "Retry-After"],
    }
