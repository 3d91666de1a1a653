"""Ports for servers of tests and benchmarks."""

from __future__ import annotations

import random
import socket

FIRST = 20_000
LAST = 32_000
"""Below Linux's ephemeral range, 32768 to 60999: the kernel takes no port from here for outgoing
connections, of which Ray makes hundreds."""
ATTEMPTS = 100


def free_port() -> int:
    """Return a port of 127.0.0.1 that nothing listens on at the moment."""
    for _ in range(ATTEMPTS):
        port = random.randint(FIRST, LAST)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise RuntimeError(f"no free port between {FIRST} and {LAST}")
