"""The answer to an offer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from aiortc import RTCPeerConnection, RTCRtpCodecParameters, RTCRtpReceiver, RTCRtpTransceiver
from aiortc import RTCSessionDescription as Description
from aiortc.exceptions import InternalError, InvalidAccessError, InvalidStateError, OperationError

from raylens.core.errors import InvalidRequest, Overloaded
from raylens.core.webrtc_config import WebRtcConfig
from raylens.realtime.webrtc.addresses import announce, listen_on
from raylens.realtime.webrtc.backlog import bound_backlog
from raylens.realtime.webrtc.encoders import START_SHARE, use_encoder
from raylens.realtime.webrtc.offer import Offer
from raylens.realtime.webrtc.video import Video

_REFUSALS = (InternalError, InvalidAccessError, InvalidStateError, OperationError, ValueError)
"""What aiortc raises about an offer that it can't answer."""


async def take_offer(connection: RTCPeerConnection, offer: Offer) -> None:
    """Set the remote description. Raises ``InvalidRequest``."""
    try:
        await connection.setRemoteDescription(Description(offer.sdp, "offer"))
    except _REFUSALS as error:
        raise InvalidRequest(f"sdp: {error}"[:300], "sdp") from None


async def give_answer(
    connection: RTCPeerConnection,
    offer: Offer,
    video: Video,
    config: WebRtcConfig,
    addresses: Sequence[str],
) -> None:
    """Connect the video with the media lines, gather candidates, and set the local description.

    Raises ``Overloaded`` if there is no address or port.
    """
    for line in connection.getTransceivers():
        index = offer.mids.index(line.mid)
        line.direction = offer.directions[index]
        if index == offer.output:
            _connect_output(line, video, config.max_bitrate)
        if index == offer.camera:
            _connect_camera(line, video, config.max_bitrate)
    listen_on(connection, addresses, config.port_range)
    try:
        await connection.setLocalDescription(await connection.createAnswer())
    except OSError as error:
        raise Overloaded(str(error.strerror or error)) from None


def read_answer(connection: RTCPeerConnection, config: WebRtcConfig) -> str:
    """Return the answer's SDP."""
    return announce(connection.localDescription.sdp, config.public_address)


def watch_encryption(connection: RTCPeerConnection, on_closed: Callable[[bool], None]) -> None:
    """Call ``on_closed`` when the client has closed the connection, or has gone without a word.

    Its argument says which: true if the client answers no more, and its consent has expired
    (RFC 7675).
    """
    transport = connection.getTransceivers()[0].receiver.transport

    def on_state() -> None:
        if transport.state == "closed":
            on_closed(transport.transport._connection._closing)

    transport.on("statechange", on_state)


def _connect_output(line: RTCRtpTransceiver, video: Video, max_bitrate: int) -> None:
    line.sender.replaceTrack(video.output)
    use_encoder(line.sender, line._codecs[0], max_bitrate)


def _connect_camera(line: RTCRtpTransceiver, video: Video, max_bitrate: int) -> None:
    _suggest_bitrate(line._codecs, max_bitrate)
    _expect_bitrate(line.receiver, max_bitrate)
    video.start(line.receiver.track, bound_backlog(line.receiver))


def _suggest_bitrate(codecs: Sequence[RTCRtpCodecParameters], max_bitrate: int) -> None:
    """Tell browsers built on Chromium at which rate to start to send; others ignore it.

    They would start with 0.3 Mbit/s, and so with a quarter of the camera's pixels, for many
    seconds.
    """
    for codec in codecs:
        if codec.name.lower() != "rtx":
            rate = str(round(max_bitrate * START_SHARE / 1000))
            codec.parameters["x-google-start-bitrate"] = rate


def _expect_bitrate(receiver: RTCRtpReceiver, max_bitrate: int) -> None:
    """Let the estimate of what the client's network carries begin with this rate.

    aiortc begins with what has come in three seconds, which is what the client dared to send. It
    goes down, as ever, when packets are delayed.
    """
    estimator = getattr(receiver, "_RTCRtpReceiver__remote_bitrate_estimator")  # noqa: B009
    estimator.rate_control.current_bitrate = max_bitrate
    estimator.rate_control.current_bitrate_initialized = True
