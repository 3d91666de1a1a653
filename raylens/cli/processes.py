"""Finds and ends everything that a command has started, however far it has daemonized.

Processes are found by a variable that they inherit in their environment.
"""

from __future__ import annotations

import contextlib

import psutil


def find_marked(name: str, value: str) -> list[psutil.Process]:
    """Return the processes whose environment has this variable with this value, without zombies."""
    marked = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
            if process.environ().get(name) == value:
                marked.append(process)
    return marked


def wait_for_exit(name: str, value: str, timeout_s: float) -> None:
    """Wait until no process has the mark; kill those that remain after ``timeout_s``."""
    _, alive = psutil.wait_procs(find_marked(name, value), timeout_s)
    # Processes that were started in the meantime are found by a second look.
    for process in {*alive, *find_marked(name, value)}:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
