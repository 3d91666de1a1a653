"""Requires a key for every request, if the server has keys."""

from __future__ import annotations

from functools import partial

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from raylens.api import batches, files, playground, watches, web_sockets
from raylens.api.access_log import note_key
from raylens.api.clients import presented_keys
from raylens.api.docs import ASSETS
from raylens.api.errors import error_response
from raylens.api.origins import PROBES
from raylens.api.paths import route_path
from raylens.core.errors import PermissionDenied, RaylensError, Unauthorized
from raylens.core.fairness import current_client
from raylens.core.key_source import KeySource
from raylens.core.keys import ApiKey, current_key
from raylens.core.keys import Scope as KeyScope

OPEN_PATHS = PROBES | {"/", "/docs", "/redoc", "/openapi.json"}
"""Paths that need no key: probes, and pages that hold no data."""
JOB_PATHS = ("/api/v1/jobs", watches.PATH, "/caption/", files.PATH, batches.PATH)
"""Paths of requests that wait for the job queue."""
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")


class AuthMiddleware:
    """Refuses requests without a key of ``keys``, or with one whose scopes don't include theirs.

    The key is :data:`raylens.core.keys.current_key` for what the request calls.
    """

    def __init__(self, app: ASGIApp, keys: KeySource) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_request = scope["type"] in ("http", "websocket")
        if not is_request or is_open(scope) or not self._keys.are_needed:
            await self._app(scope, receive, send)
            return
        try:
            key = self._authorize(scope)
        except RaylensError as error:
            await _refuse(error, scope, receive, send)
            return
        note_key(key)
        scope.setdefault("state", {})["authorize"] = partial(self._authorize, scope)
        await self._app(scope, receive, send)

    def _authorize(self, scope: Scope) -> ApiKey:
        """Make a request's key the current one. Raises ``Unauthorized`` and ``PermissionDenied``.

        Sessions call it again and again, since a key may be taken away while they last.
        """
        key = self._identify(scope)
        required = required_scope(scope.get("method", "GET"), route_path(scope))
        if required not in key.scopes:
            raise PermissionDenied(
                f"the key {key.name!r} may not do this: it lacks the scope {required}"
            )
        current_key.set(key)
        current_client.set(key.name)
        return key

    def _identify(self, scope: Scope) -> ApiKey:
        presented = [key for key in presented_keys(Headers(scope=scope)) if key]
        for candidate in presented:
            if (key := self._keys.ring.find(candidate)) is not None:
                return key
        problem = "unknown key" if presented else "missing key"
        raise Unauthorized(
            f"Authorization: {problem}; expected 'Authorization: Bearer KEY', or the key in"
            " X-API-Key or X-Moondream-Auth",
            "Authorization",
        )


def is_open(scope: Scope) -> bool:
    """Whether a request needs no key."""
    return scope["type"] == "http" and is_open_path(route_path(scope))


def is_open_path(path: str) -> bool:
    return path in OPEN_PATHS or path.startswith((f"{ASSETS}/", playground.PREFIX))


def required_scope(method: str, path: str) -> KeyScope:
    """Return the scope that a request needs."""
    if path.startswith(JOB_PATHS):
        return KeyScope.JOBS
    is_change = method not in _SAFE_METHODS
    if path == "/clear_vram" or (path.startswith("/api/v1/plugins") and is_change):
        return KeyScope.ADMIN
    return KeyScope.INFER


async def _refuse(error: RaylensError, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await web_sockets.refuse(error, scope, receive, send)
        return
    response = error_response(route_path(scope), error)
    if isinstance(error, Unauthorized):
        response.headers["WWW-Authenticate"] = "Bearer"
    await response(scope, receive, send)
