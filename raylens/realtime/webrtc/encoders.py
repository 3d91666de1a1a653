"""Encoders whose bit rate fits the frame's size, instead of aiortc's fixed 0.25 to 1.5 Mbit/s, at
which text is blurred.

They take the place of aiortc's own in one sender; the package stays as it is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from fractions import Fraction

import av
from aiortc import RTCRtpCodecParameters, RTCRtpSender
from aiortc.codecs.h264 import H264Encoder
from aiortc.codecs.vpx import Vp8Encoder
from av.frame import Frame

from raylens.realtime.webrtc.pictures import CLOCK_RATE, TIME_BASE

REFERENCE_PIXELS = 1280 * 720
"""The size to which the configured rate applies."""
MIN_BITRATE = 100_000
START_SHARE = 0.5
"""Of the limit, before the client has told what its network carries."""
MIN_RISE = 1.25
"""A smaller rise is left out, since encoders begin anew with each rate, with a whole picture."""


SLACK = 1.1
"""An estimate that exceeds what was sent by this factor isn't due to the network."""
SMPTE_170M = 6
"""The matrix, the primaries and the transfer of ITU-R BT.601, as H.264 numbers them."""
LIMITED_RANGE = 1


class RateControl:
    """The bit rate of one encoder: what the client's network carries, up to a limit."""

    def __init__(self, max_bitrate: int, has_estimates: bool = True) -> None:
        self._max_bitrate = max_bitrate
        self._limit = max_bitrate
        self._carried: int | None = None
        self._start_share = START_SHARE if has_estimates else 1.0
        self._rate = round(max_bitrate * self._start_share)
        self._sent: deque[tuple[int, int]] = deque()
        """Ticks and bits of the frames of the last second."""

    @property
    def rate(self) -> int:
        return self._rate

    def resize(self, width: int, height: int) -> None:
        """Adapt to the size of the frames."""
        limit = max(MIN_BITRATE, self._max_bitrate * width * height // REFERENCE_PIXELS)
        if limit != self._limit:
            self._limit = limit
            self._update()

    def on_estimate(self, bitrate: int) -> None:
        """Adapt to the client's estimate of what its network carries.

        It is at most half as much again as what was sent. If the pictures needed little, that says
        nothing about the network.
        """
        if not self._sent_bitrate * SLACK < bitrate < self._rate:
            self._carried = bitrate
            self._update()

    def on_frame(self, payloads: Sequence[bytes], timestamp: int) -> None:
        """Note a frame that is sent, at a time in ticks."""
        self._sent.append((timestamp, 8 * sum(map(len, payloads))))
        while timestamp - self._sent[0][0] > CLOCK_RATE:
            self._sent.popleft()

    @property
    def _sent_bitrate(self) -> int:
        """Of the last second."""
        return sum(bits for _, bits in self._sent)

    def _update(self) -> None:
        carried = self._limit * self._start_share if self._carried is None else self._carried
        rate = round(max(MIN_BITRATE, min(carried, self._limit)))
        if rate <= self._rate or rate >= self._rate * MIN_RISE or rate == self._limit:
            self._rate = rate


class RatedVp8Encoder(Vp8Encoder):
    """aiortc's encoder, with our rates."""

    def __init__(self, rates: RateControl) -> None:
        super().__init__()
        self._rates = rates

    def encode(self, frame: Frame, force_keyframe: bool = False) -> tuple[list[bytes], int]:
        assert isinstance(frame, av.VideoFrame)
        self._rates.resize(frame.width, frame.height)
        # The base class computes the size of its rate control's buffer from this.
        self._Vp8Encoder__target_bitrate = self._rates.rate
        payloads, timestamp = super().encode(frame, force_keyframe)
        self._rates.on_frame(payloads, timestamp)
        return payloads, timestamp

    @property
    def target_bitrate(self) -> int:
        return self._rates.rate

    @target_bitrate.setter
    def target_bitrate(self, bitrate: int) -> None:
        self._rates.on_estimate(bitrate)


class RatedH264Encoder(H264Encoder):
    """aiortc's encoder, with our rates.

    It is twice as fast (x264's preset ``veryfast``), has no bursts, takes frames of odd sizes,
    which it makes even, and timestamps closer than 1/30 s.
    """

    def __init__(self, rates: RateControl) -> None:
        super().__init__()
        self._rates = rates

    def encode(self, frame: Frame, force_keyframe: bool = False) -> tuple[list[bytes], int]:
        payloads, timestamp = super().encode(frame, force_keyframe)
        self._rates.on_frame(payloads, timestamp)
        return payloads, timestamp

    def _encode_frame(self, frame: av.VideoFrame, force_keyframe: bool) -> Iterator[bytes]:
        self._rates.resize(frame.width, frame.height)
        width, height = frame.width & ~1, frame.height & ~1
        if (width, height, frame.format.name) != (frame.width, frame.height, "yuv420p"):
            frame = frame.reformat(width, height, "yuv420p")
        if not self._fits(width, height):
            self.codec = self._create(width, height)
        # The base class makes a codec of its own only if this one doesn't fit.
        yield from super()._encode_frame(frame, force_keyframe)

    def _fits(self, width: int, height: int) -> bool:
        """Whether the codec may stay, by the base class's rule. x264 could change its rate as it
        runs, but would take more than a second for it."""
        codec = self.codec
        if codec is None or (codec.width, codec.height) != (width, height):
            return False
        assert codec.bit_rate is not None
        return abs(self._rates.rate - codec.bit_rate) / codec.bit_rate <= 0.1

    def _create(self, width: int, height: int) -> av.VideoCodecContext:
        codec = av.CodecContext.create("libx264", "w")
        assert isinstance(codec, av.VideoCodecContext)
        codec.width, codec.height = width, height
        codec.pix_fmt = "yuv420p"
        codec.bit_rate = self._rates.rate
        codec.framerate = Fraction(30)
        codec.time_base = TIME_BASE
        codec.profile = "Baseline"
        # As PyAV converts; without it, browsers take a guess by the size, and shift the colors.
        codec.colorspace = codec.color_primaries = codec.color_trc = SMPTE_170M
        codec.color_range = LIMITED_RANGE
        codec.options = {
            "preset": "veryfast",
            "tune": "zerolatency",
            "level": "31" if width * height <= REFERENCE_PIXELS else "51",
            # Bounds the bursts of whole pictures, to what takes half a second.
            "maxrate": str(self._rates.rate),
            "bufsize": str(self._rates.rate // 2),
        }
        return codec

    @property
    def target_bitrate(self) -> int:
        return self._rates.rate

    @target_bitrate.setter
    def target_bitrate(self, bitrate: int) -> None:
        self._rates.on_estimate(bitrate)


def use_encoder(
    sender: RTCRtpSender, codec: RTCRtpCodecParameters, max_bitrate: int
) -> RatedVp8Encoder | RatedH264Encoder:
    """Give a sender its encoder, before it sends. ``codec`` is the first of its codecs."""
    has_estimates = any(feedback.type == "goog-remb" for feedback in codec.rtcpFeedback)
    rates = RateControl(max_bitrate, has_estimates)
    is_h264 = codec.mimeType.lower() == "video/h264"
    encoder = RatedH264Encoder(rates) if is_h264 else RatedVp8Encoder(rates)
    setattr(sender, "_RTCRtpSender__encoder", encoder)  # noqa: B010
    return encoder
