from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from raylens.realtime.sources.mjpeg import (
    JpegSplitter,
    MultipartSplitter,
    Splitter,
    StreamError,
    guess_splitter,
)
from testing.pictures import encode_picture, random_pixels
from tests.unit.raylens.realtime.sources.drawn import jpeg

LIMIT = 2**20
PICTURES = [jpeg(number) for number in range(4)]


def split(splitter: Splitter, stream: bytes, step: int) -> list[bytes]:
    pieces = (stream[start : start + step] for start in range(0, len(stream), step))
    return [picture for piece in pieces for picture in splitter.feed(piece)]


def with_thumbnail() -> bytes:
    """Return a JPEG file with another one in its EXIF block, as phones and cameras write them."""
    thumbnail = b"Exif\0\0" + jpeg(1)
    picture = encode_picture(random_pixels(64, 48), "JPEG", restart_marker_blocks=2)
    return picture[:2] + b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2) + thumbnail + picture[2:]


@pytest.mark.parametrize("step", [1, 7, 100_000])
def test_files_one_after_another_are_split(step: int) -> None:
    files = [*PICTURES, with_thumbnail(), encode_picture(random_pixels(50, 30), "JPEG")]
    files.append(encode_picture(random_pixels(50, 30), "JPEG", progressive=True))
    stream = b"junk" + b"\r\n\0".join(files)
    assert split(JpegSplitter(LIMIT), stream, step) == files


