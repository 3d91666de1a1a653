"""Candidates of clients."""

from __future__ import annotations

from typing import Any

import pytest

from raylens.core.errors import InvalidRequest
from raylens.realtime.webrtc.candidates import is_usable, parse_candidate, parse_trickled

CHROME = (
    "candidate:842163049 1 udp 1677729535 203.0.113.7 46154 typ srflx raddr 10.0.0.17 rport 46154"
    " generation 0 ufrag EEtu network-id 1 network-cost 10"
)
HIDDEN = "candidate:1 1 UDP 2113937151 c0ffee00-1234.LOCAL 5000 typ host generation 0"


def line(address: str, transport: str = "udp", kind: str = "host", component: int = 1) -> str:
    return f"candidate:1 {component} {transport} 99 {address} 5000 typ {kind}"


def test_a_browsers_candidate_is_read() -> None:
    candidate = parse_candidate(CHROME, "f")
    assert str(candidate) == "203.0.113.7 port 46154 (udp srflx)"
    ours = candidate.to_aiortc("0", None)
    assert (ours.ip, ours.port, ours.priority, ours.foundation, ours.sdpMid) == (
        "203.0.113.7",
        46154,
        1677729535,
        "842163049",
        "0",
    )
    assert parse_candidate("a=" + CHROME, "f") == parse_candidate(CHROME[10:], "f")


def test_a_hidden_address_is_a_name() -> None:
    candidate = parse_candidate(HIDDEN, "f")
    assert candidate.is_hidden
    assert (candidate.address, candidate.transport) == ("c0ffee00-1234.local", "udp")


@pytest.mark.parametrize(
    "text",
    [
        "candidate:",
        "hello",
        "candidate:1 1 udp 99 10.0.0.1 5000",
        "candidate:1 1 udp 99 10.0.0.1 5000 typ",
        "candidate:1 1 udp 99 10.0.0.1 x typ host",
        line("10.0.0.1").replace("5000", "0"),
        line("10.0.0.1").replace("5000", "65536"),
        line("10.0.0.999"),
        line("example.com"),
        line("10.0.0.1") + "\r\na=evil",
        line("10.0.0.1") + " x" * 1024,
    ],
)
def test_a_malformed_candidate_is_refused_by_name(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_trickled({"candidate": text, "sdpMid": "0"}, "candidates.3")
    assert caught.value.field == "candidates.3.candidate"
    assert len(caught.value.message) < 300


@pytest.mark.parametrize(
    ("entry", "field"),
    [
        ("candidate:1", "c.0"),
        (7, "c.0"),
        ({"candidate": 7, "sdpMid": "0"}, "c.0.candidate"),
        ({"candidate": CHROME}, "c.0.sdpMid"),
        ({"candidate": CHROME, "sdpMid": 0}, "c.0.sdpMid"),
        ({"candidate": CHROME, "sdpMLineIndex": "0"}, "c.0.sdpMLineIndex"),
        ({"candidate": CHROME, "sdpMLineIndex": -1}, "c.0.sdpMLineIndex"),
        ({"candidate": CHROME, "sdpMLineIndex": True}, "c.0.sdpMLineIndex"),
    ],
)
def test_an_entry_of_another_form_is_refused_by_name(entry: Any, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_trickled(entry, "c.0")
    assert caught.value.field == field


@pytest.mark.parametrize("entry", [None, {}, {"candidate": ""}, {"candidate": None, "sdpMid": "0"}])
def test_an_empty_candidate_is_the_end(entry: Any) -> None:
    assert parse_trickled(entry, "c.0") is None


@pytest.mark.parametrize(
    ("text", "usable"),
    [
        (line("10.0.0.1"), True),
        (line("203.0.113.7", kind="relay"), True),
        (line("2001:db8::1"), True),
        (line("10.0.0.1", transport="tcp"), False),
        (line("10.0.0.1", component=2), False),
        (line("10.0.0.1", kind="prflx"), False),
        (line("224.0.0.251"), False),
        (line("ff02::1"), False),
        (line("0.0.0.0"), False),
        (line("::"), False),
        (line("255.255.255.255"), False),
        (line("127.0.0.1"), False),
        (line("::ffff:127.0.0.1"), False),
        (line("::1"), False),
        (HIDDEN, False),
    ],
)
def test_the_server_sends_only_where_it_should(text: str, usable: bool) -> None:
    candidate = parse_candidate(text, "f")
    assert is_usable(candidate, resolves_mdns=False, allows_loopback=False) == usable


def test_loopback_and_names_are_used_if_they_may_be() -> None:
    assert is_usable(parse_candidate(line("127.0.0.1"), "f"), False, allows_loopback=True)
    assert is_usable(parse_candidate(HIDDEN, "f"), resolves_mdns=True, allows_loopback=False)
