"""Why a connection did not come about."""

from __future__ import annotations

import pytest

from raylens.realtime.webrtc.candidates import Candidate, parse_candidate
from raylens.realtime.webrtc.ice_report import IceReport

REMOTE = parse_candidate("candidate:1 1 udp 99 192.0.2.8 5000 typ host", "f")
HIDDEN = parse_candidate("candidate:1 1 udp 99 name.local 5000 typ host", "f")
LOOPBACK = "127.0.0.1:4000 host"
PRIVATE = "10.0.0.5:4000 host"
PUBLIC = "8.8.4.4:4000 host"
RELAY = "8.8.8.8:4000 relay"


@pytest.mark.parametrize(
    ("own", "remote", "has_turn", "public", "advice"),
    [
        ([LOOPBACK], [REMOTE], False, None, "for others set webrtc.addresses"),
        ([], [REMOTE], False, None, "listen on an address of its machine (webrtc.addresses)"),
        ([PRIVATE], [], False, None, "the client sent no candidates and no packets"),
        ([PRIVATE], [REMOTE], False, None, "set webrtc.public_address or a TURN server"),
        ([PRIVATE], [REMOTE], False, "203.0.113.7", "through the firewall (webrtc.udp_ports)"),
        ([PUBLIC], [REMOTE], False, None, "through the firewall (webrtc.udp_ports)"),
        ([PRIVATE], [REMOTE], True, None, "the TURN server gave no address"),
        ([PRIVATE, RELAY], [REMOTE], True, None, "through the firewall"),
        (["[fd00::5]:4000 host"], [REMOTE], False, None, "set webrtc.public_address"),
    ],
)
def test_the_report_says_what_to_do(
    own: list[str], remote: list[Candidate], has_turn: bool, public: str | None, advice: str
) -> None:
    report = IceReport(tuple(own), tuple(remote), (), (), found=False)
    text = report.explain(has_turn, public)
    assert advice in text
    assert all(candidate in text for candidate in own)
    assert "\n" not in text


def test_the_report_says_what_was_tried_and_what_was_not() -> None:
    pair = "10.0.0.5:4000 to 192.0.2.8:5000: no answer"
    text = IceReport((PRIVATE,), (REMOTE,), (HIDDEN,), (pair,), False).explain(False, None)
    assert f"pairs: {pair};" in text
    assert (
        "the client offered 192.0.2.8 port 5000 (udp host), and these, which were ignored" in text
    )
    assert "name.local port 5000" in text


def test_the_report_is_short() -> None:
    pairs = tuple(f"pair {number}" for number in range(100))
    text = IceReport((PRIVATE,), 100 * (REMOTE,), (), pairs, False).explain(False, None)
    assert "pair 5 and 94 more" in text
    assert len(text) < 1000


def test_if_the_path_is_there_the_encryption_failed() -> None:
    assert "DTLS" in IceReport((PRIVATE,), (REMOTE,), (), (), True).explain(False, None)
