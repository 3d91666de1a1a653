"""Lookups of host names, in threads of their own.

A slow name server must not occupy the threads of asyncio's default executor, which decode pictures.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from ipaddress import IPv4Address, IPv6Address, ip_address

Address = IPv4Address | IPv6Address
LookUp = Callable[[str], Awaitable[Sequence[Address]]]
"""Returns the addresses of a host name in ASCII, or raises ``OSError``."""

THREADS = 32
MAX_WAITING = 512
"""Lookups that may wait for a thread: more than there are deliveries at a time."""


def find_addresses(host: str, flags: int = 0) -> list[Address]:
    """Return the addresses of a host, each once. This blocks.

    ``flags`` are those of ``getaddrinfo``. Raises ``socket.gaierror`` if the host has no address,
    and ``UnicodeError`` if its name is not ASCII: Python would encode it by IDNA 2003.
    """
    entries = socket.getaddrinfo(host.encode("ascii"), None, type=socket.SOCK_STREAM, flags=flags)
    return list(dict.fromkeys(_without_zone(str(entry[4][0])) for entry in entries))


def _without_zone(address: str) -> Address:
    return ip_address(address.partition("%")[0])


class LookupThreads:
    """Looks up host names in a fixed number of threads. Lookups beyond them wait.

    A lookup can't be interrupted. If nobody waits for it any more, it still keeps its thread until
    the system gives up. One that has not begun by then is skipped.
    """

    def __init__(
        self,
        threads: int = THREADS,
        max_waiting: int = MAX_WAITING,
        find: Callable[[str], Sequence[Address]] = find_addresses,
    ) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="lookup")
        self._max_waiting = max_waiting
        self._find = find
        self._waiting = 0
        self._lock = threading.Lock()

    async def look_up(self, host: str) -> Sequence[Address]:
        """Return the addresses of a host name in ASCII.

        Raises ``OSError`` if it has none, and if ``max_waiting`` other lookups wait for a thread.
        """
        answer: Future[Sequence[Address]] = Future()
        with self._lock:
            if self._waiting >= self._max_waiting:
                raise socket.gaierror(socket.EAI_AGAIN, "too many lookups are waiting")
            self._waiting += 1
        self._pool.submit(self._answer, host, answer)
        return await asyncio.wrap_future(answer)

    def _answer(self, host: str, answer: Future[Sequence[Address]]) -> None:
        with self._lock:
            self._waiting -= 1
        if not answer.set_running_or_notify_cancel():
            return
        try:
            answer.set_result(self._find(host))
        except Exception as error:
            answer.set_exception(error)


look_up = LookupThreads().look_up
"""Looks up a host name in the threads that all callers of this process share."""
