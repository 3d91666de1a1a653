from __future__ import annotations

import io
import re
import struct
import wave
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from models.pocket.video_files import encode_video
from raylens.core.errors import InvalidRequest
from raylens.realtime.overlay import Pixels
from raylens.realtime.sources.base import (
    ReportProblem,
    Source,
    SourceAddress,
    SourceFrame,
    SourceKind,
    SourceOptions,
    SourceUnavailable,
)
from raylens.realtime.sources.opening import open_source
from testing.pictures import encode_picture
from tests.unit.raylens.realtime.sources.drawn import gray, number_of

ONE = 2**16
"""In the fixed-point numbers of an MP4's matrices."""
GRAYS = [gray(number) for number in range(20)]


def open_file(
    path: Path,
    options: SourceOptions | None = None,
    report: ReportProblem = lambda problem: None,
) -> Source:
    address = SourceAddress(SourceKind.FILE, str(path))
    return open_source(address, options or SourceOptions(), report)


def read_all(source: Source) -> list[SourceFrame]:
    frames = []
    while (frame := source.read()) is not None:
        frames.append(frame)
    source.close()
    return frames


def write(folder: Path, data: bytes, name: str = "video.mp4") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def check_numbers(frames: Sequence[SourceFrame], count: int = 20) -> None:
    assert [number_of(frame.pixels) for frame in frames] == list(range(count))


@pytest.mark.parametrize(
    ("codec", "container"),
    [("libx264", "mp4"), ("libx264", "mpegts"), ("libvpx-vp9", "webm"), ("libx264", "flv")],
)
def test_all_frames_come_with_their_times(tmp_path: Path, codec: str, container: str) -> None:
    path = write(tmp_path, encode_video(GRAYS, 10, codec, container))
    frames = read_all(open_file(path))
    check_numbers(frames)
    assert [frame.time_s for frame in frames] == pytest.approx(np.arange(20) / 10, abs=0.002)
    assert frames[0].pixels.shape == (48, 64, 3)


def test_a_variable_rate_is_kept(tmp_path: Path) -> None:
    times = [0, 40, 80, 500, 540, 1700, *range(1800, 3200, 100)]
    frames = read_all(open_file(write(tmp_path, encode_video(GRAYS, 25, times=times))))
    assert [round(1000 * frame.time_s) for frame in frames] == times


def encode(pixel_format: str, frames: Sequence[Pixels], codec: str = "libx264") -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as output:
        stream: Any = output.add_stream(codec, rate=Fraction(10))
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixel_format
        stream.options = {"qp": "4"}
        if pixel_format == "gray":
            stream.codec_context.color_range = 2  # 0 to 255
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("pixel_format", "size"),
    [
        ("gray", (64, 48)),
        ("yuv420p10le", (64, 48)),
        ("yuv444p", (63, 47)),
        ("yuv444p", (1, 1)),
        ("yuv422p", (62, 49)),
    ],
)
def test_pixel_formats_and_odd_sizes(
    tmp_path: Path, pixel_format: str, size: tuple[int, int]
) -> None:
    grays = [gray(number, *size) for number in range(20)]
    frames = read_all(open_file(write(tmp_path, encode(pixel_format, grays))))
    check_numbers(frames)
    assert {frame.pixels.shape for frame in frames} == {(size[1], size[0], 3)}


def test_rotated_and_stretched_videos_are_upright(tmp_path: Path) -> None:
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[:16] = 255  # white at the top
    stretched = encode_video([picture] * 5, 10, aspect=Fraction(3, 2))
    frame = read_all(open_file(write(tmp_path, stretched)))[0]
    assert frame.pixels.shape == (48, 96, 3)
    data = bytearray(encode_video([picture] * 5, 10))
    matrix = data.index(b"tkhd") + 44  # ISO/IEC 14496-12, 8.3.2
    data[matrix : matrix + 36] = struct.pack(">9i", 0, ONE, 0, -ONE, 0, 0, 48 * ONE, 0, 2**30)
    frame = read_all(open_file(write(tmp_path, bytes(data), "turned.mp4")))[0]
    assert frame.pixels.shape == (64, 48, 3)
    assert frame.pixels[:, -12:].mean() > 240  # turned clockwise: the top is on the right
    assert frame.pixels[:, :28].mean() < 15


