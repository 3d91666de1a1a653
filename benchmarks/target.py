"""The server that a benchmark measures: the one at ``--url``, or one of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from raylens.cli.background import running


@contextmanager
def target(url: str | None) -> Iterator[str]:
    if url is not None:
        yield url
        return
    with running() as started:
        yield started
