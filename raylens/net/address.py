"""Which addresses may be called where somebody else has named the URL: none of a private network,
none special.

After OWASP's "Server-Side Request Forgery Prevention Cheat Sheet"; the special-purpose ranges are
IANA's registries, as :mod:`ipaddress` has them.
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
    ip_network("168.63.129.16/32"),  # Azure's platform services, under a public address
    ip_network("192.88.99.0/24"),  # 6to4 relays
    # These carry an IPv4 address, and a gateway would take it anywhere.
    ip_network("64:ff9b::/96"),
    ip_network("64:ff9b:1::/48"),
    ip_network("2001::/32"),
    ip_network("2002::/16"),
    ip_network("::/96"),
    ip_network("::ffff:0:0:0/96"),
    ip_network("fec0::/10"),  # site-local, of old
    # Registered as special since Python's own table was made.
    ip_network("100:0:0:1::/64"),
    ip_network("3fff::/20"),
    ip_network("5f00::/16"),
)


class AddressRefused(InvalidRequest):
    """A URL that leads where nobody from outside may send us."""

    code = "address_refused"


@dataclass(frozen=True)
class AllowList:
    """What the configuration opens beside public addresses: networks such as ``10.1.0.0/16``, and
    names of hosts."""

    networks: tuple[Network, ...] = ()
    hosts: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, entries: Iterable[str]) -> AllowList:
        """Each entry is an address, a network, or a host's name. Raises ``ValueError`` for what is
        none of them."""
        networks: list[Network] = []
        hosts: set[str] = set()
        for entry in entries:
            try:
                networks.append(ip_network(entry))
            except ValueError:
                if not entry or set(entry) & set("/:@ ?#*") or entry.replace(".", "").isdigit():
                    raise ValueError(
                        f"{entry!r} is no address, no network and no host's name"
                    ) from None
                hosts.add(_name(entry))
        return cls(tuple(networks), frozenset(hosts))

    def opens(self, host: str, address: Address) -> bool:
        return _name(host) in self.hosts or any(
            address in network for network in self.networks if network.version == address.version
        )


def is_public(address: Address) -> bool:
    """Whether an address belongs to the internet at large: reachable from everywhere, no multicast,
    no wrapper."""
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return is_public(address.ipv4_mapped)
    if address.is_multicast or not address.is_global:
        return False
    return not any(
        address in network for network in _ALSO_REFUSED if network.version == address.version
    )


def check(host: str, addresses: Sequence[Address], allowed: AllowList, field: str) -> None:
    """Raises ``AddressRefused`` unless all of a host's addresses may be called: one that may not is
    a trap."""
    for address in addresses:
        if not (is_public(address) or allowed.opens(host, _plain(address))):
            raise AddressRefused(
                f"{field}: {host[:128]} leads to {address}, which is not a public address", field
            )


def check_literal(host: str, allowed: AllowList, field: str) -> None:
    """Raises as :func:`check` does where ``host`` is an address, in whatever notation; a name
    passes, unresolved."""
    try:
        found = socket.getaddrinfo(
            host.partition("%")[0], None, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
        )
    except (socket.gaierror, UnicodeError):
        return
    check(host, [_address(entry) for entry in found], allowed, field)


async def resolve(host: str, port: int, allowed: AllowList, field: str) -> list[Address]:
    """All addresses of a host, every one of them checked. Raises ``AddressRefused``, and
    ``OSError`` where there is none."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise OSError(f"{host[:128]!r} is no host's name: {error}") from None
    addresses = list(dict.fromkeys(_address(entry) for entry in found))
    check(host, addresses, allowed, field)
    return addresses


def _address(entry: tuple[object, object, object, object, tuple[object, ...]]) -> Address:
    return ip_address(str(entry[4][0]).partition("%")[0])


def _plain(address: Address) -> Address:
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return address if mapped is None else mapped


def _name(host: str) -> str:
    return host.rstrip(".").lower()
