"""``raylens watch`` of cameras and streams."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import pytest
from rich.console import Console
from typer.testing import CliRunner
from typer.testing import Result as CommandResult

from raylens.cli.client import DEFAULT_SERVER, Client
from raylens.cli.main import app
from raylens.cli.watch.live import Sparing
from raylens.cli.watch.plan import Outputs, Plan, make_settings
from raylens.cli.watch.run import watch_until
from raylens.realtime.sources.address import parse_source
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


@dataclass(frozen=True)
class Outcome:
    status: int
    notes: str


class Watching:
    """A watch that ends when a test has seen enough."""

    def __init__(self, vision: FakeVision, patience: float = 60.0, server: str = "") -> None:
        self.notes = io.StringIO()
        self._vision = vision
        self._patience = patience
        self._server = server or DEFAULT_SERVER

    async def run_until(self, condition: Callable[[], bool], plan: Plan) -> Outcome:
        stop = asyncio.Event()
        console = Console(file=self.notes, width=500)
        watching = asyncio.create_task(watch_until(stop, plan, self._connect, console))
        async with asyncio.timeout(30):
            while not condition() and not watching.done():
                await asyncio.sleep(0.01)
            stop.set()
            return Outcome(await watching, self.notes.getvalue())

    def _connect(self, notify: Callable[[str], None]) -> Client:
        arguments = self._vision.client_arguments
        return Client(
            self._server, self._patience, waits_while_busy=True, notify=notify, **arguments
        )


def make_plan(source: object, detect: str | None = None, **arguments: Any) -> Plan:
    settings = make_settings(detect, None, None, False, event_enter=1, event_leave=1)
    files = {name: arguments.pop(name, None) for name in ("video", "events", "results")}
    return Plan(parse_source(str(source)), settings, Outputs(**files), **arguments)


def count_lines(path: Path) -> int:
    return path.read_text().count("\n") if path.exists() else 0


async def test_a_camera_is_watched(tmp_path: Path) -> None:
    vision = FakeVision()
    out, events, results = (tmp_path / name for name in ("out.mp4", "events", "results"))
    with running_web_camera(WebCamera(JPEGS, interval_s=0.04)) as camera:
        plan = make_plan(camera.url(), "circle", video=out, events=events, results=results)
        outcome = await Watching(vision).run_until(lambda: count_lines(events) >= 2, plan)
    assert outcome.status == 0, outcome.notes
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


def test_a_watch_may_have_a_length() -> None:
    with running_web_camera(WebCamera(JPEGS)) as camera:
        started = time.monotonic()
        outcome = run(FakeVision(), camera.url(), "--caption", "--seconds", 0.5)
        assert time.monotonic() - started >= 0.5
    assert outcome.exit_code == 0, outcome.output


async def test_the_pace_of_questions(tmp_path: Path) -> None:
    results = tmp_path / "results"
    with running_web_camera(WebCamera(JPEGS, interval_s=0.02)) as camera:
        plan = make_plan(camera.url(), results=results, fps=4)
        await Watching(FakeVision()).run_until(lambda: count_lines(results) >= 4, plan)
    times = [record["time_s"] for record in read_lines(results)]
    assert times[3] - times[0] >= 0.45  # two periods, and the first question may be late


async def test_a_lost_camera_is_reported_once_and_found_again() -> None:
    camera = WebCamera(JPEGS, interval_s=0.02, end_at=10)
    watching = Watching(FakeVision())
    with running_web_camera(camera):
        plan = make_plan(camera.url())
        outcome = await watching.run_until(lambda: "again\n" in notes_after_loss(watching), plan)
    assert outcome.status == 0, outcome.notes
    assert camera.connections >= 2
    address = f"http://127.0.0.1:{camera.port}/video.cgi?…"
    assert outcome.notes.splitlines()[:2] == [
        f"{address}: the stream ended; trying again",
        f"{address}: it is there again",
    ]


def notes_after_loss(watching: Watching) -> str:
    return watching.notes.getvalue().partition("trying again\n")[2]


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


def test_a_refused_frame_is_named() -> None:
    vision = FakeVision()
    vision.refuses = lambda pixels: 422
    vision.reason = "image_url: 1×1 pixels; expected at least 4"
    with running_web_camera(WebCamera(JPEGS)) as camera:
        outcome = run(vision, camera.url(), "--caption")
    assert outcome.exit_code == 2
    assert re.search(r"stopped: frame \d+: 1×1 pixels", outcome.stderr), outcome.stderr


async def test_a_busy_server_is_waited_for(tmp_path: Path) -> None:
    vision = FakeVision()
    vision.failures = [(429, {"Retry-After": "0.2"}), (503, {"Retry-After": "0.2"})]
    results = tmp_path / "results"
    with running_web_camera(WebCamera(JPEGS)) as camera:
        plan = make_plan(camera.url(), results=results)
        outcome = await Watching(vision).run_until(lambda: count_lines(results) >= 1, plan)
    assert outcome.status == 0, outcome.notes
    assert "waiting for the server: it is 429" in outcome.notes
    assert read_lines(results)


async def test_a_server_that_is_away_ends_the_watch() -> None:
    vision = FakeVision()
    vision.failures = [(502, {})] * 1000
    with running_web_camera(WebCamera(JPEGS)) as camera:
        watching = Watching(vision, patience=0.5, server="http://a")
        outcome = await watching.run_until(lambda: False, make_plan(camera.url()))
    assert outcome.status == 1
    assert outcome.notes.count("http://a: it is 502; retrying for up to 0.5 s") == 1
    assert "stopped: http://a: no response for 0.5 s: it is 502" in outcome.notes


async def test_a_frame_on_which_the_model_fails_is_no_end(tmp_path: Path) -> None:
    vision = FakeVision()
    vision.failures = [(500, {})]
    results = tmp_path / "results"
    with running_web_camera(WebCamera(JPEGS)) as camera:
        plan = make_plan(camera.url(), results=results)
        outcome = await Watching(vision).run_until(lambda: count_lines(results) >= 2, plan)
    assert outcome.status == 1
    first, second, *_ = read_lines(results)
    assert first["error"] == {"code": "model_failed", "message": "it is 500"}
    assert "text" in second


async def test_a_folder_is_followed(tmp_path: Path) -> None:
    folder, results = tmp_path / "folder", tmp_path / "results"
    folder.mkdir()
    (folder / "old.jpg").write_bytes(JPEGS[0])

    async def add_pictures() -> None:
        for number in range(FIRST, LAST):
            (folder / f"{number}.jpg").write_bytes(JPEGS[number])
            await asyncio.sleep(0.2)

    adding = asyncio.create_task(add_pictures())
    plan = make_plan(folder, "circle", is_followed=True, results=results)
    outcome = await Watching(FakeVision()).run_until(lambda: count_lines(results) >= 3, plan)
    adding.cancel()
    assert outcome.status == 0, outcome.notes
    assert {len(record["objects"]) for record in read_lines(results)} == {1}


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
