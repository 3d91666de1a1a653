"""The queue before the decoder."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
from aiortc.jitterbuffer import JitterFrame

from raylens.realtime.webrtc.backlog import (
    MAX_FRAMES,
    DecoderQueue,
    bound_backlog,
    is_whole_picture,
)

WHOLE = b"\x10"
PART = b"\x11"
CODEC = SimpleNamespace(mimeType="video/VP8")


class Receiver:
    def __init__(self) -> None:
        self._RTCRtpReceiver__decoder_error = threading.Event()

    def take_request(self) -> bool:
        """Whether a whole picture has been asked for, as aiortc does it with the next packet."""
        was_set = self._RTCRtpReceiver__decoder_error.is_set()
        self._RTCRtpReceiver__decoder_error.clear()
        return was_set


@pytest.fixture
def receiver() -> Any:
    return Receiver()


@pytest.fixture
def frames(receiver: Any) -> DecoderQueue:
    return bound_backlog(receiver)


def put(frames: DecoderQueue, data: bytes, timestamp: int) -> None:
    frames.put((CODEC, JitterFrame(data, timestamp)))


def take_all(frames: DecoderQueue) -> list[Any]:
    taken = []
    while not frames.empty():
        item = frames.get()
        taken.append(item and item[1].timestamp)
    return taken


def test_a_decoder_that_keeps_up_gets_every_frame(frames: DecoderQueue, receiver: Any) -> None:
    for number in range(100):
        put(frames, WHOLE if number == 0 else PART, number)
        assert take_all(frames) == [number]
    assert frames.take_dropped() == 0
    assert not receiver.take_request()


def test_a_decoder_that_does_not_begins_anew_with_a_whole_picture(
    frames: DecoderQueue, receiver: Any
) -> None:
    for number in range(MAX_FRAMES):
        put(frames, PART, number)
    assert not receiver.take_request()
    put(frames, PART, 100)
    assert receiver.take_request()
    assert take_all(frames) == []
    put(frames, PART, 101)
    put(frames, WHOLE, 102)
    put(frames, PART, 103)
    assert take_all(frames) == [102, 103]
    assert frames.take_dropped() == MAX_FRAMES + 2
    assert frames.take_dropped() == 0


def test_the_backlog_never_grows(frames: DecoderQueue) -> None:
    for number in range(1000):
        put(frames, WHOLE if number % 50 == 0 else PART, number)
        assert frames.qsize() <= MAX_FRAMES


def test_the_request_is_repeated(frames: DecoderQueue, receiver: Any) -> None:
    for number in range(MAX_FRAMES):
        put(frames, PART, number)
    requests = []
    for number in range(100):
        put(frames, PART, number)
        requests.append(receiver.take_request())
    assert 4 <= sum(requests) <= 10


def test_the_end_does_not_wait_for_the_backlog(frames: DecoderQueue) -> None:
    for number in range(10):
        put(frames, PART, number)
    frames.put(None)
    assert take_all(frames) == [None]


@pytest.mark.parametrize(
    ("data", "is_whole"),
    [
        (b"\0\0\0\1\x67sps\0\0\0\1\x68pps\0\0\0\1\x65slice", True),
        (b"\0\0\0\1\x41slice", False),
        (b"\0\0\1\x65slice", True),
        (b"\0\0\0\1\x06sei\0\0\0\1\x41slice", False),
        (b"", False),
        (b"\0\0\1", False),
    ],
)
def test_whole_pictures_of_h264(data: bytes, is_whole: bool) -> None:
    assert is_whole_picture("video/H264", data) == is_whole
