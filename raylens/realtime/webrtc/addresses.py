"""The addresses on which sessions listen, and sockets on exactly these."""

from __future__ import annotations

import asyncio
import errno
import random
import re
import socket
from collections.abc import Callable, Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import psutil
from aioice import Candidate
from aioice.candidate import candidate_foundation, candidate_priority
from aioice.ice import Connection, StunProtocol, server_reflexive_candidate
from aiortc import RTCPeerConnection

from raylens.core.errors import Overloaded

GATHER_TIMEOUT_S = 3.0
"""For the answers of STUN and TURN servers."""
RECEIVE_BUFFER = 2**18
"""Bytes of a socket's buffer; aioice's own value."""
_HOST_CANDIDATE = re.compile(
    r"^(a=candidate:\S+ \d+ \S+ \d+ )(\S+)( \d+ typ host)", re.MULTILINE | re.IGNORECASE
)

Address = IPv4Address | IPv6Address


def find_addresses(
    configured: Sequence[str],
    server_host: str,
    interfaces: Callable[[], Iterable[str]] | None = None,
) -> tuple[str, ...]:
    """Return the addresses to listen on: the configured ones, or else the server's.

    ``configured`` has addresses and networks. ``server_host`` may be a name; if it stands for every
    address, those of all interfaces are returned, without loopback. Raises ``ValueError`` if there
    are none.
    """
    own = [ip_address(text) for text in (interfaces or _interface_addresses)()]
    found: Iterable[Address]
    if configured:
        found = [address for entry in configured for address in _match(entry, own)]
    else:
        found = _server_addresses(server_host.strip("[]"), own)
    unique = tuple(dict.fromkeys(map(str, found)))
    if not unique:
        given = ", ".join(configured) or server_host
        raise ValueError(f"webrtc.addresses: no address of this machine is in {given}")
    return unique


def _match(entry: str, own: Iterable[Address]) -> Iterable[Address]:
    if "/" not in entry:
        return [ip_address(entry)]
    network = ip_network(entry)
    return [address for address in own if address in network]


def _server_addresses(host: str, own: Iterable[Address]) -> Iterable[Address]:
    try:
        address = ip_address(host or "0.0.0.0")
    except ValueError:
        infos = socket.getaddrinfo(host, None, type=socket.SOCK_DGRAM)
        return [ip_address(str(info[4][0]).partition("%")[0]) for info in infos]
    if not address.is_unspecified:
        return [address]
    versions = {4} if address.version == 4 else {4, 6}
    return [
        other
        for other in own
        if other.version in versions and not (other.is_loopback or other.is_link_local)
    ]


def _interface_addresses() -> Iterable[str]:
    for entries in psutil.net_if_addrs().values():
        for entry in entries:
            if entry.family in (socket.AF_INET, socket.AF_INET6) and "%" not in entry.address:
                yield entry.address


def listen_on(
    connection: RTCPeerConnection, addresses: Sequence[str], ports: tuple[int, int] = (0, 0)
) -> None:
    """Make a peer connection gather its candidates on these addresses and ports only.

    It is called between the remote description and the local one, or before an offer. aioice alone
    opens a socket on every interface, never on 127.0.0.1, and on any port.
    """
    for ice in ice_connections(connection):
        ice.gather_candidates = _Gatherer(ice, addresses, ports).gather  # type: ignore[method-assign]


def ice_connections(connection: RTCPeerConnection) -> list[Connection]:
    """Return the ICE agents of a peer connection; one, if everything is bundled."""
    transports = getattr(connection, "_RTCPeerConnection__iceTransports")  # noqa: B009
    return [transport._connection for transport in transports]


class _Gatherer:
    """Takes the place of ``Connection.gather_candidates``."""

    def __init__(self, ice: Connection, addresses: Sequence[str], ports: tuple[int, int]) -> None:
        self._ice = ice
        self._addresses = addresses
        self._ports = ports

    async def gather(self) -> None:
        ice = self._ice
        if ice._local_candidates_start:
            return
        ice._local_candidates_start = True
        for address in self._addresses:
            protocol = await _listen(ice, address, self._ports)
            ice._protocols.append(protocol)
            ice._local_candidates.append(protocol.local_candidate)
        ice._local_candidates += await self._ask_servers(list(ice._protocols))
        ice._local_candidates_end = True

    async def _ask_servers(self, protocols: Sequence[StunProtocol]) -> list[Candidate]:
        """Return the candidates that STUN and TURN servers give. Their failure is no error."""
        # aioice asks a TURN server, if there is one, and opens no other socket.
        asks = [self._ice.get_component_candidates(1, [], timeout=round(GATHER_TIMEOUT_S))]
        candidates: list[Candidate] = []
        reflexive = [
            asyncio.wait_for(self._reflexive(protocol), GATHER_TIMEOUT_S)
            for protocol in protocols
            if self._ice.stun_server and _reaches_internet(protocol.local_candidate.host)
        ]
        relayed, *answers = await asyncio.gather(*asks, *reflexive, return_exceptions=True)
        if isinstance(relayed, list):
            candidates += relayed
        return candidates + [answer for answer in answers if isinstance(answer, Candidate)]

    async def _reflexive(self, protocol: StunProtocol) -> Candidate:
        assert self._ice.stun_server is not None
        candidate, _ = await server_reflexive_candidate(protocol, self._ice.stun_server)
        return candidate


def _reaches_internet(address: str) -> bool:
    parsed = ip_address(address)
    return parsed.version == 4 and not parsed.is_loopback


async def _listen(ice: Connection, address: str, ports: tuple[int, int]) -> StunProtocol:
    """Open a UDP socket. Raises ``Overloaded`` if no port is free, and ``OSError``."""
    first, last = ports
    for port in random.sample(range(first, last + 1), last - first + 1):
        try:
            return await _open(ice, address, port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise OSError(
                    error.errno, f"webrtc.addresses: can't listen on {address}: {error.strerror}"
                ) from None
    raise Overloaded(
        f"webrtc.udp_ports: all ports from {first} to {last} of {address} are in use",
        None,
        last - first + 1,
        None,
        5.0,
    )


async def _open(ice: Connection, address: str, port: int) -> StunProtocol:
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_datagram_endpoint(
        lambda: StunProtocol(ice), local_addr=(address, port)
    )
    transport.get_extra_info("socket").setsockopt(
        socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER
    )
    host, bound_port = transport.get_extra_info("sockname")[:2]
    protocol.local_candidate = Candidate(
        foundation=candidate_foundation("host", "udp", host),
        component=1,
        transport="udp",
        priority=candidate_priority(1, "host"),
        host=host,
        port=bound_port,
        type="host",
    )
    return protocol


def announce(sdp: str, public_address: str | None) -> str:
    """Return an SDP whose host candidates have the public address instead of this machine's."""
    if public_address is None:
        return sdp
    version = ip_address(public_address).version

    def replace(match: re.Match[str]) -> str:
        if ip_address(match[2]).version != version:
            return match[0]
        return f"{match[1]}{public_address}{match[3]}"

    return _HOST_CANDIDATE.sub(replace, sdp)
