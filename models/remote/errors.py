"""Errors of other servers and of their clients, as this project's errors."""

from __future__ import annotations

import os

from raylens.core.config import RemoteConfig
from raylens.core.errors import (
    DeadlineExceeded,
    InvalidRequest,
    ModelFailed,
    ModelNotLoaded,
    Overloaded,
    RaylensError,
    UnsupportedTask,
)
from raylens.net.retry_after import parse_retry_after

MAX_REASON = 500
"""Characters of a server's message that are passed on."""
LONGEST_RETRY_AFTER_S = 3600.0
"""Seconds; a longer ``Retry-After`` is cut to this."""


def error_from_status(status: int, retry_after: str | None, message: str) -> RaylensError:
    """Return the error for an HTTP status.

    ``retry_after`` is the response's header. ``message`` is the server's own; the caller sees it
    only if the server refused the request.
    """
    if status in (429, 503):
        seconds = parse_retry_after(retry_after, LONGEST_RETRY_AFTER_S)
        return Overloaded(
            "the runtime's server is overloaded",
            "model",
            retry_after=1.0 if seconds is None else seconds,
        )
    if status in (400, 413, 415, 422):
        return InvalidRequest(
            f"model: the runtime's server refused the request: {message[:MAX_REASON]}", "model"
        )
    if status in (408, 504):
        return deadline_exceeded()
    if status == 502:
        return server_unreachable()
    return ModelFailed(f"the runtime's server answered with status {status}")


def deadline_exceeded() -> RaylensError:
    return DeadlineExceeded("the deadline passed before the answer was complete", "deadline")


def server_unreachable() -> RaylensError:
    return ModelNotLoaded("the runtime's server can't be reached", "model", retry_after=1.0)


def videos_not_supported() -> RaylensError:
    return UnsupportedTask("messages: videos are not supported by this model's runtime", "messages")


def api_key(remote: RemoteConfig, default_env: str, *, is_default_server: bool) -> str | None:
    """Return the API key from its environment variable, or None.

    The key in ``default_env`` goes only to the default server, the one that issued it. Any other
    server gets a key only if the configuration names its variable.
    """
    name = remote.api_key_env or (default_env if is_default_server else None)
    return os.environ.get(name) if name else None
