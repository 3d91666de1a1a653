from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner

from deployments.local import _report
from raylens.cli.drain import ServerNotFound, drain_server, find_server, has_ended
from raylens.cli.main import app
from raylens.cli.run import Server
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
    assert server.signals == [signal.SIGUSR1]


def test_a_drain_that_takes_too_long_sends_a_second_signal(
    server: FakeServer, endpoint: Endpoint
) -> None:
    assert drain(server, endpoint, 0)[0] == "what is left ends now, after 0 s"
    assert server.signals == [signal.SIGUSR1, signal.SIGINT]


def run_of(ready: bool) -> tuple[Server, list[int]]:
    """Return a server that has started, and the signals that its process gets."""
    signals: list[int] = []
    server = Server(Path("config.yaml"), Endpoint("127.0.0.1", 1), 1, 1)
    server._is_ready = ready
    server._process = SimpleNamespace(send_signal=signals.append)  # type: ignore[assignment]
    return server, signals


@pytest.mark.parametrize(
    ("numbers", "ends_at_once"),
    [
        ([signal.SIGUSR1], False),
        ([signal.SIGUSR1, signal.SIGUSR1], False),
        ([signal.SIGTERM], False),
        ([signal.SIGTERM, signal.SIGUSR1], False),
        ([signal.SIGUSR1, signal.SIGTERM], False),
        ([signal.SIGTERM, signal.SIGTERM], True),
        ([signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM], True),
        ([signal.SIGUSR1, signal.SIGINT], True),
    ],
)
def test_only_a_second_sigterm_ends_a_server_that_drains(
    numbers: list[signal.Signals], ends_at_once: bool
) -> None:
    server, signals = run_of(ready=True)
    for number in numbers:
        server._on_signal(number, None)
    assert signals == [signal.SIGUSR1]
    assert server._stop.is_set() is ends_at_once


def test_a_server_that_is_not_ready_has_nothing_to_drain() -> None:
    server, signals = run_of(ready=False)
    server._on_signal(signal.SIGUSR1, None)
    assert signals == []
    assert server._stop.is_set()


def test_a_server_whose_supervisor_was_killed_goes_on() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    status = os.fdopen(writer, "w")
    _report(status, drain="1 request in flight")
    with suppress(BrokenPipeError):
        status.close()


class FakeProcess:
    """A process as others see it."""

    def __init__(
        self, *command: str, uid: int | None = None, parent: FakeProcess | None = None
    ) -> None:
        self._command = list(command)
        self._uid = os.getuid() if uid is None else uid
        self._parent = parent

    def cmdline(self) -> list[str]:
        return self._command

    def uids(self) -> Any:
        return SimpleNamespace(real=self._uid)

    def parent(self) -> FakeProcess | None:
        return self._parent


SERVER = ("python", "-m", "deployments.local", "c.yaml", "5", "0.0.0.0", "8000", "600.0")
RUN = FakeProcess("python", "/opt/bin/raylens", "run", "c.yaml")
STRANGER = os.getuid() + 1


def find(monkeypatch: pytest.MonkeyPatch, process: FakeProcess) -> Any:
    monkeypatch.setattr("psutil.process_iter", lambda: [process])
    return find_server(8000)


def test_the_supervisor_of_a_server_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    found = find(monkeypatch, FakeProcess(*SERVER, parent=RUN))
    assert found == (RUN, Endpoint("0.0.0.0", 8000))


@pytest.mark.parametrize(
    "parent",
    [
        None,
        FakeProcess("/sbin/init", uid=0),
        FakeProcess("/sbin/docker-init", "--", "raylens", "run"),
        FakeProcess("python", "/opt/bin/raylens", "run", uid=STRANGER),
        FakeProcess("bash"),
    ],
)
def test_a_server_whose_supervisor_was_killed_is_found_itself(
    monkeypatch: pytest.MonkeyPatch, parent: FakeProcess | None
) -> None:
    orphan = FakeProcess(*SERVER, parent=parent)
    assert find(monkeypatch, orphan)[0] is orphan


def test_what_another_user_calls_a_server_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ServerNotFound, match="of this user"):
        find(monkeypatch, FakeProcess(*SERVER, uid=STRANGER, parent=RUN))


def test_a_server_of_a_release_without_drains_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ServerNotFound):
        find(monkeypatch, FakeProcess(*SERVER[:7], parent=RUN))  # SIGUSR1 would kill it


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
    assert f"no `raylens run` of this user on this machine listens on port {port}" in result.stderr
