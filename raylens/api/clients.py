"""Who counts as one client."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Any

from starlette.datastructures import Headers

KEY_HEADERS = ("x-moondream-auth", "x-api-key")
"""Headers that hold a key, beside ``Authorization: Bearer``."""
SUBPROTOCOL = "raylens-key."
"""Beginning of the WebSocket subprotocol that holds a key: browsers can't send headers there."""
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


def presented_keys(headers: Headers) -> Iterator[str]:
    """Yield the keys in a request's headers; some are empty."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        yield key.strip()
    for name in KEY_HEADERS:
        yield headers.get(name, "").strip()
    for protocol in headers.get("sec-websocket-protocol", "").split(","):
        if protocol.strip().startswith(SUBPROTOCOL):
            yield protocol.strip().removeprefix(SUBPROTOCOL)
