"""The WebRTC sessions of one process."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from raylens.core.errors import Overloaded, TooManyRequests, UnknownSession
from raylens.core.webrtc_config import WebRtcConfig
from raylens.realtime.frames import OpenProcessor
from raylens.realtime.webrtc.ice_servers import aiortc_servers
from raylens.realtime.webrtc.peer import Environment, Peer, PeerState

REMEMBERED = 256
"""Ended sessions whose reasons are still known."""
RETRY_S = 1.0
"""Until another replica may take the sessions of one that stops."""


class Sessions:
    """Opens, finds and closes sessions. It is used on one event loop.

    ``prefix`` names the process: a session's id is ``PREFIX-RANDOM``. ``addresses`` are those of
    :func:`raylens.realtime.webrtc.addresses.find_addresses`. A session that ends, for whatever
    reason, leaves by itself.
    """

    def __init__(
        self,
        prefix: str,
        config: WebRtcConfig,
        addresses: Sequence[str],
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._prefix = prefix
        self._config = config
        self._addresses = tuple(addresses)
        self._clock = clock
        self._wall_clock = wall_clock
        self._peers: dict[str, Peer] = {}
        self._ended: OrderedDict[str, PeerState] = OrderedDict()
        self._closing_because = ""

    @property
    def states(self) -> list[PeerState]:
        """The sessions that have not ended."""
        return [peer.state for peer in self._peers.values()]

    async def open(
        self,
        sdp: str,
        kind: str,
        parameters: Mapping[str, Any],
        client: str,
        open_processor: OpenProcessor,
    ) -> tuple[str, str]:
        """Open a session. Return its id and the SDP answer.

        ``kind`` is the offer's ``type``. Raises ``TooManyRequests`` and ``Overloaded`` at the
        limits, ``Overloaded`` after :meth:`close_all`, and what :meth:`Peer.answer` raises.
        """
        self._check_limits(client)
        session_id = f"{self._prefix}-{secrets.token_urlsafe(12)}"
        servers = aiortc_servers(self._config, client, self._wall_clock())
        environment = Environment(self._config, self._addresses, open_processor, self._clock)
        peer = Peer(session_id, client, environment, servers, self._on_end)
        self._peers[session_id] = peer
        return session_id, await peer.answer(sdp, kind, parameters)

    def find(self, session_id: str, client: str) -> Peer:
        """Return a client's session. Raises ``UnknownSession``, which says why one has ended."""
        peer = self._peers.get(session_id)
        if peer is not None and peer.client == client:
            return peer
        ended = self._ended.get(session_id)
        if ended is not None and ended.client == client:
            raise UnknownSession(f"session {session_id} has ended: {ended.reason}")
        if not session_id.startswith(f"{self._prefix}-"):
            raise UnknownSession(
                f"the part of the server with session {session_id[:100]!r} has ended: open another"
                " session"
            )
        raise UnknownSession(f"there is no session {session_id[:100]!r}")

    def state(self, session_id: str, client: str) -> PeerState:
        """Return the state of a client's session, also if it ended not long ago.

        Raises ``UnknownSession``.
        """
        ended = self._ended.get(session_id)
        if ended is not None and ended.client == client:
            return ended
        return self.find(session_id, client).state

    async def close(self, session_id: str, client: str, reason: str) -> None:
        """End a client's session. Raises ``UnknownSession``."""
        await self.find(session_id, client).close(reason)

    async def close_all(self, reason: str) -> None:
        """End every session, and open no more."""
        self._closing_because = reason
        peers = list(self._peers.values())
        await asyncio.gather(*(peer.close(reason, RETRY_S) for peer in peers))

    def _check_limits(self, client: str) -> None:
        if self._closing_because:
            raise Overloaded(f"no new sessions: {self._closing_because}", None, None, None, RETRY_S)
        own = sum(peer.client == client for peer in self._peers.values())
        limit = self._config.max_sessions_per_client
        if own >= limit:
            message = f"{own} WebRTC sessions of this client are open; the limit is {limit}"
            raise TooManyRequests(message, None, limit, own, 5.0)
        limit, total = self._config.max_sessions, len(self._peers)
        if total >= limit:
            message = f"{total} WebRTC sessions are open; the limit is {limit}"
            raise Overloaded(message, None, limit, total, 5.0)

    def _on_end(self, peer: Peer) -> None:
        self._peers.pop(peer.id, None)
        self._ended[peer.id] = peer.state
        while len(self._ended) > REMEMBERED:
            self._ended.popitem(last=False)
