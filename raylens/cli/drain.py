"""``raylens drain``: ends a server of this machine when what it does has ended."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import httpx
import psutil

from raylens.core.endpoint import Endpoint

PERIOD_S = 0.25
MODULE = "deployments.local"
ARGUMENTS = 8
"""Of its command line, Python's own included."""


class ServerNotFound(Exception):
    """No server of this user listens on the port."""


def find_server(port: int) -> tuple[psutil.Process, Endpoint]:
    """Return the ``raylens run`` whose server listens on a port of this machine, and its address.

    It is one of this user: others can call a process of theirs what they like. If the ``raylens
    run`` was killed, this is what it has left behind, which understands the same signals. Raises
    ``ServerNotFound``.
    """
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            command = process.cmdline()
            is_server = len(command) == ARGUMENTS and command[1:3] == ["-m", MODULE]
            if is_server and command[6] == str(port) and _is_mine(process):
                supervisor = process.parent()
                if supervisor is None or not _is_supervisor(supervisor):
                    supervisor = process
                return supervisor, Endpoint(command[5], port)
    raise ServerNotFound(f"no `raylens run` of this user on this machine listens on port {port}")


def _is_mine(process: psutil.Process) -> bool:
    return bool(process.uids().real == os.getuid())


def _is_supervisor(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        command = [Path(argument).name for argument in process.cmdline()]
        return _is_mine(process) and command[1:3] == ["raylens", "run"]
    return False


def drain_server(
    server: psutil.Process,
    endpoint: Endpoint,
    timeout_s: float | None,
    report: Callable[[str], None],
) -> None:
    """Have a server take no new requests and end, and wait for that.

    After ``timeout_s`` seconds it ends at once; without, after the time that it was started with.
    Raises ``psutil.AccessDenied`` if it belongs to another user.
    """
    server.send_signal(signal.SIGUSR1)  # a second SIGTERM would end it, if it drains already
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    reported = ""
    while not has_ended(server):
        if deadline is not None and time.monotonic() >= deadline:
            report(f"what is left ends now, after {timeout_s:g} s")
            server.send_signal(signal.SIGINT)
            deadline = None
        text = _describe(endpoint)
        if text and text != reported:
            reported = text
            report(text)
        time.sleep(PERIOD_S)


def has_ended(process: psutil.Process) -> bool:
    """Return whether a process has ended, even if its parent hasn't noticed."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _describe(endpoint: Endpoint) -> str:
    """Return what a server waits for; empty if it doesn't say."""
    with suppress(httpx.HTTPError, ValueError):
        body = httpx.get(f"{endpoint.url}/ready", timeout=5).json()
        if body.get("status") == "draining":
            return f"requests in flight: {body['requests']}, jobs running: {body.get('jobs', 0)}"
    return ""
