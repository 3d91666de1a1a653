"""A server in the background, for tests and benchmarks: ``with running_server() as url: …``."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import IO, Any

import yaml

from testing.ports import free_port

READY = "raylens is ready at "
STOP_TIMEOUT_S = 60.0
ATTEMPTS = 3
"""Starts on another port, if something takes the port before the server does."""


@contextmanager
def running_server(
    config: Path = Path("serve_config.yaml"),
    change: Callable[[dict[str, Any]], None] = lambda config: None,
    environment: dict[str, str] | None = None,
) -> Iterator[str]:
    """Run ``raylens run`` on a free port, yield its URL, and stop it at the end.

    ``change`` may modify a copy of the config. Raises ``RuntimeError``, with the end of the log, if
    the server doesn't start.
    """
    settings = copy.deepcopy(yaml.safe_load(config.read_text()))
    change(settings)
    with tempfile.TemporaryDirectory(prefix="raylens-") as folder:
        process, url = _start(settings, Path(folder), environment or {})
        with process:
            try:
                yield url
            finally:
                _stop(process)


def _start(
    settings: dict[str, Any], folder: Path, environment: dict[str, str]
) -> tuple[subprocess.Popen[str], str]:
    for application in settings["applications"]:
        jobs = application.setdefault("args", {}).setdefault("jobs", {})
        jobs.setdefault("data_dir", str(folder / "data"))  # not this user's own queue
    log = folder / "log"
    for _ in range(ATTEMPTS):
        port = free_port()
        settings.setdefault("http_options", {})["port"] = port
        path = folder / "serve_config.yaml"
        path.write_text(yaml.safe_dump(settings))
        with log.open("w") as stderr:
            process = _spawn(path, environment, stderr)
        url = _wait_until_ready(process)
        if url is not None:
            return process, url
        process.wait()
        if f"port {port} of " not in log.read_text():
            break
    raise RuntimeError(f"the server did not start:\n{log.read_text()[-4000:]}")


def _spawn(config: Path, environment: dict[str, str], stderr: IO[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(Path(sys.executable).with_name("raylens")), "run", str(config)],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        start_new_session=True,
    )


def _wait_until_ready(process: subprocess.Popen[str]) -> str | None:
    """Return the server's URL; None if it ends before it is ready."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(READY):
            Thread(target=_drain, args=(process.stdout,), daemon=True).start()
            return line.removeprefix(READY).split()[0]
    return None


def _drain(stream: IO[str]) -> None:
    for _ in stream:
        pass


def _stop(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGINT)
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
