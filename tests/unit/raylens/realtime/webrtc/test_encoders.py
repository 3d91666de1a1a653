"""Bit rates of the annotated video."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest
from aiortc.codecs import depayload
from aiortc.rtcrtpparameters import RTCRtcpFeedback, RTCRtpCodecParameters

from raylens.realtime.webrtc.backlog import is_whole_picture
from raylens.realtime.webrtc.encoders import (
    MIN_BITRATE,
    RateControl,
    RatedH264Encoder,
    RatedVp8Encoder,
    use_encoder,
)
from raylens.realtime.webrtc.pictures import TIME_BASE
from testing.webrtc_client import draw_number, read_number, to_rgb

FPS = 30


def test_the_limit_follows_the_size() -> None:
    rates = RateControl(4_000_000)
    rates.on_estimate(100_000_000)
    limits = []
    for size in ((1280, 720), (1920, 1080), (640, 360), (64, 64)):
        rates.resize(*size)
        limits.append(rates.rate)
    assert limits == [4_000_000, 9_000_000, 1_000_000, MIN_BITRATE]


def fill(rates: RateControl, bitrate: int) -> None:
    """Send a second of frames at this rate."""
    for number in range(2 * FPS):
        rates.on_frame([bytes(bitrate // 8 // FPS)], number * 90_000 // FPS)


def test_it_begins_with_half_and_follows_the_clients_estimate() -> None:
    rates = RateControl(4_000_000)
    assert rates.rate == 2_000_000
    followed = []
    for estimate in (1_000_000, 1_100_000, 1_250_000, 1_200_000, 10, 3_900_000, 9_000_000):
        fill(rates, rates.rate)
        rates.on_estimate(estimate)
        followed.append(rates.rate)
    assert followed == [
        1_000_000,
        1_000_000,  # a small rise isn't worth a whole picture
        1_250_000,
        1_200_000,
        MIN_BITRATE,
        3_900_000,
        4_000_000,
    ]


def test_pictures_that_need_little_say_nothing_about_the_network() -> None:
    rates = RateControl(4_000_000)
    fill(rates, 200_000)
    rates.on_estimate(310_000)
    assert rates.rate == 2_000_000
    rates.on_estimate(170_000)  # it carries less than was sent
    assert rates.rate == 170_000
    fill(rates, 170_000)
    rates.on_estimate(260_000)
    assert rates.rate == 260_000


@pytest.mark.parametrize(("feedback", "rate"), [(["goog-remb"], 2_000_000), (["nack"], 4_000_000)])
def test_without_estimates_the_limit_is_the_rate(feedback: list[str], rate: int) -> None:
    codec = RTCRtpCodecParameters(
        "video/VP8", 90_000, payloadType=97, rtcpFeedback=[RTCRtcpFeedback(f) for f in feedback]
    )

    class Sender:
        pass

    sender: Any = Sender()
    assert use_encoder(sender, codec, 4_000_000).target_bitrate == rate
    assert isinstance(sender._RTCRtpSender__encoder, RatedVp8Encoder)


def noisy(number: int, width: int, height: int) -> av.VideoFrame:
    """Return a frame of noise, of which encoders can predict nothing."""
    rng = np.random.default_rng(number)
    noise = rng.integers(64, 192, (height // 8 + 1, width // 8 + 1), np.uint8)
    gray = noise.repeat(8, 0).repeat(8, 1)[:height, :width]
    frame = av.VideoFrame.from_ndarray(gray[:, :, None].repeat(3, 2), format="rgb24")
    frame = frame.reformat(format="yuv420p")
    frame.pts, frame.time_base = number * 90_000 // FPS, TIME_BASE
    return frame


ENCODERS = pytest.mark.parametrize("encoder_class", [RatedVp8Encoder, RatedH264Encoder])


def measure(encoder: Any, numbers: range) -> float:
    """Return the bits per second of the second half of these frames."""
    sizes = []
    for number in numbers:
        payloads, _ = encoder.encode(noisy(number, 320, 240))
        sizes.append(sum(map(len, payloads)))
    half = sizes[len(sizes) // 2 :]
    return sum(half) * 8 / len(half) * FPS


@ENCODERS
def test_more_bits_are_spent_where_more_are_allowed(encoder_class: Any) -> None:
    """aiortc's own encoders begin with 0.5 and 1 Mbit/s, whatever the size."""
    measured = []
    for mbit in (0.3, 0.6, 1.5):
        # 320×240 is a twelfth of 1280×720.
        rates = RateControl(round(mbit * 12_000_000), has_estimates=False)
        measured.append(measure(encoder_class(rates), range(30)) / 1e6)
    assert measured == [pytest.approx(mbit, rel=0.35) for mbit in (0.3, 0.6, 1.5)]


