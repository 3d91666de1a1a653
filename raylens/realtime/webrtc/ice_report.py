"""Why a connection did not come about, in one sentence that says what to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from aioice.ice import CandidatePair
from aiortc import RTCPeerConnection

from raylens.realtime.webrtc.addresses import ice_connections
from raylens.realtime.webrtc.candidates import Candidate

MAX_LISTED = 6
"""Candidates of a side, or pairs, that a report lists."""


@dataclass(frozen=True)
class IceReport:
    """What both sides tried. Addresses are ``ADDRESS:PORT``."""

    own: tuple[str, ...]
    """This side's candidates, such as ``10.0.0.5:50000 host``."""
    usable: tuple[Candidate, ...]
    """The client's candidates that were tried."""
    unusable: tuple[Candidate, ...]
    """Those that were not: hidden names, TCP, addresses that the server must not call."""
    pairs: tuple[str, ...]
    """The pairs that were tried, with their states."""
    found: bool
    """Whether a pair worked. Then it was the encryption that failed."""

    def explain(self, has_turn: bool, public_address: str | None) -> str:
        """Return the sentence."""
        if self.found:
            return (
                "the network path is there, but the encryption (DTLS) failed: the fingerprint in"
                " the offer is not the client's, or the network drops large packets"
            )
        tried = f"pairs: {_list(self.pairs)}" if self.pairs else "no pair was tried"
        return (
            f"no network path (ICE): this server offered {_list(self.own)}; the client offered"
            f" {self._clients()}; {tried}; {self._advise(has_turn, public_address)}"
        )

    def _clients(self) -> str:
        usable = _list([str(candidate) for candidate in self.usable])
        ignored = _list([str(candidate) for candidate in self.unusable])
        if not self.unusable:
            return usable
        return f"{usable}, and these, which were ignored: {ignored}"

    def _advise(self, has_turn: bool, public_address: str | None) -> str:
        hosts = [ip_address(own.rpartition(":")[0].strip("[]")) for own in self.own]
        if not hosts:
            return "let the server listen on an address of its machine (webrtc.addresses)"
        if all(host.is_loopback for host in hosts) and not has_turn:
            return (
                "the server listens on loopback only, which is right for clients on the same"
                " machine, except Firefox, which never connects there; for others set"
                " webrtc.addresses"
            )
        if not self.usable and not self.unusable:
            return (
                "the client sent no candidates and no packets; it should send its candidates, and"
                " its firewall must let UDP out"
            )
        if has_turn and not any(own.endswith("relay") for own in self.own):
            return "the TURN server gave no address; check its URL and its credentials"
        if all(host.is_private for host in hosts) and public_address is None and not has_turn:
            return (
                "the server's addresses are private: if clients are elsewhere, set"
                " webrtc.public_address or a TURN server in webrtc.ice_servers"
            )
        return (
            "let UDP to the server's ports through the firewall (webrtc.udp_ports), or set a TURN"
            " server in webrtc.ice_servers"
        )


def make_report(
    connection: RTCPeerConnection,
    usable: Sequence[Candidate],
    unusable: Sequence[Candidate],
) -> IceReport:
    """Return what a connection has tried so far. It must not be closed yet."""
    own: list[str] = []
    pairs: list[str] = []
    found = False
    for ice in ice_connections(connection):
        own += [f"{_join(item.host, item.port)} {item.type}" for item in ice.local_candidates]
        pairs += map(_describe, ice._check_list)
        found = found or bool(ice._nominated)
    return IceReport(tuple(own), tuple(usable), tuple(unusable), tuple(pairs), found)


def _describe(pair: CandidatePair) -> str:
    state = {
        CandidatePair.State.FAILED: "no answer",
        CandidatePair.State.IN_PROGRESS: "no answer yet",
        CandidatePair.State.SUCCEEDED: "answered, but the client did not choose it",
    }.get(pair.state, "not tried")
    return f"{_join(*pair.local_addr)} to {_join(*pair.remote_addr)}: {state}"


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _list(items: Sequence[str]) -> str:
    if not items:
        return "nothing"
    more = f" and {len(items) - MAX_LISTED} more" if len(items) > MAX_LISTED else ""
    return ", ".join(items[:MAX_LISTED]) + more
