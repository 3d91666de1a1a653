"""The addresses on which sessions listen."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator

import psutil
import pytest
from aiortc import RTCConfiguration, RTCIceServer, RTCPeerConnection

from raylens.core.errors import Overloaded
from raylens.realtime.webrtc.addresses import announce, find_addresses, listen_on

OWN = ("127.0.0.1", "10.1.2.3", "192.168.0.7", "169.254.1.1", "::1", "fd00::5")


def own() -> tuple[str, ...]:
    return OWN


@pytest.mark.parametrize(
    ("configured", "host", "found"),
    [
        ((), "127.0.0.1", ["127.0.0.1"]),
        ((), "localhost", ["127.0.0.1"]),
        ((), "10.1.2.3", ["10.1.2.3"]),
        ((), "0.0.0.0", ["10.1.2.3", "192.168.0.7"]),
        ((), "", ["10.1.2.3", "192.168.0.7"]),
        ((), "::", ["10.1.2.3", "192.168.0.7", "fd00::5"]),
        ((), "[::1]", ["::1"]),
        (("192.168.0.7",), "127.0.0.1", ["192.168.0.7"]),
        (("10.0.0.0/8", "127.0.0.1", "127.0.0.0/8"), "0.0.0.0", ["10.1.2.3", "127.0.0.1"]),
    ],
)
def test_the_servers_address_is_the_default(
    configured: tuple[str, ...], host: str, found: list[str]
) -> None:
    addresses = find_addresses(configured, host, own)
    assert [address for address in addresses if (address, host) != ("::1", "localhost")] == found


def test_an_address_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"webrtc\.addresses: .* 172\.16\.0\.0/12"):
        find_addresses(("172.16.0.0/12",), "0.0.0.0", own)


def test_this_machine_has_loopback() -> None:
    assert find_addresses(("127.0.0.0/8",), "0.0.0.0") == ("127.0.0.1",)


async def gather(
    addresses: tuple[str, ...], ports: tuple[int, int] = (0, 0), servers: tuple[str, ...] = ()
) -> tuple[RTCPeerConnection, list[tuple[str, int]]]:
    connection = RTCPeerConnection(
        RTCConfiguration([RTCIceServer(url, "me", "secret") for url in servers])
    )
    connection.createDataChannel("x")
    listen_on(connection, addresses, ports)
    try:
        await connection.setLocalDescription(await connection.createOffer())
    except Exception:
        await connection.close()
        raise
    found = re.findall(r"a=candidate:.* (\S+) (\d+) typ host", connection.localDescription.sdp)
    return connection, [(host, int(port)) for host, port in found]


def udp_sockets() -> set[tuple[str, int]]:
    """Return the addresses of this process's UDP sockets, from the kernel."""
    return {
        (connection.laddr.ip, connection.laddr.port)
        for connection in psutil.Process().net_connections("udp")
        if connection.laddr
    }


async def test_sockets_are_opened_on_the_given_addresses_only() -> None:
    before = udp_sockets()
    connection, candidates = await gather(("127.0.0.1", "127.0.0.2"))
    opened = udp_sockets() - before
    await connection.close()
    assert {host for host, _ in candidates} == {"127.0.0.1", "127.0.0.2"}
    assert opened == set(candidates)
    assert udp_sockets() == before


async def test_an_address_of_another_machine_is_an_error_that_names_the_setting() -> None:
    before = udp_sockets()
    with pytest.raises(OSError, match=r"webrtc\.addresses: can't listen on 203\.0\.113\.1"):
        await gather(("127.0.0.1", "203.0.113.1"))
    assert udp_sockets() == before


@pytest.fixture
def two_ports() -> Iterator[tuple[int, int]]:
    """Yield a range of two ports. The second is in use."""
    while True:
        first, second = (socket.socket(type=socket.SOCK_DGRAM) for _ in range(2))
        first.bind(("127.0.0.1", 0))
        port = first.getsockname()[1]
        first.close()
        with second:
            try:
                second.bind(("127.0.0.1", port + 1))
            except (OSError, OverflowError):
                continue
            yield port, port + 1
        return


async def test_ports_are_of_the_range_and_free(two_ports: tuple[int, int]) -> None:
    connection, candidates = await gather(("127.0.0.1",), two_ports)
    assert candidates == [("127.0.0.1", two_ports[0])]
    with pytest.raises(Overloaded, match=r"webrtc\.udp_ports: all ports from \d+ to \d+ .* in use"):
        await gather(("127.0.0.1",), two_ports)
    await connection.close()


async def test_a_turn_server_that_is_away_does_not_keep_the_answer() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"turn:127.0.0.1:{closed.getsockname()[1]}?transport=tcp"
        connection, candidates = await gather(("127.0.0.1",), servers=(url,))
    await connection.close()
    assert [host for host, _ in candidates] == ["127.0.0.1"]


async def test_a_stun_server_is_not_asked_from_loopback() -> None:
    """It would never answer, and each session would wait for it."""
    with socket.socket(type=socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.setblocking(False)
        url = f"stun:127.0.0.1:{server.getsockname()[1]}"
        connection, candidates = await gather(("127.0.0.1",), servers=(url,))
        await connection.close()
        with pytest.raises(BlockingIOError):
            server.recv(1)
    assert len(candidates) == 1


SDP = (
    "c=IN IP4 10.0.0.5\r\n"
    "a=candidate:abc 1 udp 2130706431 10.0.0.5 50001 typ host\r\n"
    "a=candidate:def 1 udp 2130706431 fd00::5 50002 typ host\r\n"
    "a=candidate:ghi 1 udp 999 198.51.100.9 3478 typ relay raddr 198.51.100.1 rport 9\r\n"
)


def test_the_public_address_is_announced_instead_of_the_hosts() -> None:
    announced = announce(SDP, "203.0.113.7")
    assert announced == SDP.replace("10.0.0.5 50001", "203.0.113.7 50001")
    assert announce(SDP, "2001:db8::7") == SDP.replace("fd00::5", "2001:db8::7")
    assert announce(SDP, None) == SDP
