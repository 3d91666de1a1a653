"""Which methods the application serves on a path."""

from __future__ import annotations

from starlette.routing import BaseRoute, Match
from starlette.types import Scope

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")


class RouteTable:
    """The routes of an application. They must all be there by the first question."""

    def __init__(self, routes: list[BaseRoute]) -> None:
        self._routes = routes

    def serves(self, scope: Scope) -> bool:
        """Whether a route fits a request's path and method."""
        return any(route.matches(scope)[0] is Match.FULL for route in self._routes)

    def methods_of(self, scope: Scope) -> list[str]:
        """Return the methods of all routes with a request's path."""
        return [method for method in METHODS if self.serves({**scope, "method": method})]
