"""Everything that a command has started, however far it has daemonized: found by a mark in the
environment (Linux)."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path


def marked(name: str, value: str) -> list[int]:
    """Ids of the processes whose environment has this variable with this value; zombies left out."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes().split(b"\0")
            is_zombie = "\nState:\tZ" in (folder / "status").read_text()
        except OSError:
            continue
        if f"{name}={value}".encode() in environment and not is_zombie:
            found.append(int(folder.name))
    return found


def await_end(name: str, value: str, patience: float) -> None:
    """Returns once no process is marked so; what is left after ``patience`` seconds is killed."""
    until = time.monotonic() + patience
    while marked(name, value) and time.monotonic() < until:
        time.sleep(0.1)
    for pid in marked(name, value):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
