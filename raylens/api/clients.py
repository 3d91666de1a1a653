"""Who counts as one client."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Any

IPV6_PREFIX = 64
"""Bits of an IPv6 address that tell clients apart: one of them has all addresses behind these."""


def client_of(address: Sequence[Any] | None) -> str:
    """Return the client of an ASGI ``client``, (host, port): its address, or its IPv6 network."""
    host = str(address[0]) if address else ""
    try:
        ip = ip_address(host)
    except ValueError:
        return host
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped is None:
        return str(ip_network((int(ip), IPV6_PREFIX), strict=False))
    return host
