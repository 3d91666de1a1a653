"""A name server for tests."""

from __future__ import annotations

from ipaddress import ip_address

from raylens.net.lookup import Address


class FakeDns:
    """Gives every name the same addresses, and records the names."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = [ip_address(address) for address in addresses]
        self.names: list[str] = []

    async def look_up(self, host: str) -> list[Address]:
        self.names.append(host)
        return self.addresses
