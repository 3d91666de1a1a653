from __future__ import annotations

import io
import random
import struct
from collections.abc import Sequence
from contextlib import suppress
from fractions import Fraction

import av
import numpy as np
import pytest

from models.pocket.video_files import Pixels, encode_video
from preprocessing.video import Sampling, VideoLimits, choose_times, sample_video
from raylens.core.errors import (
    DeadlineExceeded,
    InvalidRequest,
    PayloadTooLarge,
    UnsupportedMedia,
)
from testing.pictures import encode_picture

LIMITS = VideoLimits(
    max_bytes=10**7, max_seconds=60, max_pixels=10**6, max_frames=8, max_sampled_pixels=10**7
)
FORMATS = [
    ("libx264", "mp4"),
    ("libx264", "mov"),
    ("libx264", "matroska"),
    ("libvpx-vp9", "webm"),
    ("mpeg4", "avi"),
]


def grays(count: int, size: tuple[int, int] = (64, 48)) -> list[Pixels]:
    """Return frames of one level of gray each: 10, 18, 26, …"""
    width, height = size
    return [np.full((height, width, 3), 10 + 8 * number, np.uint8) for number in range(count)]


def noise(count: int) -> list[Pixels]:
    generator = np.random.default_rng(0)
    return list(generator.integers(0, 256, (count, 48, 64, 3), np.uint8))


def numbers_of(frames: Sequence[Pixels]) -> list[int]:
    """Return the numbers of frames from :func:`grays`."""
    return [round((float(frame.mean()) - 10) / 8) for frame in frames]


@pytest.mark.parametrize(("codec", "container"), FORMATS)
def test_frames_are_sampled_evenly_from_the_first_to_the_last(codec: str, container: str) -> None:
    video = sample_video(encode_video(grays(25), 8, codec, container), LIMITS, Sampling())
    assert video.seconds == pytest.approx(25 / 8, abs=0.02)
    numbers = numbers_of(video.frames)
    assert (numbers[0], numbers[-1], len(numbers)) == (0, 24, 6)
    assert numbers == [round(8 * timestamp) for timestamp in video.timestamps]
    assert max(np.diff(numbers)) - min(np.diff(numbers)) <= 1
    assert {frame.shape for frame in video.frames} == {(48, 64, 3)}


@pytest.mark.parametrize(
    ("sampling", "count"),
    [
        (Sampling(2), 6),
        (Sampling(1), 4),
        (Sampling(0.1), 2),
        (Sampling(30), 8),
        (Sampling(30, max_frames=5), 4),
        (Sampling(2, max_frames=100), 6),
    ],
)
def test_the_number_of_frames_follows_the_rate_and_the_limits(
    sampling: Sampling, count: int
) -> None:
    data = encode_video(grays(25), 8)
    assert len(sample_video(data, LIMITS, sampling).frames) == count


def test_uneven_times_count() -> None:
    """The frame of a moment is the one that is shown then."""
    data = encode_video(grays(4), 8, times=[0, 100, 200, 4000])
    video = sample_video(data, LIMITS, Sampling(1))
    assert numbers_of(video.frames) == [0, 2, 2, 3]
    assert video.timestamps == pytest.approx((0, 0.2, 0.2, 4.0), abs=0.01)


def test_a_single_frame_is_a_pair() -> None:
    video = sample_video(encode_video(grays(1), 8), LIMITS, Sampling())
    assert numbers_of(video.frames) == [0, 0]
    assert video.seconds == pytest.approx(1 / 8)


@pytest.mark.parametrize("options", [{}, {"g": "4"}])
def test_a_trimmed_video_is_read_from_where_it_begins(options: dict[str, str]) -> None:
    data = encode_video(grays(16), 8, options=options, trimmed_s=1.0)
    video = sample_video(data, LIMITS, Sampling(frames_per_second=2))
    assert video.seconds == pytest.approx(1.0)
    assert numbers_of(video.frames) == [8, 15]


