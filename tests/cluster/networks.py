"""Networks of their own, that lose packets or end: network namespaces of Linux."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Networks:
    """Names of namespaces. The server's has a cable to each of the others."""

    server: str
    lossy: str
    """Its cable loses packets, both ways."""
    doomed: str
    """Its cable may be cut."""


SERVER, LOSSY, DOOMED = "10.77.{}.1", "10.77.1.2", "10.77.2.2"
"""Addresses. The server has one on each cable: ``SERVER.format(1)`` and ``SERVER.format(2)``."""


@contextmanager
def networks(loss: float) -> Iterator[Networks]:
    """Make the namespaces, and remove them at the end.

    Raises ``PermissionError``, with a reason, if this machine can't.
    """
    names = [f"rl{os.getpid()}{kind}" for kind in ("server", "lossy", "doomed")]
    made = Networks(*names)
    try:
        for name in names:
            _run("ip", "netns", "add", name)
            _run_in(name, "ip", "link", "set", "lo", "up")
        _connect(made.server, made.lossy, SERVER.format(1), LOSSY)
        _connect(made.server, made.doomed, SERVER.format(2), DOOMED)
        for name in (made.server, made.lossy):
            _lose(name, device(made.lossy), loss)
        yield made
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def cut(network: str) -> None:
    """Remove the cable to a namespace, seen from there."""
    _run("ip", "link", "delete", device(network))


def device(network: str) -> str:
    """Return the name of a cable's end, which is the same at both ends."""
    return network[-6:]


def lost_packets(network: str) -> int:
    """Return how many packets a namespace has dropped on arrival."""
    listing = _run_in(network, "iptables", "-L", "INPUT", "-v", "-x", "-n")
    return int(listing.splitlines()[2].split()[0])


def _connect(server: str, client: str, server_address: str, client_address: str) -> None:
    name = device(client)
    peer = ("peer", "name", name, "netns", client)
    _run_in(server, "ip", "link", "add", name, "type", "veth", *peer)
    for network, address in ((server, server_address), (client, client_address)):
        _run_in(network, "ip", "address", "add", f"{address}/24", "dev", name)
        _run_in(network, "ip", "link", "set", name, "up")


def _lose(network: str, name: str, loss: float) -> None:
    match = ("-m", "statistic", "--mode", "random", "--probability", str(loss))
    _run_in(network, "iptables", "-A", "INPUT", "-i", name, *match, "-j", "DROP")


def _run_in(network: str, *command: str) -> str:
    return _run("ip", "netns", "exec", network, *command)


def _run(*command: str) -> str:
    done: Any = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PermissionError(f"{' '.join(command)}: {done.stderr.strip()}")
    return str(done.stdout)