def with_index_first(data: bytes) -> bytes:
    """Return an MP4 with its index before its frames, as it is written for the web."""
    index = data.index(b"moov") - 4
    frames = data.index(b"mdat") - 4
    moov = bytearray(data[index:])
    places = moov.index(b"stco") + 8
    for place in range(int.from_bytes(moov[places : places + 4])):
        at = places + 4 * (place + 1)
        offset = int.from_bytes(moov[at : at + 4]) + len(moov)
        moov[at : at + 4] = offset.to_bytes(4)
    return data[:frames] + moov + data[frames:index]


@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_a_file_that_is_cut_off_says_so_after_its_frames(tmp_path: Path, container: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (60, 48, 64, 3), np.uint8)
    data = encode_video(list(noise), 10, container=container)
    if container == "mp4":
        data = with_index_first(data)
    assert len(read_all(open_file(write(tmp_path, data)))) == 60
    source = open_file(write(tmp_path, data[: len(data) // 2]))
    frames: list[SourceFrame] = []
    with pytest.raises(SourceUnavailable, match=r"cut off: [23]\.\d of 6\.0 s"):
        frames += iter(source.read, None)
    assert 20 <= len(frames) < 40
    source.close()


def test_damage_in_the_middle_costs_only_what_it_hits(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 48, 64, 3), np.uint8)
    data = bytearray(encode_video(list(noise), 10, options={"g": "5"}))
    middle = data.index(b"mdat") + len(data) // 3
    data[middle : middle + 3000] = bytes(3000)
    said: list[str] = []
    path = write(tmp_path, bytes(data))
    frames = read_all(open_file(path, report=said.append))
    assert len(frames) >= 30
    assert frames[-1].time_s == pytest.approx(3.9, abs=0.01)
    (problem,) = said
    assert re.fullmatch(rf"{path}: damaged: at least \d+ frames? could not be decoded", problem), (
        problem
    )


def test_a_recording_that_begins_between_key_frames_is_not_damaged(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 48, 64, 3), np.uint8)
    data = encode_video(list(noise), 10, container="mpegts", options={"g": "20"})
    said: list[str] = []
    first_packet = len(data) // 4 // 188 * 188
    frames = read_all(open_file(write(tmp_path, data[first_packet:]), report=said.append))
    assert 20 <= len(frames) <= 21  # those since the first key frame
    assert said == []


def test_a_picture_is_a_video_of_one_frame(tmp_path: Path) -> None:
    path = write(tmp_path, encode_picture(gray(9), "PNG"), "picture.png")
    (frame,) = read_all(open_file(path))
    assert (number_of(frame.pixels), frame.time_s) == (9, 0)


def sound() -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(16_000))
    return buffer.getvalue()


def mp4_without_its_index() -> bytes:
    data = encode_video(GRAYS, 10)
    return data[: data.index(b"moov") - 4]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("sound.wav", sound(), "no video, only sound"),
        ("text.txt", b"hello\n" * 500, "not a video"),
        ("list.m3u8", b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/x.ts\n", "not a video"),
        ("empty.mp4", b"", "not a video"),
        ("noise.mp4", bytes(range(256)) * 40, "not a video"),
        ("cut.mp4", mp4_without_its_index(), "not a video"),
    ],
)
def test_what_is_no_video_is_refused(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    source = open_file(write(tmp_path, data, name))
    with pytest.raises(InvalidRequest, match=message) as failure:
        source.read()
    assert name in failure.value.message
    source.close()


def test_a_frame_may_not_be_too_large(tmp_path: Path) -> None:
    path = write(tmp_path, encode_video(GRAYS, 10))
    source = open_file(path, SourceOptions(max_pixels=64 * 48 - 1))
    with pytest.raises((SourceUnavailable, InvalidRequest)):
        source.read()
    source.close()


def test_close_frees_the_file_and_ends_reading(tmp_path: Path) -> None:
    source = open_file(write(tmp_path, encode_video(GRAYS, 10)))
    assert source.read() is not None
    source.close()
    source.close()
    with pytest.raises(SourceUnavailable, match="closed"):
        source.read()
