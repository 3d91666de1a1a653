"""Refuses what strangers' web pages send through the browsers of people who can reach this server.

Two ways lead there. A page can point a name of its own at this server's address (DNS rebinding);
such requests have that name as their Host. And a page can send forms, simple POSTs and WebSockets
to any address; such requests have the page's Origin.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from raylens.api.errors import MAX_FIELD_CHARS, error_response
from raylens.api.paths import route_path
from raylens.core.errors import MisdirectedRequest, PermissionDenied, RaylensError

LOCALHOST = re.compile(r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?")
PROBES = frozenset({"/health", "/live", "/ready"})
"""Paths that any Host may ask for, because load balancers probe them by whatever name they have."""
_PRIVATE = frozenset({"localhost", "*.localhost", "*.local", "*.internal"})
"""Names that are no one's in the public DNS (RFC 6761, RFC 6762, and ICANN's resolution of 29 July
2024), so that no page can have them point here."""
_HOST = re.compile(r"(?P<name>[\w.-]+|\[[0-9a-fA-F:.]+\])(:\d{1,5})?")
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")


class OriginMiddleware:
    """Checks the Host and the Origin of requests and WebSockets.

    A Host may be any address, the name of this machine, a name that nobody can register
    (``.local``, ``.internal``, ``.localhost``), or one of ``allowed_hosts``: names,
    ``*.example.com`` for the names of a domain, and ``*`` for all. The Origin of what may change
    something is that of the server itself, or one that ``is_allowed_origin`` accepts.
    """

    def __init__(
        self,
        app: ASGIApp,
        allowed_hosts: Sequence[str],
        is_allowed_origin: Callable[[str], bool],
    ) -> None:
        self._app = app
        names = (*allowed_hosts, socket.gethostname())
        self._names = frozenset(name.lower() for name in names) | _PRIVATE
        self._is_allowed_origin = is_allowed_origin

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = self._check(scope) if scope["type"] in ("http", "websocket") else None
        if error is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": error.message[:123]})
        else:
            await error_response(route_path(scope), error)(scope, receive, send)

    def _check(self, scope: Scope) -> RaylensError | None:
        """Return why a request is refused; None if it isn't."""
        headers = Headers(scope=scope)
        if route_path(scope) not in PROBES and not self._are_ours(headers.getlist("host")):
            host = headers.getlist("host")[0][:MAX_FIELD_CHARS]
            return MisdirectedRequest(
                f"Host: {host!r} is no name of this server; its operator can add it to"
                " allowed_hosts in the configuration",
                "Host",
            )
        origin = headers.get("origin")
        if origin is None or scope.get("method") in _SAFE_METHODS:
            return None
        if _is_same(origin, headers.get("host")) or self._is_allowed_origin(origin):
            return None
        return PermissionDenied(
            f"Origin: web pages from {origin[:MAX_FIELD_CHARS]!r} may not use this server; its"
            " operator can add them to cors_origins in the configuration",
            "Origin",
        )

    def _are_ours(self, hosts: Sequence[str]) -> bool:
        """Whether the Host of a request, if it has one, is this server's."""
        if not hosts:
            return True  # HTTP/1.0, which no browser speaks
        match = _HOST.fullmatch(hosts[0])
        if match is None or len(hosts) > 1:
            return False
        name = match["name"].lower().rstrip(".")
        if _is_address(name):
            return True
        domains = (f"*.{name.split('.', count)[-1]}" for count in range(1, name.count(".") + 1))
        return not self._names.isdisjoint(("*", name, *domains))


def allows(cors_origins: Sequence[str] | None) -> Callable[[str], bool]:
    """Return whether an Origin is allowed; None allows the pages of this machine."""
    if cors_origins is None:
        return lambda origin: LOCALHOST.fullmatch(origin) is not None
    return lambda origin: "*" in cors_origins or origin in cors_origins


def _is_address(name: str) -> bool:
    try:
        ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def _is_same(origin: str, host: str | None) -> bool:
    """Whether a page of this server itself sends the request."""
    try:
        return host is not None and urlsplit(origin).netloc.lower() == host.lower()
    except ValueError:
        return False
