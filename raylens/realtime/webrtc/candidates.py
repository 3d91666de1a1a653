"""ICE candidates of clients, as browsers send them: in an offer, or one by one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from aiortc import RTCIceCandidate

from raylens.core.errors import InvalidRequest

MAX_LINE_CHARS = 1024
_LINE = re.compile(
    r"(?:a=)?(?:candidate:)?(?P<foundation>[^ ]{1,64}) (?P<component>[0-9]{1,5}) "
    r"(?P<transport>[A-Za-z]{1,16}) (?P<priority>[0-9]{1,10}) (?P<host>[^ ]{1,255}) "
    r"(?P<port>[0-9]{1,5}) typ (?P<type>[a-z]{1,16})(?: .*)?"
)
_TYPES = frozenset({"host", "srflx", "relay"})


@dataclass(frozen=True)
class Candidate:
    """A client's candidate."""

    address: str
    """An IP address, or a name ending in ``.local``."""
    port: int
    type: str
    transport: str
    line: str
    """In SDP, without ``candidate:``."""
    component: int = 1

    @property
    def is_hidden(self) -> bool:
        """Whether a name hides the address (mDNS)."""
        return self.address.endswith(".local")

    def __str__(self) -> str:
        return f"{self.address} port {self.port} ({self.transport} {self.type})"

    def to_aiortc(self, mid: str | None, line_index: int | None) -> RTCIceCandidate:
        """Return it for a media line, which has a name or an index."""
        foundation, component, _, priority, *_ = self.line.split(" ")
        return RTCIceCandidate(
            component=int(component),
            foundation=foundation,
            ip=self.address,
            port=self.port,
            priority=int(priority),
            protocol=self.transport,
            type=self.type,
            sdpMid=mid,
            sdpMLineIndex=line_index,
        )


def parse_candidate(text: str, field: str) -> Candidate:
    """Parse a candidate's line. Raises ``InvalidRequest`` for ``field``."""
    match = _LINE.fullmatch(text.strip()) if len(text) <= MAX_LINE_CHARS else None
    if match is None:
        raise InvalidRequest(
            f"{field}: {text[:100]!r} is not a candidate; expected"
            " 'candidate:FOUNDATION COMPONENT udp PRIORITY ADDRESS PORT typ TYPE'",
            field,
        )
    address, port = match["host"].lower(), int(match["port"])
    if not address.endswith(".local"):
        try:
            address = str(ip_address(address))
        except ValueError:
            raise InvalidRequest(
                f"{field}: {address[:100]!r} is neither an IP address nor a .local name", field
            ) from None
    if not 0 < port < 2**16:
        raise InvalidRequest(f"{field}: port {port}; expected 1 to 65535", field)
    line = match[0].removeprefix("a=").removeprefix("candidate:")
    transport = match["transport"].lower()
    return Candidate(address, port, match["type"], transport, line, int(match["component"]))


@dataclass(frozen=True)
class Trickled:
    """A candidate that came after the offer, and the media line that it belongs to."""

    candidate: Candidate
    mid: str | None
    line_index: int | None


def parse_trickled(entry: Any, field: str) -> Trickled | None:
    """Parse an ``RTCIceCandidateInit``; None says that no more will come.

    Raises ``InvalidRequest``, which names the part of ``field`` that is at fault.
    """
    if entry is None:
        return None
    if not isinstance(entry, Mapping):
        raise InvalidRequest(f"{field}: expected an object with candidate and sdpMid", field)
    text = entry.get("candidate")
    if text is None or text == "":
        return None
    if not isinstance(text, str):
        raise InvalidRequest(f"{field}.candidate: expected text", f"{field}.candidate")
    candidate = parse_candidate(text, f"{field}.candidate")
    mid, index = entry.get("sdpMid"), entry.get("sdpMLineIndex")
    if mid is not None and not isinstance(mid, str):
        raise InvalidRequest(f"{field}.sdpMid: expected text", f"{field}.sdpMid")
    if index is not None and (not isinstance(index, int) or isinstance(index, bool) or index < 0):
        name = f"{field}.sdpMLineIndex"
        raise InvalidRequest(f"{name}: expected an integer from 0", name)
    if mid is None and index is None:
        name = f"{field}.sdpMid"
        raise InvalidRequest(f"{name}: missing, and so is sdpMLineIndex", name)
    return Trickled(candidate, mid, index)


def is_usable(candidate: Candidate, resolves_mdns: bool, allows_loopback: bool) -> bool:
    """Whether the server may send packets to a candidate.

    It never sends any to multicast and unspecified addresses. It sends to its own machine only if
    it listens there: otherwise a client could reach programs that listen on loopback only.
    """
    if candidate.transport != "udp" or candidate.component != 1 or candidate.type not in _TYPES:
        return False
    if candidate.is_hidden:
        return resolves_mdns
    address: IPv4Address | IPv6Address = ip_address(candidate.address)
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if address.is_multicast or address.is_unspecified or str(address) == "255.255.255.255":
        return False
    return allows_loopback or not address.is_loopback
