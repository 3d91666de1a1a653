"""What offers ask for."""

from __future__ import annotations

import re

import pytest

from raylens.core.errors import InvalidRequest
from raylens.realtime.webrtc.offer import MAX_LINES, parse_offer
from testing.webrtc_client import Client

HEAD = "v=0\r\no=- 1 2 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\n"
SECURITY = (
    "a=ice-ufrag:abcd\r\na=ice-pwd:abcdefghijklmnopqrstuv\r\n"
    "a=fingerprint:sha-256 AA:BB\r\na=setup:actpass\r\n"
)


def video(mid: str, direction: str, codec: str = "VP8/90000") -> str:
    return (
        f"m=video 9 UDP/TLS/RTP/SAVPF 96\r\nc=IN IP4 0.0.0.0\r\na=mid:{mid}\r\na={direction}\r\n"
        f"a=rtcp-mux\r\na=rtpmap:96 {codec}\r\n{SECURITY}"
    )


def audio(mid: str, direction: str) -> str:
    return video(mid, direction, "opus/48000/2").replace("m=video", "m=audio")


def data(mid: str) -> str:
    return (
        f"m=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\na=mid:{mid}\r\na=sctp-port:5000\r\n"
        f"{SECURITY}"
    )


def sdp(*lines: str) -> str:
    mids = re.findall("a=mid:(.+)\r\n", "".join(lines))
    return f"{HEAD}a=group:BUNDLE {' '.join(mids)}\r\n{''.join(lines)}"


@pytest.mark.parametrize(
    ("lines", "directions"),
    [
        ([video("0", "sendrecv"), data("1")], ["sendrecv", "inactive"]),
        ([video("0", "sendonly")], ["recvonly"]),
        ([video("0", "sendonly"), video("1", "recvonly")], ["recvonly", "sendonly"]),
        ([video("0", "recvonly"), video("1", "sendonly")], ["sendonly", "recvonly"]),
        ([video("0", "recvonly"), video("1", "sendrecv")], ["inactive", "sendrecv"]),
        ([video("0", "sendonly"), video("1", "sendrecv")], ["recvonly", "sendonly"]),
        ([video("0", "sendrecv"), video("1", "sendrecv")], ["sendrecv", "inactive"]),
        ([audio("0", "sendrecv"), video("1", "sendrecv")], ["inactive", "sendrecv"]),
        (
            [video("0", "sendrecv"), audio("1", "recvonly"), data("2")],
            ["sendrecv", *2 * ["inactive"]],
        ),
    ],
)
def test_every_layout_has_an_answer(lines: list[str], directions: list[str]) -> None:
    assert list(parse_offer(sdp(*lines), "offer").directions) == directions


def test_a_line_of_the_bundle_alone_has_port_0() -> None:
    bundled = video("1", "recvonly").replace("m=video 9", "m=video 0") + "a=bundle-only\r\n"
    offer = parse_offer(sdp(video("0", "sendonly"), bundled), "offer")
    assert offer.directions == ("recvonly", "sendonly")


def test_candidates_are_taken_out() -> None:
    hidden = "a=candidate:1 1 udp 99 some-name.local 5000 typ host\r\n"
    known = "a=candidate:2 1 udp 98 10.0.0.1 5001 typ host\r\na=end-of-candidates\r\n"
    offer = parse_offer(sdp(video("0", "sendrecv") + hidden, data("1") + known), "offer")
    assert "candidate" not in offer.sdp
    assert [(c.address, line) for c, line in offer.candidates] == [
        ("some-name.local", 0),
        ("10.0.0.1", 1),
    ]
    assert (offer.candidates_end, offer.has_channels, offer.mids) == (True, True, ("0", "1"))


async def test_aiortcs_own_offer_is_read() -> None:
    client = Client()
    offer = parse_offer(await client.offer(), "offer")
    await client.close()
    assert offer.directions == ("sendrecv", "inactive")
    assert {candidate.address for candidate, _ in offer.candidates} == {"127.0.0.1"}


ONE = sdp(video("0", "sendrecv"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "0 media lines"),
        ("hello", "0 media lines"),
        ("m=video x", "has no codec"),
        (ONE.replace("SAVPF 96", "SAVPF"), "'m=video 9 UDP/TLS/RTP/SAVPF' has no codec"),
        (ONE.replace("a=rtpmap:96 VP8/90000", "a=rtpmap:96"), "can't be read"),
        (ONE.replace("sendrecv", "recvonly"), "no video line that sends"),
        (ONE.replace("sendrecv", "inactive"), "no video line that sends"),
        (ONE.replace("m=video 9", "m=video 0"), "no video line that sends"),
        (sdp(data("0")), "no video line that sends"),
        (ONE.replace("VP8", "AV1"), "it offers av1; expected VP8 or H264"),
        (ONE.replace("a=ice-pwd:abcdefghijklmnopqrstuv\r\n", ""), "no ice-ufrag"),
        (ONE.replace("a=setup:actpass\r\n", ""), "no fingerprint"),
        (ONE.replace("a=fingerprint:sha-256 AA:BB\r\n", ""), "no fingerprint"),
        (ONE.replace("a=rtcp-mux\r\n", ""), "no rtcp-mux"),
        (ONE.replace("a=sendrecv\r\n", ""), "no direction"),
        (ONE + data("1"), "BUNDLE"),
        (sdp(video("0", "sendrecv"), data("0")), "same mid"),
        (sdp(*(video(str(n), "sendrecv") for n in range(MAX_LINES + 1))), "17 media lines"),
        (ONE.replace("m=video", "m=text"), "expected video, audio or application"),
        (ONE + "a=candidate:1 1 udp 99 example.com 5000 typ host\r\n", "example.com"),
        (ONE + "a=x:" + "y" * 200_000, "the limit is 131072"),
    ],
)
def test_another_offer_is_refused_with_a_reason(text: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(message)) as caught:
        parse_offer(text, "offer")
    assert caught.value.field == "sdp"


def test_only_offers_are_answered() -> None:
    with pytest.raises(InvalidRequest, match="expected 'offer'") as caught:
        parse_offer(ONE, "answer")
    assert caught.value.field == "type"