def test_pixels_that_are_not_square_are_made_so() -> None:
    video = sample_video(encode_video(grays(4), 8, aspect=Fraction(2)), LIMITS, Sampling())
    assert video.frames[0].shape == (48, 128, 3)


def test_frames_that_avi_keeps_in_another_order_are_found() -> None:
    data = encode_video(grays(16), 8, "libx264", "avi", {"bf": "2"})
    video = sample_video(data, LIMITS, Sampling())
    assert len(video.frames) == 4


@pytest.mark.parametrize(
    "data",
    [
        b"\0\0\0\x18ftypisom\0\0\0\0isommp42" + struct.pack(">I4s", 8, b"free") * 600_000,
        b"\0\0\0\x18ftypisom\0\0\0\0isommp42"
        + b"".join(struct.pack(">I4s", 8 * (3000 - n), b"moov") for n in range(3000)),
        b"\x1a\x45\xdf\xa3\x84webm" + b"\xec\x80" * 600_000,
    ],
    ids=["many boxes", "nested boxes", "many elements"],
)
def test_headers_without_end_are_refused_soon(data: bytes) -> None:
    with pytest.raises(InvalidRequest):
        sample_video(data, LIMITS, Sampling())


def test_only_what_a_wanted_frame_depends_on_is_decoded() -> None:
    data = encode_video(grays(25), 5, options={"g": "5"})
    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1

    video = sample_video(data, LIMITS, Sampling(0.1), check)
    assert numbers_of(video.frames) == [0, 24]
    assert calls < 10


def test_work_stops_at_the_deadline() -> None:
    def check() -> None:
        raise DeadlineExceeded("too late", "deadline")

    with pytest.raises(DeadlineExceeded):
        sample_video(encode_video(grays(5), 5), LIMITS, Sampling(), check)


@pytest.mark.parametrize(
    ("matrix", "turns"),
    [((0, 1, -1, 0), 3), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1), ((1, 0, 0, 1), 0)],
)
def test_a_rotated_video_is_turned_upright(matrix: tuple[int, ...], turns: int) -> None:
    """As phones write it: the track header has a matrix (ISO/IEC 14496-12, 8.3.2)."""
    frame = np.zeros((48, 64, 3), np.uint8)
    frame[:24, :32] = 255
    data = bytearray(encode_video([frame] * 4, 8))
    header = data.index(b"tkhd") + 4
    unit, a, b, c, d = 1 << 16, *matrix
    fixed = struct.pack(">9i", a * unit, b * unit, 0, c * unit, d * unit, 0, 0, 0, 1 << 30)
    data[header + 40 : header + 76] = fixed
    video = sample_video(bytes(data), LIMITS, Sampling())
    assert np.abs(np.rot90(frame, turns).astype(int) - video.frames[0]).mean() < 5


def test_large_frames_are_shrunk() -> None:
    data = encode_video(grays(16, (640, 320)), 8)
    by_side = sample_video(data, LIMITS, Sampling(max_side=160))
    assert by_side.frames[0].shape == (80, 160, 3)
    few_pixels = VideoLimits(10**7, 60, 10**6, 8, max_sampled_pixels=4 * 20_000)
    by_area = sample_video(data, few_pixels, Sampling())
    assert by_area.frames[0].shape == (100, 200, 3)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (VideoLimits(100, 60, 10**6, 8, 10**7), "bytes; the limit is 100 bytes"),
        (VideoLimits(10**7, 2, 10**6, 8, 10**7), "video: 3 seconds; the limit is 2 seconds"),
        (VideoLimits(10**7, 60, 3000, 8, 10**7), "64×48 pixels; the limit is 3000 pixels"),
    ],
)
def test_limits_are_said(limits: VideoLimits, message: str) -> None:
    with pytest.raises(PayloadTooLarge, match=message) as caught:
        sample_video(encode_video(grays(25), 8), limits, Sampling())
    assert caught.value.field == "video"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a known video format"),
        (b"words", "not a known video format"),
        (encode_picture(np.zeros((8, 8, 3), np.uint8)), "this is a PNG picture"),
        (b"%PDF-1.7", "this is a PDF document"),
    ],
)
def test_what_is_no_video_is_refused_by_name(data: bytes, message: str) -> None:
    with pytest.raises(UnsupportedMedia, match=f"video: {message}"):
        sample_video(data, LIMITS, Sampling())


