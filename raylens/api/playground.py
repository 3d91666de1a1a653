"""The page at /, where people try the server in a browser, and what it asks about the server.

The page is static files without a build step (``raylens/playground``). They need no key, hold no
data, and load nothing from other hosts.
"""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

from fastapi import APIRouter, Request
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, Response

from raylens import __version__
from raylens.api.context import Context
from raylens.core.config import AppConfig
from raylens.core.types import MAX_OBJECTS, REASONING

PREFIX = "/playground/"
"""Paths of the page's files."""
SERVER_PATH = "/api/v1/playground"
PAGE = "index.html"
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".txt": "text/plain; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".jpg": "image/jpeg",
}
_HEADERS = {
    "Cache-Control": "no-cache",  # after an update, no old module meets a new one
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}
_PAGE_HEADERS = {
    **_HEADERS,
    "Permissions-Policy": "camera=(self), fullscreen=(self), microphone=(), geolocation=(),"
    " display-capture=(), payment=(), usb=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Vary": "Accept, Accept-Encoding",
}


@dataclass(frozen=True)
class StaticFile:
    content: bytes
    compressed: bytes | None
    """By gzip; None if that gains nothing."""
    media_type: str
    tag: str
    """A digest of the content, as in an ``ETag``."""

    def answer(self, headers: Headers, own_headers: dict[str, str]) -> Response:
        """Return the file, or 304 if the browser has it."""
        wants_gzip = self.compressed is not None and "gzip" in headers.get("accept-encoding", "")
        tag = f'"{self.tag}{"-gzip" if wants_gzip else ""}"'
        own_headers = {"Vary": "Accept-Encoding", **own_headers, "ETag": tag}
        if tag in headers.get("if-none-match", ""):
            return Response(None, 304, own_headers)
        if wants_gzip:
            own_headers["Content-Encoding"] = "gzip"
        content = self.compressed if wants_gzip else self.content
        return Response(content, 200, own_headers, self.media_type)


def router(context: Context) -> APIRouter:
    """Return the routes of the page and of its files."""
    routes = APIRouter(include_in_schema=False)
    found = load_files()

    @routes.head("/")
    @routes.get("/")
    async def root(http: Request) -> Response:
        """Browsers get the page. Ollama's clients ask here whether there is a server."""
        if "text/html" not in http.headers.get("accept", ""):
            text = "raylens is running; /docs describes its API"
            return PlainTextResponse(text, headers={"Vary": "Accept"})
        policy = content_policy(http.headers.get("host", ""))
        return found[PAGE].answer(
            http.headers, {**_PAGE_HEADERS, "Content-Security-Policy": policy}
        )

    @routes.head(PREFIX + "{name:path}")
    @routes.get(PREFIX + "{name:path}")
    async def file(name: str, http: Request) -> Response:
        if name not in found or name == PAGE:
            raise HTTPException(404)
        return found[name].answer(http.headers, _HEADERS)

    @routes.get(SERVER_PATH)
    async def server() -> dict[str, Any]:
        return describe_server(context)

    return routes


def content_policy(host: str) -> str:
    """Return what the page may load and call: this server. Nobody may frame it.

    ``host`` is that of the request, for browsers whose ``'self'`` doesn't cover WebSockets.
    Source: Content Security Policy Level 3, W3C.
    """
    sockets = f" ws://{host} wss://{host}" if host else ""
    return (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:;"
        f" media-src 'self' blob:; connect-src 'self'{sockets}; base-uri 'none';"
        " form-action 'none'; frame-ancestors 'none'"
    )


@cache
def load_files() -> dict[str, StaticFile]:
    """Return the page's files by name, such as ``examples/scene.png``."""
    return dict(_load(files("raylens") / "playground", ""))


def _load(folder: Traversable, prefix: str) -> list[tuple[str, StaticFile]]:
    found = []
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        name = prefix + entry.name
        if entry.is_dir():
            found += _load(entry, f"{name}/")
        elif (media_type := MEDIA_TYPES.get(_suffix(name))) is not None:
            content = entry.read_bytes()
            packed = gzip.compress(content, mtime=0)
            compressed = packed if len(packed) < 0.9 * len(content) else None
            tag = hashlib.sha256(content).hexdigest()[:20]
            found.append((name, StaticFile(content, compressed, media_type, tag)))
    return found


def _suffix(name: str) -> str:
    return name[name.rfind(".") :]


def describe_server(context: Context) -> dict[str, Any]:
    """Return what the page must know to check a request before it sends it, and to render its
    settings."""
    config = context.config
    limits = config.limits
    return {
        "version": __version__,
        "limits": {
            "image_bytes": limits.max_image_bytes,
            "image_pixels": limits.max_image_pixels,
            "min_image_side": limits.min_image_side,
            "max_image_side": limits.max_image_side,
            "images": limits.max_images,
            "videos": limits.max_videos,
            "video_bytes": limits.max_video_bytes,
            "video_seconds": limits.max_video_seconds,
            "body_bytes": limits.max_body_bytes,
            "text_chars": limits.max_text_chars,
        },
        "downloads": config.fetch.mode != "off",
        "models": list(context.catalog.models),
        "defaults": {
            "temperature": config.defaults.temperature,
            "max_objects": MAX_OBJECTS,
            "detect_object": "",
            "question": "",
        },
        "request_schema": request_schema(config),
    }


def request_schema(config: AppConfig) -> dict[str, Any]:
    """Return the settings of a request about one picture that the pipelines' schemas don't have,
    with the same hints.

    ``request`` is the field of the request's body, ``features`` the tasks that have it, and
    ``capability`` what the model must be able to do.
    """
    recipes = ["", *config.named_recipes()]
    text = {"features": ["caption", "query"]}
    tokens = {"request": "settings.max_tokens", **text}
    return {
        "properties": {
            "recipe": {
                "type": "string",
                "enum": recipes,
                "default": "",
                "description": "How the picture is improved before the model sees it.",
                "ui": {"order": 20, "label": "Recipe", "request": "recipe"},
            },
            "max_tokens": {
                "type": "integer",
                "minimum": 1,
                "maximum": config.limits.max_tokens,
                "default": config.defaults.max_tokens,
                "description": "The longest an answer may get, in tokens.",
                "ui": {
                    "order": 21,
                    "label": "Max tokens",
                    **tokens,
                },
            },
            "top_p": {
                "type": "number",
                "minimum": 0.0,
                "maximum": 1.0,
                "default": 1.0,
                "description": "Below 1, the least likely tokens are left out.",
                "ui": {"order": 22, "label": "Top-p", "request": "settings.top_p", **text},
            },
            "reasoning": {
                "type": "boolean",
                "default": False,
                "description": "Lets the model think before it answers.",
                "ui": {
                    "order": 3,
                    "category": "input",
                    "label": "Reasoning",
                    "request": "reasoning",
                    "features": ["query"],
                    "capability": REASONING,
                },
            },
        }
    }
