"""Paths of requests under the application's own prefix, which Serve calls ``route_prefix``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def route_path(scope: Mapping[str, Any]) -> str:
    """Return the request's path as the application's routes know it, without the prefix.

    Source: ASGI, "Connection Scope", where ``path`` includes ``root_path``.
    """
    path: str = scope["path"]
    prefix: str = scope.get("root_path", "")
    rest = path.removeprefix(prefix)
    return rest if not rest or rest.startswith("/") else path
