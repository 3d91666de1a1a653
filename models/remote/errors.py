"""What other servers answer when they don't, as errors of our own."""

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
)
from raylens.net.retry_after import parse_retry_after

SHOWN = 500
LONGEST_RETRY_AFTER_S = 3600.0
"""A server that asks for more isn't believed."""


def of_status(status: int, retry_after: str | None, said: str) -> RaylensError:
    """``said``: the server's own words, as far as they are for the caller."""
    if status in (429, 503):
        seconds = parse_retry_after(retry_after, LONGEST_RETRY_AFTER_S)
        return Overloaded(
            "the runtime's server is overloaded",
            "model",
            retry_after=1.0 if seconds is None else seconds,
        )
    if status in (400, 413, 415, 422):
        return InvalidRequest(
            f"model: the runtime's server refused the request: {said[:SHOWN]}", "model"
        )
    if status in (408, 504):
        return late()
    return ModelFailed(f"the runtime's server answered with status {status}")


def late() -> RaylensError:
    return DeadlineExceeded("the deadline passed before the answer was complete", "deadline")


def unreachable() -> RaylensError:
    return ModelNotLoaded("the runtime's server can't be reached", "model", retry_after=1.0)


def key_of(remote: RemoteConfig, usual: str, *, is_its_maker: bool) -> str | None:
    """The key from its environment variable. The ``usual`` one is for its maker's own server only:
    no other gets it without being told."""
    name = remote.api_key_env or (usual if is_its_maker else None)
    return os.environ.get(name) if name else None