def test_a_cut_file_ends_at_the_next_one() -> None:
    cut = PICTURES[1][: len(PICTURES[1]) // 2]
    for stop in (3, 30, len(cut)):
        parts = split(JpegSplitter(LIMIT), cut[:stop] + PICTURES[2] + PICTURES[3], 11)
        assert parts[-1] == PICTURES[3]


def test_a_damaged_file_is_searched_once() -> None:
    """It would take seconds to search all of it again with each piece."""
    splitter = JpegSplitter(32 * 2**20)
    piece = b"a" * 2000
    started = time.process_time()
    list(splitter.feed(b"\xff\xd8\xff\xe0\0\0"))
    for _ in range(8000):
        list(splitter.feed(piece))
    assert time.process_time() - started < 1
    assert list(splitter.feed(PICTURES[0] + PICTURES[1]))[1:] == PICTURES[:2]


def header(picture: bytes, *lines: str) -> bytes:
    return "\r\n".join((*lines, "", "")).encode() + picture


def length(picture: bytes) -> str:
    return f"Content-Length: {len(picture)}"


JPEG_TYPE = "Content-Type: image/jpeg"
SHAPES: dict[str, tuple[str | None, Callable[[bytes], bytes]]] = {
    "RFC 2046": ("b1", lambda p: header(p, "--b1", JPEG_TYPE, length(p)) + b"\r\n"),
    "quoted, no length": ('"b1"', lambda p: header(p, "--b1", JPEG_TYPE) + b"\r\n"),
    "dashes announced": ("--b1", lambda p: header(p, "--b1", length(p)) + b"\r\n"),
    "dashes missing": ("b1", lambda p: header(p, "b1", length(p)) + b"\r\n"),
    "twice the dashes": ("--b1", lambda p: header(p, "----b1", length(p)) + b"\r\n"),
    "no line end after the part": ("b1", lambda p: header(p, "--b1", length(p))),
    "no line end, no length": ("b1", lambda p: header(p, "--b1", "content-type:image/jpeg")),
    "line feeds only": ("b1", lambda p: header(p, "--b1", length(p)).replace(b"\r\n", b"\n", 3)),
    "more headers": (
        "b1",
        lambda p: header(p, "--b1", "X: 1", f"content-LENGTH :{len(p)}", "Y: z") + b"\r\n",
    ),
    "no headers": ("b1", lambda p: header(p, "--b1") + b"\r\n"),
    "length zero": ("b1", lambda p: header(p, "--b1", "Content-Length: 0") + b"\r\n"),
    "nothing announced": (None, lambda p: header(p, "--b1", length(p)) + b"\r\n"),
    "empty lines between": ("b1", lambda p: header(p, "--b1", length(p)) + b"\r\n\r\n\r\n"),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("step", [1, 13, 100_000])
def test_parts_as_cameras_send_them(shape: str, step: int) -> None:
    boundary, write = SHAPES[shape]
    stream = b"".join(map(write, PICTURES))
    assert split(MultipartSplitter(boundary, LIMIT), stream, step) == PICTURES


def test_a_part_is_there_with_its_last_byte() -> None:
    """Also without a length: waiting for the next delimiter would cost a frame's time."""
    for lines in (("--b1", length(PICTURES[0])), ("--b1",)):
        splitter = MultipartSplitter("b1", LIMIT)
        assert list(splitter.feed(header(PICTURES[0], *lines))) == PICTURES[:1]


def test_parts_that_are_no_jpeg_end_at_the_delimiter() -> None:
    png = encode_picture(random_pixels(9, 9), "PNG")
    stream = header(png, "--b1", "Content-Type: image/png") + b"\r\n--b1\r\n\r\n"
    assert split(MultipartSplitter("b1", LIMIT), stream, 10) == [png]


def test_a_part_with_a_wrong_length_costs_its_neighbor_at_most() -> None:
    parts = [header(p, "--b1", length(p)) + b"\r\n" for p in PICTURES]
    parts[0] = header(PICTURES[0], "--b1", f"Content-Length: {len(PICTURES[0]) + 100}") + b"\r\n"
    parts.append(parts[1])
    assert split(MultipartSplitter("b1", LIMIT), b"".join(parts), 50)[-2:] == [
        PICTURES[3],
        PICTURES[1],
    ]


@pytest.mark.parametrize(
    ("splitter", "stream", "message"),
    [
        (JpegSplitter(1000), b"\xff\xd8\xff\xe0\xff\xff" + bytes(2000), "over 1000 bytes"),
        (MultipartSplitter("b", 1000), b"--b\r\nContent-Length: 1001\r\n\r\n", "over 1000 bytes"),
        (MultipartSplitter("b", 1000), b"--b\r\n\r\n" + bytes(1001), "over 1000 bytes"),
        (MultipartSplitter("b", 1000), b"--b\r\n" + b"X: y\r\n" * 5000, "headers"),
        (MultipartSplitter(None, 1000), b"x" * 20_000, "no boundary"),
    ],
)
def test_sizes_are_bounded(splitter: Splitter, stream: bytes, message: str) -> None:
    with pytest.raises(StreamError, match=message):
        split(splitter, stream, 100)


@pytest.mark.parametrize("boundary", ["", "--", '"----"', " - "])
def test_a_boundary_has_a_name(boundary: str) -> None:
    with pytest.raises(StreamError, match="has no name"):
        MultipartSplitter(boundary, LIMIT)


def test_a_first_line_of_dashes_is_no_boundary() -> None:
    with pytest.raises(StreamError, match="has no name"):
        split(MultipartSplitter(None, LIMIT), b"-" * 100 + b"\r\n", 100_000)


def test_junk_is_not_kept() -> None:
    splitter = MultipartSplitter("b1", LIMIT)
    assert split(splitter, b"noise\r\n" * 100_000, 5000) == []
    assert len(splitter._buffer) < 32 * 1024
    assert list(splitter.feed(header(PICTURES[0], "\r\n--b1", length(PICTURES[0])))) == PICTURES[:1]


def test_the_beginning_tells_what_a_stream_is() -> None:
    assert isinstance(guess_splitter(PICTURES[0][:9], LIMIT), JpegSplitter)
    assert isinstance(guess_splitter(b"\r\n--x\r\n", LIMIT), MultipartSplitter)
    with pytest.raises(StreamError, match="neither"):
        guess_splitter(b"<html>", LIMIT)
