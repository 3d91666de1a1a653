"""Checks of the addresses that a URL from an untrusted caller leads to.

Only public addresses may be called, unless the configuration allows others. The checks follow
OWASP's "Server-Side Request Forgery Prevention Cheat Sheet". The special-purpose ranges are those
of IANA's registries, as implemented by :mod:`ipaddress`.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_network

from raylens.core.errors import InvalidRequest
from raylens.net.host_name import to_ascii
from raylens.net.lookup import Address, LookUp, find_addresses, look_up

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
                hosts.add(_parse_host_name(entry))
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
    """Raise ``AddressRefused`` unless every address of a host name may be called.

    One refused address refuses the host, because a later lookup might return only that one. The
    error doesn't say which: the caller must not learn the addresses of this network.
    """
    if not _may_be_called(host, addresses, allowed):
        name = host[:MAX_HOST_CHARS]
        raise AddressRefused(f"{field}: {name} leads to an address that is not public", field)


def check_literal(host: str, allowed: AllowList, field: str) -> None:
    """Raise ``AddressRefused`` if a host is an address that may not be called, in any notation.

    A host name passes. It is not resolved.
    """
    if not _may_be_called(host, _parse_literal(host), allowed):
        raise AddressRefused(f"{field}: {host[:MAX_HOST_CHARS]} is not a public address", field)


async def resolve(
    host: str, allowed: AllowList, field: str, look_up: LookUp = look_up
) -> Sequence[Address]:
    """Return all addresses of a host, after checking every one.

    A host name is in ASCII. Only a name is looked up.

    Raises ``AddressRefused``, and ``OSError`` if the host has no address.
    """
    check_literal(host, allowed, field)
    if literal := _parse_literal(host):
        return literal
    addresses = await look_up(host)
    if not addresses:
        raise socket.gaierror(socket.EAI_NONAME, "no address")
    check(host, addresses, allowed, field)
    return addresses


def _parse_literal(host: str) -> Sequence[Address]:
    """Return the address that a host is, in any notation, without its zone. Empty for a name."""
    literal = host.partition("%")[0].removesuffix(".")
    try:
        return find_addresses(literal, socket.AI_NUMERICHOST)
    except (socket.gaierror, UnicodeError):
        return []


def _may_be_called(host: str, addresses: Iterable[Address], allowed: AllowList) -> bool:
    return all(is_public(address) or allowed.allows(host, _unmap(address)) for address in addresses)


def _is_in(address: Address, networks: Iterable[Network]) -> bool:
    return any(address in network for network in networks if network.version == address.version)


def _unmap(address: Address) -> Address:
    """Return the IPv4 address of an IPv4-mapped IPv6 address, and any other unchanged."""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return address if mapped is None else mapped


def _parse_host_name(entry: str) -> str:
    """Return an allowed host name as :meth:`AllowList.allows` compares it. Raises ``ValueError``.

    A malformed address is not a host name.
    """
    try:
        name = _normalize(to_ascii(entry))
    except ValueError:
        name = ""
    if not name or name.replace(".", "").isdigit():
        raise ValueError(f"{entry!r}: expected an address, a network or a host name")
    return name


def _normalize(host: str) -> str:
    return host.rstrip(".").lower()
