"""How sessions tell their clients of errors, over WebSockets and data channels alike."""

from __future__ import annotations

from typing import Any

from raylens.core.errors import RaylensError

INTERNAL_ERROR = RaylensError("an internal error")


def error_message(error: RaylensError) -> dict[str, Any]:
    """Return an error as JSON. ``field`` and ``retry_after`` are there only if it has them."""
    optional = {"field": error.field, "retry_after": error.retry_after}
    return {
        "type": "error",
        "error": error.message,
        "code": error.code,
        "status": error.http_status,
        **{name: value for name, value in optional.items() if value is not None},
    }
