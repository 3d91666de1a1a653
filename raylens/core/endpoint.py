"""Where a server's HTTP is."""

from __future__ import annotations

from dataclasses import dataclass

_ANY_ADDRESS = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}
"""The loopback address by the address that stands for all of them."""


@dataclass(frozen=True)
class Endpoint:
    """The address that the HTTP server listens on, and the application's prefix there."""

    host: str
    port: int
    prefix: str = ""
    """The application's ``route_prefix``, without a slash at its end."""

    @property
    def url(self) -> str:
        host = _ANY_ADDRESS.get(self.host, self.host)
        if ":" in host:
            host = f"[{host}]"
        return f"http://{host}:{self.port}{self.prefix}"
