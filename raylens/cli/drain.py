"""``raylens drain``: ends a server of this machine when what it does has ended."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from contextlib import suppress

import httpx
import psutil

from raylens.core.endpoint import Endpoint

PERIOD_S = 0.25
MODULE = "deployments.local"


class ServerNotFound(Exception):
    """No server of this user listens on the port."""


def find_server(port: int) -> tuple[psutil.Process, Endpoint]:
    """Return the ``raylens run`` whose server listens on a port of this machine, and its address.

    Raises ``ServerNotFound``.
    """
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            command = process.cmdline()
            if command[1:3] == ["-m", MODULE] and command[6:7] == [str(port)]:
                supervisor = process.parent()
                if supervisor is not None:
                    return supervisor, Endpoint(command[5], port)
    raise ServerNotFound(f"no `raylens run` on this machine listens on port {port}")


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
    if not _describe(endpoint):  # else it drains already, and a second signal would end it at once
        server.send_signal(signal.SIGTERM)
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    reported = ""
    while not has_ended(server):
        if deadline is not None and time.monotonic() >= deadline:
            report(f"what is left ends now, after {timeout_s:g} s")
            server.send_signal(signal.SIGTERM)
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
