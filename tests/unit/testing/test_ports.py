from __future__ import annotations

import random
import socket
from pathlib import Path

import pytest

from testing import ports
from testing.ports import free_port


def test_free_ports_are_outside_the_range_for_outgoing_connections() -> None:
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    for _ in range(50):
        assert not low <= free_port() <= high


def test_a_port_in_use_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        in_use = taken.getsockname()[1]
        other = free_port()
        candidates = iter([in_use, in_use, other])
        monkeypatch.setattr(random, "randint", lambda first, last: next(candidates))
        assert ports.free_port() == other
