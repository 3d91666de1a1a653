"""The server. The folder ``suites`` is run in environments of its own, which have the clients."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

collect_ignore = ["suites"]


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    # The suites' environments read this file, too, and lack what the server needs.
    from testing.server import running_server
    from tests.clients.environments import ROOT

    with running_server(ROOT / "serve_config.yaml") as url:
        yield url
