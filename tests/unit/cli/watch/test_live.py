"""``raylens watch`` of cameras and streams."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import pytest
from typer.testing import CliRunner
from typer.testing import Result as CommandResult

from raylens.cli.main import app
from raylens.cli.watch.live import Sparing
from testing.mjpeg_server import WebCamera, running_web_camera
from testing.pictures import encode_picture
from tests.unit.cli.watch.fake_vision import FIRST, LAST, FakeVision, draw_frame, serving

JPEGS = [encode_picture(draw_frame(number), "JPEG") for number in range(60)]


def run(vision: FakeVision, *arguments: object) -> CommandResult:
    return CliRunner().invoke(app, ["watch", *map(str, arguments)], obj=vision.client_arguments)


def read_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def count_frames(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def test_a_camera_is_watched_for_a_while(tmp_path: Path) -> None:
    vision = FakeVision()
    out, events, results = (tmp_path / name for name in ("out.mp4", "events", "results"))
    options = ("--detect", "circle", "--enter", 1, "--leave", 1, "--seconds", 3, "--out", out)
    with running_web_camera(WebCamera(JPEGS, interval_s=0.04)) as camera:
        started = time.time()
        outcome = run(vision, camera.url(), *options, "--events", events, "--results", results)
        assert 2.5 < time.time() - started < 10
    assert outcome.exit_code == 0, outcome.output
    assert count_frames(out) > 10
    assert vision.most_open == 1
    records = read_lines(results)
    assert len(records) > 5
    assert all(record["age_ms"] >= 0 for record in records)
    lines = read_lines(events)
    assert [line["type"] for line in lines[:2]] == ["started", "ended"]
    # The circle is there for 20 frames of 40 ms or a little more, in each round of 60.
    assert 0.5 < lines[1]["duration_s"] < 2.5
    assert lines[0]["at"].startswith(time.strftime("%Y-%m-%dT", time.gmtime()))


def test_the_pace_of_questions(tmp_path: Path) -> None:
    vision = FakeVision()
    results = tmp_path / "results"
    with running_web_camera(WebCamera(JPEGS, interval_s=0.02)) as camera:
        options = ("--caption", "--fps", 4, "--seconds", 2, "--results", results)
        assert run(vision, camera.url(), *options).exit_code == 0
    assert 2 <= len(read_lines(results)) <= 9


def test_a_lost_camera_is_reported_once_and_found_again() -> None:
    camera = WebCamera(JPEGS, interval_s=0.02, end_at=10)
    with running_web_camera(camera):
        outcome = run(FakeVision(), camera.url(), "--caption", "--seconds", 3.5)
    assert outcome.exit_code == 0, outcome.output
    assert camera.connections >= 2
    lines = outcome.stderr.splitlines()
    address = f"http://127.0.0.1:{camera.port}/video.cgi?…"
    assert lines[0] == f"{address}: the stream ended; trying again"
    assert lines[1] == f"{address}: it is there again"


def test_a_camera_of_broken_pictures_is_no_flood() -> None:
    said: list[str] = []
    now = 0.0
    sparing = Sparing(said.append, 10, lambda: now)
    for _ in range(25):
        sparing("a picture was skipped")
        now += 1
    assert said == [
        "a picture was skipped",
        "a picture was skipped (and 9 more before)",
        "a picture was skipped (and 9 more before)",
    ]


def test_a_refused_question_ends_the_watch() -> None:
    vision = FakeVision()
    vision.refuses = lambda pixels: 404
    with running_web_camera(WebCamera(JPEGS)) as camera:
        outcome = run(vision, camera.url(), "--caption", "--model", "none")
    assert outcome.exit_code == 2
    assert "stopped: refused: 404" in outcome.stderr


def test_a_busy_server_is_waited_for(tmp_path: Path) -> None:
    vision = FakeVision()
    vision.failures = [(429, {"Retry-After": "0.2"}), (503, {"Retry-After": "0.2"})]
    results = tmp_path / "results"
    with running_web_camera(WebCamera(JPEGS)) as camera:
        options = ("--caption", "--seconds", 3, "--results", results)
        outcome = run(vision, camera.url(), *options)
    assert outcome.exit_code == 0, outcome.output
    assert "waiting for the server: it is 429" in outcome.stderr
    assert read_lines(results)


def test_a_server_that_is_away_ends_the_watch() -> None:
    vision = FakeVision()
    vision.failures = [(502, {})] * 1000
    with running_web_camera(WebCamera(JPEGS)) as camera:
        outcome = run(vision, camera.url(), "--caption", "--patience", 1.5, "--server", "http://a")
    assert outcome.exit_code == 1
    assert outcome.stderr.count("http://a: it is 502; retrying for up to 1.5 s") == 1
    assert "stopped: http://a: no response for 1.5 s: it is 502" in outcome.stderr


def test_a_frame_on_which_the_model_fails_is_no_end(tmp_path: Path) -> None:
    vision = FakeVision()
    vision.failures = [(500, {})]
    results = tmp_path / "results"
    with running_web_camera(WebCamera(JPEGS)) as camera:
        options = ("--caption", "--seconds", 3, "--results", results)
        outcome = run(vision, camera.url(), *options)
    assert outcome.exit_code == 1
    first, second, *_ = read_lines(results)
    assert first["error"] == {"code": "model_failed", "message": "it is 500"}
    assert "text" in second


def test_a_folder_is_followed(tmp_path: Path) -> None:
    folder, results = tmp_path / "folder", tmp_path / "results"
    folder.mkdir()
    (folder / "old.jpg").write_bytes(JPEGS[0])

    def add() -> None:
        for number in range(3):
            time.sleep(0.8)
            (folder / f"{number}.jpg").write_bytes(JPEGS[FIRST + number])

    thread = threading.Thread(target=add)
    thread.start()
    options = ("--detect", "circle", "--follow", "--seconds", 4, "--results", results)
    outcome = run(FakeVision(), folder, *options)
    thread.join()
    assert outcome.exit_code == 0, outcome.output
    assert [len(record["objects"]) for record in read_lines(results)] == [1, 1, 1]


@pytest.fixture
def server() -> Iterator[str]:
    with serving(FakeVision()) as url:
        yield url


def start(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", "from raylens.cli.main import app; app()", "watch"]
    return subprocess.Popen(
        [*command, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("kind", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 128 + signal.SIGTERM)]
)
def test_a_signal_ends_it_with_complete_files(
    server: str, tmp_path: Path, kind: signal.Signals, status: int
) -> None:
    out, events = tmp_path / "out.mp4", tmp_path / "events"
    options = ("--detect", "circle", "--enter", 1, "--out", out, "--events", events)
    circles = WebCamera(JPEGS[FIRST:LAST], interval_s=0.04)
    with running_web_camera(circles) as camera:
        process = start(camera.url(), *options, "--server", server)
        wait_for(lambda: events.exists() and bool(events.read_text()))
        process.send_signal(kind)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == status, errors
    assert "interrupted; the files are complete" in errors
    assert count_frames(out) > 0
    assert [line["type"] for line in read_lines(events)] == ["started", "ended"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["events", "out.mp4"]


def test_standard_input_to_standard_output(server: str) -> None:
    read_end, write_end = os.pipe()
    arguments = ("-", "--detect", "circle", "--results", "-", "--server", server)
    process = start(*arguments, stdin=read_end)
    os.close(read_end)
    with open(write_end, "wb") as pipe:
        for number in range(FIRST, LAST):
            pipe.write(JPEGS[number])
            pipe.flush()
            time.sleep(0.05)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    records = [json.loads(line) for line in output.splitlines()]
    assert records
    assert all(len(record["objects"]) == 1 for record in records)


@pytest.mark.parametrize("data", [b"", b"hello"])
def test_a_standard_input_without_pictures_is_refused(server: str, data: bytes) -> None:
    process = start("-", "--server", server, stdin=subprocess.PIPE)
    _, errors = process.communicate(data.decode(), timeout=60)
    assert process.returncode == 2
    assert "source: standard input: " in errors
