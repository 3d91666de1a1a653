from __future__ import annotations

import signal
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner

from raylens.cli.drain import drain_server, has_ended
from raylens.cli.main import app
from raylens.core.endpoint import Endpoint
from testing.ports import free_port


class FakeServer:
    """A server that ends after some looks at its state, or upon its second signal.

    Its ``/ready`` is 200 before the first signal.
    """

    def __init__(self, looks: int, drains: bool = False) -> None:
        self.signals: list[int] = []
        self.looks = looks
        self.drains = drains

    def send_signal(self, number: int) -> None:
        self.signals.append(number)
        self.drains = True

    def is_running(self) -> bool:
        self.looks -= 1
        return self.looks > 0 and len(self.signals) < 2

    def status(self) -> str:
        return str(psutil.STATUS_RUNNING)


@pytest.fixture
def server() -> FakeServer:
    return FakeServer(3)


@pytest.fixture
def endpoint(server: FakeServer) -> Iterator[Endpoint]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b'{"status":"ready"}'
            if server.drains:
                body = b'{"status":"draining","requests":3,"jobs":1}'
            self.send_response(503 if server.drains else 200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None: ...

    http = HTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=http.serve_forever)
    thread.start()
    yield Endpoint("127.0.0.1", http.server_port)
    http.shutdown()
    thread.join()
    http.server_close()


def drain(server: FakeServer, endpoint: Endpoint, timeout_s: float | None) -> list[str]:
    reports: list[str] = []
    drain_server(server, endpoint, timeout_s, reports.append)  # type: ignore[arg-type]
    return reports


def test_a_drain_sends_one_signal_and_waits(server: FakeServer, endpoint: Endpoint) -> None:
    assert drain(server, endpoint, None) == ["requests in flight: 3, jobs running: 1"]
    assert server.signals == [signal.SIGTERM]


def test_a_drain_that_takes_too_long_sends_a_second_signal(
    server: FakeServer, endpoint: Endpoint
) -> None:
    assert drain(server, endpoint, 0)[0] == "what is left ends now, after 0 s"
    assert server.signals == [signal.SIGTERM] * 2


def test_a_server_that_drains_already_gets_no_second_signal(
    server: FakeServer, endpoint: Endpoint
) -> None:
    server.drains = True
    drain(server, endpoint, None)
    assert server.signals == []


def test_a_process_that_its_parent_has_not_noticed_has_ended() -> None:
    class Zombie(FakeServer):
        def status(self) -> str:
            return str(psutil.STATUS_ZOMBIE)

    assert not has_ended(FakeServer(2))  # type: ignore[arg-type]
    assert has_ended(Zombie(2))  # type: ignore[arg-type]


def test_a_port_without_a_server_is_an_error() -> None:
    port = free_port()
    result = CliRunner().invoke(app, ["drain", "--port", str(port)])
    assert result.exit_code == 2
    assert f"no `raylens run` on this machine listens on port {port}" in result.stderr
