"""Which methods the application serves on a path."""

from __future__ import annotations

from functools import lru_cache

from starlette.routing import BaseRoute, Match
from starlette.types import Scope

from raylens.api.paths import route_path

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
REMEMBERED_PATHS = 1024


class RouteTable:
    """The routes of an application. They must all be there by the first question."""

    def __init__(self, routes: list[BaseRoute]) -> None:
        self._routes = routes
        self._serves = lru_cache(REMEMBERED_PATHS)(self._find)

    def serves(self, scope: Scope) -> bool:
        """Whether a route fits a request's path and method."""
        return self._serves(scope["method"], route_path(scope))

    def methods_of(self, scope: Scope) -> list[str]:
        """Return the methods of all routes with a request's path."""
        return [method for method in METHODS if self._serves(method, route_path(scope))]

    def _find(self, method: str, path: str) -> bool:
        scope = {"type": "http", "method": method, "path": path, "root_path": "", "headers": []}
        return any(route.matches(scope)[0] is Match.FULL for route in self._routes)
