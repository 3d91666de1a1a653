"""Finds and ends everything that a command has started, however far it has daemonized.

Processes are found by a variable that they inherit in their environment.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import psutil

KILL_TIMEOUT_S = 10.0


def find_marked(name: str, value: str) -> list[psutil.Process]:
    """Return the processes whose environment has this variable with this value, without zombies."""
    marked = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            is_zombie = process.status() == psutil.STATUS_ZOMBIE
            if not is_zombie and f"{name}={value}".encode() in _read_environment(process.pid):
                marked.append(process)
    return marked


def wait_for_exit(name: str, value: str, timeout_s: float) -> None:
    """Wait until no process has the mark; kill those that remain after ``timeout_s``."""
    end = time.monotonic() + timeout_s
    # Look again after each wait: a process may start another one before it ends.
    while (marked := find_marked(name, value)) and (remaining := end - time.monotonic()) > 0:
        psutil.wait_procs(marked, remaining)
    end = time.monotonic() + KILL_TIMEOUT_S
    while marked and (remaining := end - time.monotonic()) > 0:
        for process in marked:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(marked, remaining)
        marked = find_marked(name, value)


def _read_environment(pid: int) -> list[bytes]:
    """Return a process's variables, as ``NAME=value``.

    ``psutil.Process.environ`` stops at the first empty entry. A process that changes its title, as
    Ray's do, may overwrite the first entries.
    """
    return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
