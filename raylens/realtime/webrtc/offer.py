"""Offers of clients: what their media lines are for, and which candidates they contain."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from aiortc.sdp import MediaDescription, SessionDescription

from raylens.core.errors import InvalidRequest
from raylens.realtime.webrtc.candidates import Candidate, parse_candidate

MAX_SDP_CHARS = 128 * 1024
MAX_LINES = 16
"""Media lines of an offer."""
_CODECS = frozenset({"video/vp8", "video/h264"})
_SENDS = frozenset({"sendrecv", "sendonly"})
_RECEIVES = frozenset({"sendrecv", "recvonly"})


@dataclass(frozen=True)
class Offer:
    """A client's offer."""

    sdp: str
    """As it was sent, without candidates."""
    candidates: tuple[tuple[Candidate, int], ...]
    """Candidates, with the indices of their media lines."""
    mids: tuple[str, ...]
    """Names of the media lines."""
    directions: tuple[str, ...]
    """What this side does with each media line."""
    camera: int
    """Index of the media line with the client's video."""
    output: int | None
    """Index of the media line that takes the annotated video, if there is one."""
    has_channels: bool
    """Whether there are data channels."""
    candidates_end: bool
    """Whether no candidates will follow."""


def parse_offer(sdp: str, kind: str) -> Offer:
    """Parse an offer. ``kind`` is its ``type``.

    Raises ``InvalidRequest`` if it is malformed, sends no video, or has no codec of ours.
    """
    if kind != "offer":
        raise InvalidRequest(f"type: {kind[:20]!r}; expected 'offer'", "type")
    if len(sdp) > MAX_SDP_CHARS:
        raise InvalidRequest(
            f"sdp: {len(sdp)} characters; the limit is {MAX_SDP_CHARS}", "sdp", MAX_SDP_CHARS
        )
    text, candidates, is_complete = _take_candidates(sdp)
    media = _parse(_open_bundled(text))
    camera = _find(media, _SENDS)
    if camera is None:
        raise _refuse("it has no video line that sends; add the camera's track before the offer")
    output = camera if media[camera].direction == "sendrecv" else _find(media, _RECEIVES)
    used = {camera} if output is None else {camera, output}
    for index in used:
        _check_codecs(media[index])
    return Offer(
        text,
        candidates,
        tuple(line.rtp.muxId for line in media),
        tuple(_direction(index, camera, output) for index in range(len(media))),
        camera,
        output,
        any(line.kind == "application" for line in media),
        is_complete,
    )


def _direction(index: int, camera: int, output: int | None) -> str:
    """Lines for audio, and for more video, are answered as inactive, which refuses them without
    breaking the bundle that they may be the first of."""
    match index == camera, index == output:
        case True, True:
            return "sendrecv"
        case True, False:
            return "recvonly"
        case False, True:
            return "sendonly"
    return "inactive"


def _take_candidates(sdp: str) -> tuple[str, tuple[tuple[Candidate, int], ...], bool]:
    """Return an SDP without candidates, the candidates, and whether they are all there are."""
    lines: list[str] = []
    candidates: list[tuple[Candidate, int]] = []
    index = -1
    is_complete = False
    for line in sdp.splitlines():
        index += line.startswith("m=")
        if line.startswith("a=candidate:"):
            candidates.append((parse_candidate(line, "sdp"), max(0, index)))
        elif line.strip() == "a=end-of-candidates":
            is_complete = True
        elif line.strip():
            lines.append(line)
    return "\r\n".join(lines) + "\r\n", tuple(candidates), is_complete


def _open_bundled(text: str) -> str:
    """Return an SDP in which port 0 means that a media line is off. On other lines than the first,
    browsers also write it for those that exist in the bundle only."""
    head, *lines = re.split("^(?=m=)", text, flags=re.MULTILINE)
    opened = [
        re.sub("^(m=[a-z]+) 0 ", r"\1 9 ", line) if "a=bundle-only" in line else line
        for line in lines
    ]
    return head + "".join(opened)


def _parse(text: str) -> list[MediaDescription]:
    try:
        description = SessionDescription.parse(text)
    except Exception as error:  # whatever a parser stumbles over
        raise _refuse(_explain(text, error)) from None
    media = description.media
    if not 0 < len(media) <= MAX_LINES:
        raise _refuse(f"{len(media)} media lines; expected 1 to {MAX_LINES}")
    for number, line in enumerate(media):
        _check_line(line, f"media line {number} ({line.kind[:20]})")
    mids = [line.rtp.muxId for line in media]
    if len(set(mids)) < len(mids):
        raise _refuse("two media lines have the same mid, or none")
    bundled = {str(item) for group in description.group for item in group.items}
    if len(media) > 1 and not bundled.issuperset(mids):
        raise _refuse("expected all media lines in one BUNDLE group")
    return media


def _explain(text: str, error: Exception) -> str:
    """Return what is wrong with an SDP. A browser without a codec of ours leaves the list empty."""
    for line in text.splitlines():
        if line.startswith("m=") and not re.fullmatch(r"m=\S+ \d+ [A-Z/]+ \S.*", line):
            return f"the media line {line[:60].strip()!r} has no codec"
    return f"it can't be read ({type(error).__name__} {error})"[:200]


def _check_line(line: MediaDescription, name: str) -> None:
    if line.kind not in ("audio", "video", "application"):
        raise _refuse(f"{name}: expected video, audio or application")
    if line.dtls is None or not line.dtls.fingerprints:
        raise _refuse(f"{name}: no fingerprint and setup; only encrypted media are supported")
    if line.ice is None or not line.ice.usernameFragment or not line.ice.password:
        raise _refuse(f"{name}: no ice-ufrag and ice-pwd")
    if line.kind == "application" and line.sctp_port is None and line.profile != "DTLS/SCTP":
        raise _refuse(f"{name}: no sctp-port")
    if line.kind != "application" and not line.rtcp_mux:
        raise _refuse(f"{name}: no rtcp-mux")
    if line.kind != "application" and line.direction is None:
        raise _refuse(f"{name}: no direction, such as sendrecv")


def _find(media: Sequence[MediaDescription], directions: frozenset[str]) -> int | None:
    for index, line in enumerate(media):
        if line.kind == "video" and line.port != 0 and line.direction in directions:
            return index
    return None


def _check_codecs(line: MediaDescription) -> None:
    offered = {codec.mimeType.lower() for codec in line.rtp.codecs}
    if not offered & _CODECS:
        names = ", ".join(sorted(name.removeprefix("video/") for name in offered)) or "none"
        raise _refuse(f"no video codec in common: it offers {names[:100]}; expected VP8 or H264")


def _refuse(reason: str) -> InvalidRequest:
    return InvalidRequest(f"sdp: {reason}", "sdp")