def test_a_file_with_sound_only_is_refused() -> None:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        stream = output.add_stream("aac", rate=44_100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 44_100
        output.mux(stream.encode(frame))
        output.mux(stream.encode())
    with pytest.raises(UnsupportedMedia, match="has no video"):
        sample_video(buffer.getvalue(), LIMITS, Sampling())


def test_a_playlist_can_not_lead_to_other_files() -> None:
    """Only demuxers of single files are used, whatever the data pretends to be."""
    for text in ("#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "ffconcat version 1.0\nfile a\n"):
        with pytest.raises(UnsupportedMedia):
            sample_video(text.encode(), LIMITS, Sampling())


@pytest.mark.parametrize(("codec", "container"), FORMATS)
def test_a_video_that_is_cut_off_is_damaged(codec: str, container: str) -> None:
    data = encode_video(noise(16), 8, codec, container)
    rng = random.Random(0)
    for _ in range(20):
        cut = data[: rng.randrange(16, len(data) - 1)]
        with pytest.raises(InvalidRequest, match=r"video: the \w+ video of \d+ bytes is trunc"):
            sample_video(cut, LIMITS, Sampling())


@pytest.mark.parametrize(("codec", "container"), FORMATS)
def test_damage_never_escapes_as_another_error(codec: str, container: str) -> None:
    data = encode_video(noise(16), 8, codec, container)
    rng = random.Random(1)
    for _ in range(100):
        damaged = bytearray(data)
        end = rng.choice((400, len(data)))
        for _ in range(rng.choice((1, 8, 64))):
            damaged[rng.randrange(min(end, len(data)))] = rng.randrange(256)
        with suppress(InvalidRequest, PayloadTooLarge, UnsupportedMedia):
            video = sample_video(bytes(damaged), LIMITS, Sampling())
            assert len(video.frames) <= LIMITS.max_frames


@pytest.mark.parametrize(("box", "offset"), [(b"mvhd", 16), (b"mdhd", 16), (b"stsz", 8)])
def test_a_header_that_promises_too_much_is_refused(box: bytes, offset: int) -> None:
    """Durations of movie and track, and the number of frames."""
    lying = bytearray(encode_video(grays(16), 8))
    place = lying.index(box) + 4 + offset
    lying[place : place + 4] = struct.pack(">I", 2**31 - 1)
    with pytest.raises(InvalidRequest, match="is truncated or damaged"):
        sample_video(bytes(lying), LIMITS, Sampling())


@pytest.mark.parametrize(
    ("box", "offset", "size"),
    [
        (b"tkhd", 76, struct.pack(">II", 65_000 << 16, 65_000 << 16)),
        (b"avc1", 24, struct.pack(">HH", 65_000, 65_000)),
    ],
)
def test_a_header_that_announces_huge_frames_is_refused(
    box: bytes, offset: int, size: bytes
) -> None:
    lying = bytearray(encode_video(grays(16), 8))
    place = lying.rindex(box) + 4 + offset
    lying[place : place + len(size)] = size
    with pytest.raises(PayloadTooLarge, match="frames of 65000×65000 pixels; the limit is 1000000"):
        sample_video(bytes(lying), LIMITS, Sampling())


def test_a_moment_is_shown_by_the_frame_before_it() -> None:
    times = [0, 10, 20, 25]
    assert choose_times(times, 4, Sampling(1), LIMITS) == [0, 0, 10, 25]
