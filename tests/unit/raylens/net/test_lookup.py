from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from raylens.net.lookup import Address, LookupThreads, find_addresses, look_up

ADDRESS = ip_address("192.0.2.1")


class StuckDns:
    """Answers the name ``stuck`` once ``recover`` was called, and every other name at once."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.threads: list[str] = []
        self._is_stuck = threading.Event()
        self._recovered = threading.Event()

    def find(self, host: str) -> list[Address]:
        self.names.append(host)
        self.threads.append(threading.current_thread().name)
        if host == "stuck":
            self._is_stuck.set()
            self._recovered.wait()
        return [ADDRESS]

    async def wait_until_stuck(self) -> None:
        await asyncio.to_thread(self._is_stuck.wait)

    def recover(self) -> None:
        self._recovered.set()


@pytest.fixture
def dns() -> Iterator[StuckDns]:
    dns = StuckDns()
    yield dns
    dns.recover()


def test_a_host_has_each_of_its_addresses_once() -> None:
    addresses = find_addresses("localhost")
    assert len(addresses) == len(set(addresses)) > 0
    assert all(address.is_loopback for address in addresses)


def test_a_name_that_python_would_encode_by_idna_2003_is_refused() -> None:
    with pytest.raises(UnicodeError):
        find_addresses("faß.example")


async def test_a_name_without_an_address_is_an_os_error() -> None:
    with pytest.raises(socket.gaierror):
        await look_up("nothing.invalid")


async def test_a_lookup_runs_in_a_thread_of_its_own(dns: StuckDns) -> None:
    assert await LookupThreads(find=dns.find).look_up("hooks.example") == [ADDRESS]
    (thread,) = dns.threads
    assert thread.startswith("lookup")


async def test_lookups_beyond_the_threads_wait(dns: StuckDns) -> None:
    threads = LookupThreads(1, 2, dns.find)
    lookups = [asyncio.create_task(threads.look_up(host)) for host in ("stuck", "a", "b")]
    await dns.wait_until_stuck()
    assert dns.names == ["stuck"]
    dns.recover()
    assert await asyncio.gather(*lookups) == [[ADDRESS]] * 3


async def test_only_so_many_lookups_wait(dns: StuckDns) -> None:
    threads = LookupThreads(1, 1, dns.find)
    stuck = asyncio.create_task(threads.look_up("stuck"))
    await dns.wait_until_stuck()
    waiting = asyncio.create_task(threads.look_up("a"))
    await asyncio.sleep(0)  # runs the task up to its wait
    with pytest.raises(socket.gaierror, match="too many lookups"):
        await threads.look_up("b")
    dns.recover()
    assert [await stuck, await waiting] == [[ADDRESS]] * 2
    assert await threads.look_up("c") == [ADDRESS]


async def test_a_lookup_that_nobody_waits_for_any_more_is_skipped(dns: StuckDns) -> None:
    threads = LookupThreads(1, 2, dns.find)
    stuck = asyncio.create_task(threads.look_up("stuck"))
    await dns.wait_until_stuck()
    stuck.cancel()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(threads.look_up("abandoned"), 0.01)
    dns.recover()
    assert await threads.look_up("a") == [ADDRESS]
    assert dns.names == ["stuck", "a"]
