"""What the HTTP layer needs of the sessions of live video, wherever they run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class SessionClient:
    """Who opens a session."""

    name: str
    """The name of the key, or the address."""
    key: str | None = None
    """The name of the key, if there are keys."""
    address: str = ""


@dataclass(frozen=True)
class SessionOffer:
    """A client's offer of a WebRTC session."""

    sdp: str
    type: str
    pipeline_id: str = "moondream"
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SessionAnswer:
    sdp: str
    type: str
    session_id: str


class WebRtcService(Protocol):
    """The WebRTC sessions of all replicas. A session is known to the client that opened it only.

    All methods raise ``Overloaded`` if the sessions' replicas are away.
    """

    async def ice_servers(self, client: SessionClient) -> list[dict[str, Any]]:
        """Return the ICE servers as browsers take them."""
        ...

    async def offer(self, offer: SessionOffer, client: SessionClient) -> SessionAnswer:
        """Open a session.

        Raises ``InvalidRequest``, ``TooManyRequests`` and ``Overloaded``.
        """
        ...

    async def add_candidates(
        self, session_id: str, candidates: Sequence[Any], client: SessionClient
    ) -> None:
        """Add a client's ICE candidates. Raises ``InvalidRequest`` and ``UnknownSession``."""
        ...

    async def state(self, session_id: str, client: SessionClient) -> dict[str, Any]:
        """Return a session's state, also if it has ended not long ago, as JSON.

        Raises ``UnknownSession``.
        """
        ...

    async def close(self, session_id: str, client: SessionClient) -> None:
        """End a session. Raises ``UnknownSession``."""
        ...
