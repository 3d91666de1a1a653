"""A server in the background, for tests and benchmarks: ``with running() as url: …``."""

from __future__ import annotations

import copy
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import IO, Any

import yaml

READY = "raylens is ready at "
STOP_PATIENCE_S = 60.0


@contextmanager
def running(
    config: Path = Path("serve_config.yaml"),
    change: Callable[[dict[str, Any]], None] = lambda config: None,
    environment: dict[str, str] | None = None,
) -> Iterator[str]:
    """Runs ``raylens run`` on a free port and gives its URL; stops it at the end.

    ``change`` may alter a copy of the config. Raises ``RuntimeError``, with the log's end, where it
    doesn't start.
    """
    settings = copy.deepcopy(yaml.safe_load(config.read_text()))
    settings.setdefault("http_options", {})["port"] = _free_port()
    change(settings)
    with tempfile.TemporaryDirectory(prefix="raylens-") as folder:
        for application in settings["applications"]:
            jobs = application.setdefault("args", {}).setdefault("jobs", {})
            jobs.setdefault(
                "data_dir", str(Path(folder) / "data")
            )  # its own queue, not this user's
        path = Path(folder) / "serve_config.yaml"
        path.write_text(yaml.safe_dump(settings))
        log = Path(folder) / "log"
        with log.open("w") as stderr, _started(path, environment or {}, stderr) as process:
            try:
                yield _wait_until_ready(process, log)
            finally:
                process.send_signal(signal.SIGINT)
                try:
                    process.wait(STOP_PATIENCE_S)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)


def _started(config: Path, environment: dict[str, str], stderr: IO[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(Path(sys.executable).with_name("raylens")), "run", str(config)],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        start_new_session=True,
    )


def _wait_until_ready(process: subprocess.Popen[str], log: Path) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(READY):
            Thread(target=_drain, args=(process.stdout,), daemon=True).start()
            return line.removeprefix(READY).split()[0]
    raise RuntimeError(f"the server did not start:\n{log.read_text()[-4000:]}")


def _drain(stream: IO[str]) -> None:
    for _ in stream:
        pass


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
