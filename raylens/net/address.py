"""Checks of the addresses that a URL from an untrusted caller leads to.

Only public addresses may be called, unless the configuration allows others. The checks follow
OWASP's "Server-Side Request Forgery Prevention Cheat Sheet". The special-purpose ranges are those
of IANA's registries, as implemented by :mod:`ipaddress`.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from raylens.core.errors import InvalidRequest

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_ALSO_REFUSED: tuple[Network, ...] = (
    ip_network("168.63.129.16/32"),  # Azure's platform services, on a public address
    ip_network("192.88.99.0/24"),  # 6to4 relays
    # Addresses that embed an IPv4 address. A gateway forwards them to any IPv4 host.
    ip_network("64:ff9b::/96"),
    ip_network("64:ff9b:1::/48"),
    ip_network("2001::/32"),
    ip_network("2002::/16"),
    ip_network("::/96"),
    ip_network("::ffff:0:0:0/96"),
    ip_network("fec0::/10"),  # site-local, deprecated
    # Special-purpose ranges that are newer than the table of the ipaddress module.
    ip_network("100:0:0:1::/64"),
    ip_network("3fff::/20"),
    ip_network("5f00::/16"),
)
_NOT_IN_HOST_NAMES = frozenset("/:@ ?#*")
MAX_HOST_CHARS = 128
"""Longest part of a host name in an error message."""


class AddressRefused(InvalidRequest):
    """The URL leads to an address that may not be called."""

    code = "address_refused"


@dataclass(frozen=True)
class AllowList:
    """The networks and host names that may be called although they are not public."""

    networks: tuple[Network, ...] = ()
    hosts: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, entries: Iterable[str]) -> AllowList:
        """Parse addresses, networks such as ``10.1.0.0/16``, and host names.

        Raises ``ValueError`` if an entry is none of them.
        """
        networks: list[Network] = []
        hosts: set[str] = set()
        for entry in entries:
            try:
                networks.append(ip_network(entry))
            except ValueError:
                if not _is_host_name(entry):
                    raise ValueError(
                        f"{entry!r}: expected an address, a network or a host name"
                    ) from None
                hosts.add(_normalize(entry))
        return cls(tuple(networks), frozenset(hosts))

    def allows(self, host: str, address: Address) -> bool:
        return _normalize(host) in self.hosts or _is_in(address, self.networks)


def is_public(address: Address) -> bool:
    """Return whether an address is globally reachable and unicast, and embeds no other address.

    An IPv4-mapped IPv6 address is judged by its IPv4 address.
    """
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return is_public(address.ipv4_mapped)
    if address.is_multicast or not address.is_global:
        return False
    return not _is_in(address, _ALSO_REFUSED)


def check(host: str, addresses: Sequence[Address], allowed: AllowList, field: str) -> None:
    """Raise ``AddressRefused`` unless every address of a host may be called.

    One refused address refuses the host, because a later lookup might return only that one.
    """
    for address in addresses:
        if not (is_public(address) or allowed.allows(host, _unmap(address))):
            name = host[:MAX_HOST_CHARS]
            message = f"{field}: {name} resolves to {address}, which is not a public address"
            raise AddressRefused(message, field)


def check_literal(host: str, allowed: AllowList, field: str) -> None:
    """Raise ``AddressRefused`` if a host is an address that may not be called, in any notation.

    A host name passes. It is not resolved.
    """
    literal = host.partition("%")[0]
    try:
        entries = socket.getaddrinfo(
            literal, None, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
        )
    except (socket.gaierror, UnicodeError):
        return
    check(host, [_address_of(entry) for entry in entries], allowed, field)


async def resolve(host: str, port: int, allowed: AllowList, field: str) -> list[Address]:
    """Return all addresses of a host, after checking every one.

    Raises ``AddressRefused``, and ``OSError`` if the host has no address.
    """
    try:
        entries = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise OSError(f"{host[:MAX_HOST_CHARS]!r}: not a host name: {error}") from None
    addresses = list(dict.fromkeys(_address_of(entry) for entry in entries))
    check(host, addresses, allowed, field)
    return addresses


def _address_of(entry: tuple[object, object, object, object, tuple[object, ...]]) -> Address:
    """Return the address in an entry of ``getaddrinfo``, without an IPv6 zone."""
    socket_address = entry[4]
    return ip_address(str(socket_address[0]).partition("%")[0])


def _is_in(address: Address, networks: Iterable[Network]) -> bool:
    return any(address in network for network in networks if network.version == address.version)


def _unmap(address: Address) -> Address:
    """Return the IPv4 address of an IPv4-mapped IPv6 address, and any other unchanged."""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return address if mapped is None else mapped


def _is_host_name(entry: str) -> bool:
    is_number = entry.replace(".", "").isdigit()
    return bool(entry) and not is_number and not _NOT_IN_HOST_NAMES & set(entry)


def _normalize(host: str) -> str:
    return host.rstrip(".").lower()
