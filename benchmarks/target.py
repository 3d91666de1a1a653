"""The server under test: the one at ``--url``, or a new one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from testing.server import running_server


@contextmanager
def target(
    url: str | None,
    change: Callable[[dict[str, Any]], None] = lambda config: None,
    environment: dict[str, str] | None = None,
) -> Iterator[str]:
    """Yield the server's URL. Without ``url``, start a server and stop it with the context.

    ``change`` alters the configuration of the new server, and ``environment`` adds variables.
    """
    if url is not None:
        yield url
        return
    with running_server(change=change, environment=environment) as new_url:
        yield new_url