@ENCODERS
def test_the_rate_follows_an_estimate_while_it_runs(encoder_class: Any) -> None:
    rates = RateControl(18_000_000, has_estimates=False)
    encoder = encoder_class(rates)
    before = measure(encoder, range(20))
    encoder.target_bitrate = 300_000  # as aiortc does with the client's estimates
    after = measure(encoder, range(20, 60))
    assert before > 1_000_000
    assert after < 400_000


@pytest.mark.parametrize(
    ("encoder_class", "name", "decoder_name"),
    [(RatedVp8Encoder, "VP8", "libvpx"), (RatedH264Encoder, "H264", "h264")],
)
def test_sizes_may_be_odd_and_may_change(encoder_class: Any, name: str, decoder_name: str) -> None:
    encoder = encoder_class(RateControl(4_000_000))
    codec = RTCRtpCodecParameters(f"video/{name}", 90_000, payloadType=97)
    decoder = av.CodecContext.create(decoder_name, "r")
    assert isinstance(decoder, av.VideoCodecContext)
    sizes = [(320, 240), (321, 241), (64, 66), (641, 360)]
    decoded = []
    for number, size in enumerate(sizes):
        frame = av.VideoFrame.from_ndarray(draw_number(number + 1000, *size), format="rgb24")
        frame.pts, frame.time_base = number * 3000, Fraction(1, 90_000)
        payloads, timestamp = encoder.encode(frame)
        assert abs(timestamp - number * 3000) <= 2
        data = b"".join(depayload(codec, payload) for payload in payloads)
        decoded += decoder.decode(av.Packet(data))
    assert [read_number(to_rgb(frame)) for frame in decoded] == [
        1000,
        1001,
        1002,
        1003,
    ]
    if name == "H264":
        # Otherwise browsers guess the colors' matrix by the size.
        assert {(frame.colorspace, frame.color_range) for frame in decoded} == {(6, 1)}
        sizes = [(width & ~1, height & ~1) for width, height in sizes]
    assert [(frame.width, frame.height) for frame in decoded] == sizes


@ENCODERS
def test_a_whole_picture_comes_when_it_is_asked_for(encoder_class: Any) -> None:
    encoder = encoder_class(RateControl(4_000_000))
    name = "H264" if encoder_class is RatedH264Encoder else "VP8"
    codec = RTCRtpCodecParameters(f"video/{name}", 90_000, payloadType=97)
    wholes = []
    for number in range(6):
        payloads, _ = encoder.encode(noisy(number, 320, 240), number == 4)
        data = b"".join(depayload(codec, payload) for payload in payloads)
        wholes.append(is_whole_picture(f"video/{name}", data))
    assert wholes == [True, False, False, False, True, False]


def test_h264_takes_frames_closer_than_a_thirtieth_of_a_second() -> None:
    encoder = RatedH264Encoder(RateControl(4_000_000))
    timestamps = []
    for pts in (0, 3000, 3400, 3401, 6000):
        frame = noisy(pts, 320, 240)
        frame.pts = pts
        payloads, timestamp = encoder.encode(frame)
        assert payloads
        timestamps.append(timestamp)
    assert timestamps == [0, 3000, 3400, 3401, 6000]
