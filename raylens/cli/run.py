"""``raylens run``: supervises a process with Ray, Serve and the application, from start to stop."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import IO

import httpx

from deployments import tracing
from deployments.ray_environment import DRAIN_FILE, ENVIRONMENT, ONE_MACHINE, RUN_MARK
from raylens.cli.processes import wait_for_exit
from raylens.core.endpoint import Endpoint

STOP_TIMEOUT_S = 30.0
LEFTOVER_TIMEOUT_S = 15.0
POLL_PERIOD_S = 0.5


class Server:
    """A server on this machine. Its log goes to standard error.

    SIGTERM drains it, for ``drain_timeout`` seconds at the most: it takes no new requests, answers
    those that have begun, and ends. SIGUSR1 does the same, and may be repeated. A second SIGTERM,
    and any other signal, ends it at once.
    """

    def __init__(
        self, config: Path, endpoint: Endpoint, ready_timeout: float, drain_timeout: float
    ) -> None:
        self._config = config
        self._endpoint = endpoint
        self._ready_timeout = ready_timeout
        self._drain_timeout = drain_timeout
        self._is_ready = False
        self._drains = False
        self._was_terminated = False
        self._dashboard: str | None = None
        self._failure: str | None = None
        self._stop = threading.Event()
        self._mark = uuid.uuid4().hex

    def serve(self) -> int:
        """Run until a signal arrives or the process ends. Returns the exit status; the last line of
        the log is the reason of a failure."""
        with tempfile.TemporaryDirectory(prefix="raylens-") as folder:
            self._drain_file = Path(folder) / "drain"
            failure = self._find_problem() or self._run()
        if failure is not None:
            print(f"raylens: {failure}", file=sys.stderr, flush=True)
        return 0 if failure is None else 1

    def _run(self) -> str | None:
        """Start, watch and stop the process. Returns why it failed, None after a signal."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, self._on_signal)
        self._process = self._start()
        try:
            failure = self._wait_until_ready()
            if failure is not None or self._stop.is_set():
                return failure
            self._announce()
            self._is_ready = True
            while not self._stop.wait(POLL_PERIOD_S):
                status = self._process.poll()
                if self._drains and status == 0:
                    return None
                if status is not None:
                    return f"the server {_describe_end(status)}"
            return None
        finally:
            self._shut_down()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        is_repeated = number == signal.SIGTERM and self._was_terminated
        self._was_terminated |= number == signal.SIGTERM
        may_drain = number in (signal.SIGTERM, signal.SIGUSR1) and self._is_ready
        if is_repeated or not may_drain:
            self._stop.set()
        elif not self._drains:
            self._drains = True
            self._process.send_signal(signal.SIGUSR1)

    def _find_problem(self) -> str | None:
        return tracing.find_problem(os.environ) or self._find_port_problem()

    def _find_port_problem(self) -> str | None:
        """Return why the server could not listen on its port, or None."""
        host = self._endpoint.host
        port = self._endpoint.port
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    return f"port {port} of {host} is in use"
                return f"http_options: can't listen on port {port} of {host}: {error.strerror}"
        return None

    def _start(self) -> subprocess.Popen[bytes]:
        """Start the process in a session of its own: a Ctrl-C at the terminal must not reach it
        before it reaches us."""
        reader, writer = os.pipe()
        host, port = self._endpoint.host, str(self._endpoint.port)
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "deployments.local",
                str(self._config),
                str(writer),
                host,
                port,
                str(self._drain_timeout),
            ],
            env={
                **ENVIRONMENT,
                **ONE_MACHINE,
                **os.environ,
                RUN_MARK: self._mark,
                DRAIN_FILE: str(self._drain_file),
            },
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr.fileno(),
            pass_fds=[writer],
            umask=0o077,
            start_new_session=True,
        )
        os.close(writer)
        status = os.fdopen(reader)
        threading.Thread(target=self._read_status, args=(status,), daemon=True).start()
        return process

    def _read_status(self, status: IO[str]) -> None:
        with status:
            for line in status:
                message = json.loads(line)
                self._dashboard = message.get("dashboard", self._dashboard)
                self._failure = message.get("failure", self._failure)
                if "drain" in message:
                    print(f"raylens: draining: {message['drain']}", file=sys.stderr, flush=True)

    def _wait_until_ready(self) -> str | None:
        """Wait until every model answers, or a signal arrives. Returns the reason of a failure."""
        deadline = time.monotonic() + self._ready_timeout
        while not self._stop.wait(POLL_PERIOD_S):
            if self._process.poll() is not None:
                return f"the server {_describe_end(self._process.returncode)} before it was ready"
            if self._failure is not None:
                return self._failure
            if self._answers():
                return None
            if time.monotonic() > deadline:
                return f"not ready after {self._ready_timeout:g} s"
        return None

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self._endpoint.url}/ready", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    def _announce(self) -> None:
        url = self._endpoint.url
        print(
            f"\nraylens is ready at {url}"
            f"  (API: {url}/docs, Ray dashboard: {self._dashboard}). Try:\n"
            f"  curl -s {url}/v1/caption -F file=@docs/scene.png -F length=long\n",
            flush=True,
        )

    def _shut_down(self) -> None:
        """Interrupt the process, which ends Serve and Ray; then end whatever remains of them."""
        if self._process.poll() is None:
            print("raylens: stopping", file=sys.stderr, flush=True)
            self._process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_TIMEOUT_S)
        wait_for_exit(RUN_MARK, self._mark, LEFTOVER_TIMEOUT_S)
        self._process.wait()


def _describe_end(status: int) -> str:
    """Return what ended a process, from its exit status as :mod:`subprocess` reports it."""
    return f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
