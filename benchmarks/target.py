"""The server that a benchmark measures: the one at ``--url``, or one of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from testing.server import running


@contextmanager
def target(
    url: str | None, change: Callable[[dict[str, Any]], None] = lambda config: None
) -> Iterator[str]:
    """Its URL; ``change`` alters the configuration of a server of its own."""
    if url is not None:
        yield url
        return
    with running(change=change) as started:
        yield started
