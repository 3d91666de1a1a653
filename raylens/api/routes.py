"""Which routes the application serves."""

from __future__ import annotations

from functools import lru_cache

from fastapi.routing import iter_route_contexts
from starlette.routing import BaseRoute, Match
from starlette.types import Scope

from raylens.api.paths import route_path

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
REMEMBERED_PATHS = 1024
MAX_REMEMBERED_CHARS = 64
"""Of a path; so the memory is bounded, whatever paths strangers make up."""


class RouteTable:
    """The routes of an application, which must be complete."""

    def __init__(self, routes: list[BaseRoute]) -> None:
        self._routes = list(iter_route_contexts(routes))  # those of included routers too
        self._remembered = lru_cache(REMEMBERED_PATHS)(self._find)

    def template_of(self, scope: Scope) -> str:
        """Return the path's template of the route that a request is for, such as
        ``/api/v1/jobs/{job_id}``; empty if no route has its path and method."""
        return self._look_up(scope["method"], route_path(scope))

    def methods_of(self, scope: Scope) -> list[str]:
        """Return the methods of all routes with a request's path."""
        return [method for method in METHODS if self._look_up(method, route_path(scope))]

    def _look_up(self, method: str, path: str) -> str:
        find = self._remembered if len(path) <= MAX_REMEMBERED_CHARS else self._find
        return find(method, path)

    def _find(self, method: str, path: str) -> str:
        scope = {"type": "http", "method": method, "path": path, "root_path": "", "headers": []}
        for route in self._routes:
            if route.matches(scope)[0] is Match.FULL:
                return str(route.path)
        return ""
