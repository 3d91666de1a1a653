"""The candidates of one client, and which of them the server tries."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any

from aiortc import RTCPeerConnection

from raylens.core.errors import InvalidRequest
from raylens.realtime.webrtc.candidates import Candidate, Trickled, is_usable, parse_trickled

MAX_CANDIDATES = 100
"""Of a client."""


class RemoteCandidates:
    """Hands a client's candidates to ICE, unless the server must not use them.

    ICE is never told that there are no more: it would end if all are hidden behind names, although
    the client's packets, which tell its address, may come.
    """

    def __init__(
        self,
        connection: RTCPeerConnection,
        mids: Sequence[str],
        own_addresses: Sequence[str],
        resolves_mdns: bool,
    ) -> None:
        self._connection = connection
        self._mids = mids
        self._resolves_mdns = resolves_mdns
        self._has_loopback = any(ip_address(own).is_loopback for own in own_addresses)
        self.usable: list[Candidate] = []
        self.unusable: list[Candidate] = []

    async def add(self, entries: Sequence[Any]) -> None:
        """Add ``RTCIceCandidateInit`` objects. Raises ``InvalidRequest``, and then adds none."""
        self._check_count(len(entries), "candidates")
        parsed = [
            self._check_line(parse_trickled(entry, f"candidates.{number}"), number)
            for number, entry in enumerate(entries)
        ]
        await asyncio.gather(*(self._try(trickled) for trickled in parsed if trickled is not None))

    async def add_offered(self, candidates: Sequence[tuple[Candidate, int]]) -> None:
        """Add those of the offer, with the indices of their media lines."""
        self._check_count(len(candidates), "sdp")
        await asyncio.gather(
            *(self._try(Trickled(candidate, None, index)) for candidate, index in candidates)
        )

    def _check_count(self, more: int, field: str) -> None:
        if len(self.usable) + len(self.unusable) + more > MAX_CANDIDATES:
            message = f"{field}: more than {MAX_CANDIDATES} candidates"
            raise InvalidRequest(message, field, MAX_CANDIDATES)

    def _check_line(self, trickled: Trickled | None, number: int) -> Trickled | None:
        if trickled is None:
            return None
        if trickled.mid is not None and trickled.mid not in self._mids:
            name = f"candidates.{number}.sdpMid"
            raise InvalidRequest(f"{name}: {trickled.mid[:50]!r} is not in the offer", name)
        if trickled.mid is None and trickled.line_index not in range(len(self._mids)):
            name = f"candidates.{number}.sdpMLineIndex"
            raise InvalidRequest(f"{name}: the offer has {len(self._mids)} media lines", name)
        return trickled

    async def _try(self, trickled: Trickled) -> None:
        candidate = trickled.candidate
        if not is_usable(candidate, self._resolves_mdns, self._has_loopback):
            self.unusable.append(candidate)
            return
        self.usable.append(candidate)
        await self._connection.addIceCandidate(
            candidate.to_aiortc(trickled.mid, trickled.line_index)
        )
