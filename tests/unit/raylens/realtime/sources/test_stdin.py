from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from raylens.core.errors import InvalidRequest
from raylens.realtime.sources.base import (
    SourceAddress,
    SourceKind,
    SourceOptions,
    SourceUnavailable,
)
from raylens.realtime.sources.stdin import StdinSource
from testing.mjpeg_server import plain_part
from tests.unit.raylens.realtime.sources.drawn import jpeg, number_of

PICTURES = [jpeg(number) for number in range(5)]


class Pipe:
    """A source whose standard input is a pipe."""

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe()
        self.problems: list[str] = []
        self.source = StdinSource(
            SourceAddress(SourceKind.STDIN, ""),
            SourceOptions(),
            self.problems.append,
            self.read_end,
        )

    def write(self, data: bytes) -> None:
        threading.Thread(target=self._write, args=(data,)).start()

    def _write(self, data: bytes) -> None:
        for start in range(0, len(data), 50):
            os.write(self.write_end, data[start : start + 50])
        os.close(self.write_end)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.source.close()
    os.close(pipe.read_end)


def read_numbers(pipe: Pipe) -> list[int]:
    numbers = []
    while (frame := pipe.source.read()) is not None:
        numbers.append(number_of(frame.pixels))
    return numbers


@pytest.mark.parametrize("is_multipart", [True, False])
def test_pictures_until_the_end(pipe: Pipe, is_multipart: bool) -> None:
    pipe.write(b"".join(map(plain_part, PICTURES) if is_multipart else PICTURES))
    assert read_numbers(pipe) == [0, 1, 2, 3, 4]
    assert pipe.source.is_live


def test_a_damaged_picture_is_skipped(pipe: Pipe) -> None:
    pipe.write(PICTURES[0] + PICTURES[1][:400] + PICTURES[2])
    assert read_numbers(pipe) == [0, 2]
    assert pipe.problems[0].startswith("standard input: damaged")


@pytest.mark.parametrize("data", [b"", b"\xff\xd8\xff\xe0\0\x10JF", b"hello, world"])
def test_an_input_without_pictures_is_an_error(pipe: Pipe, data: bytes) -> None:
    pipe.write(data)
    with pytest.raises(InvalidRequest, match=r"standard input: (it ended|neither JPEG)"):
        pipe.source.read()


def test_close_ends_the_waiting(pipe: Pipe) -> None:
    failures: list[str] = []

    def read() -> None:
        with pytest.raises(SourceUnavailable) as failure:
            pipe.source.read()
        failures.append(failure.value.message)

    thread = threading.Thread(target=read)
    thread.start()
    pipe.source.close()
    thread.join(2)
    assert failures == ["standard input: it is closed"]
    os.close(pipe.write_end)
