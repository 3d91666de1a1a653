"""Checks of the addresses that a URL from an untrusted caller leads to.

Only public addresses may be called, unless the configuration allows others. The checks follow
OWASP's "Server-Side Request Forgery Prevention Cheat Sheet". The special-purpose ranges are those
of IANA's registries (iana-ipv4-special-registry, iana-ipv6-special-registry). ``is_global`` of
:mod:`ipaddress` is no help: it lets 6to4, NAT64 and multicast addresses pass.
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


def _networks(*texts: str) -> tuple[Network, ...]:
    return tuple(map(ip_network, texts))


_NOT_PUBLIC_IPV4 = _networks(
    *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
    *("172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.168.0.0/16", "198.18.0.0/15"),
    *("198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
    "168.63.129.16/32",  # Azure's platform services, on a public address
    "192.88.99.0/24",  # 6to4 relays
)
_GLOBAL_UNICAST = ip_network("2000::/3")
_NOT_PUBLIC_IPV6 = _networks(
    "2001::/23",  # protocol assignments, among them Teredo, which embeds IPv4 addresses
    "2001:db8::/32",
    "2002::/16",  # 6to4, which embeds IPv4 addresses
    "3fff::/20",
)
"""The special-purpose ranges of ``_GLOBAL_UNICAST``. What is outside of it is not public: addresses
of the machine, of links and sites, multicast, and those that embed an IPv4 address for a gateway,
as 64:ff9b::/96."""
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
    """``.example.com`` stands for all names under it."""
    excludes_others: bool = False
    """Whether nothing else may be called, not even public addresses."""

    @classmethod
    def parse(cls, entries: Iterable[str], excludes_others: bool = False) -> AllowList:
        """Parse addresses, networks such as ``10.1.0.0/16``, and host names.

        ``*.example.com`` stands for all names under it. Raises ``ValueError`` if an entry is none
        of these.
        """
        networks: list[Network] = []
        hosts: set[str] = set()
        for entry in entries:
            try:
                networks.append(ip_network(entry))
            except ValueError:
                hosts.add(_parse_host_name(entry))
        return cls(tuple(networks), frozenset(hosts), excludes_others)

    def allows(self, host: str, address: Address) -> bool:
        """Whether this address of this host may be called."""
        is_public_enough = is_public(address) and not self.excludes_others
        return is_public_enough or self._lists(host) or _is_in(_unmap(address), self.networks)

    def _lists(self, host: str) -> bool:
        name = _normalize(host)
        labels = name.split(".")
        parents = {"." + ".".join(labels[start:]) for start in range(1, len(labels))}
        return not self.hosts.isdisjoint({name, *parents})

    def refuse(self, field: str, host: str, reason: str) -> AddressRefused:
        """Return the error for a host that may not be called. ``reason`` is why, unless it is that
        the host isn't listed."""
        if self.excludes_others:
            reason = "is not on the list of allowed hosts"
        return AddressRefused(f"{field}: {host[:MAX_HOST_CHARS]} {reason}", field)


def is_public(address: Address) -> bool:
    """Return whether an address is globally reachable and unicast, and embeds no other address.

    An IPv4-mapped IPv6 address is judged by its IPv4 address.
    """
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return is_public(address.ipv4_mapped)
    if isinstance(address, IPv6Address):
        return address in _GLOBAL_UNICAST and not _is_in(address, _NOT_PUBLIC_IPV6)
    return not _is_in(address, _NOT_PUBLIC_IPV4)


def check(host: str, addresses: Sequence[Address], allowed: AllowList, field: str) -> None:
    """Raise ``AddressRefused`` unless every address of a host name may be called.

    One refused address refuses the host, because a later lookup might return only that one. The
    error doesn't say which: the caller must not learn the addresses of this network.
    """
    if not _may_be_called(host, addresses, allowed):
        raise allowed.refuse(field, host, "leads to an address that is not public")


def check_literal(host: str, allowed: AllowList, field: str) -> None:
    """Raise ``AddressRefused`` if a host is an address that may not be called, in any notation.

    A host name passes. It is not resolved.
    """
    if not _may_be_called(host, _parse_literal(host), allowed):
        raise allowed.refuse(field, host, "is not a public address")


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
    return all(allowed.allows(host, address) for address in addresses)


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
    below = entry.startswith("*.")
    try:
        name = _normalize(to_ascii(entry.removeprefix("*.")))
    except ValueError:
        name = ""
    if not name or name.replace(".", "").isdigit():
        raise ValueError(f"{entry!r}: expected an address, a network or a host name")
    return f".{name}" if below else name


def _normalize(host: str) -> str:
    return host.rstrip(".").lower()
