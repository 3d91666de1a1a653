"""``raylens watch`` of files and folders."""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner
from typer.testing import Result as CommandResult

from models.pocket.video_files import encode_video
from raylens.cli.main import app
from raylens.cli.watch.plan import Outputs, Plan, make_settings
from raylens.cli.watch.progress import Progress
from raylens.cli.watch.recorded import RecordedWatch
from raylens.cli.watch.sink import Sink
from raylens.core.types import Region
from raylens.realtime.frames import Frame
from raylens.realtime.overlay import GREEN, Pixels
from raylens.realtime.pipeline import FrameResult
from raylens.realtime.settings import MoondreamConfig
from raylens.realtime.sources.address import parse_source
from raylens.realtime.sources.opening import open_source
from testing.pictures import encode_picture
from tests.unit.cli.watch.fake_vision import (
    FIRST,
    FPS,
    FRAMES,
    LAST,
    FakeVision,
    draw_frame,
    find,
    see,
    write_video,
)


def run(vision: FakeVision, *arguments: object) -> CommandResult:
    return CliRunner().invoke(app, ["watch", *map(str, arguments)], obj=vision.client_arguments)


def read_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def read_frames(path: Path) -> list[tuple[float, Pixels]]:
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        return [
            (float(frame.time or 0), np.asarray(frame.to_ndarray(format="rgb24"), np.uint8))
            for frame in frames
        ]


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return write_video(tmp_path / "video.mp4")


@pytest.fixture
def vision() -> FakeVision:
    return FakeVision()


def test_results_and_events_of_a_video(vision: FakeVision, video: Path, tmp_path: Path) -> None:
    events, results = tmp_path / "events.jsonl", tmp_path / "results.jsonl"
    options = ("--detect", "circle", "--fps", 2, "--events", events, "--results", results)
    outcome = run(vision, video, *options)
    assert outcome.exit_code == 0, outcome.output
    records = read_lines(results)
    assert [record["frame_id"] for record in records] == list(range(0, FRAMES, 5))
    assert [record["time_s"] for record in records] == [number / 2 for number in range(12)]
    found = [record["objects"] for record in records]
    assert [len(objects) for objects in found] == [0] * 4 + [1] * 4 + [0] * 4
    assert {objects[0]["number"] for objects in found[4:8]} == {1}
    assert found[4][0]["x_min"] == pytest.approx(20 / 320, abs=0.01)
    assert read_lines(events) == [
        {"type": "started", "subject": "circle", "time_s": 1.75, "frame_id": 20, "count": 1},
        {
            "type": "ended",
            "subject": "circle",
            "time_s": 1.75,
            "ended_at": 3.75,
            "duration_s": 2.0,
            "frame_id": 40,
            "count": 1,
        },
    ]
    assert vision.bodies[0] == {
        "object": "circle",
        "settings": {"temperature": 0.0, "max_objects": 10},
    }
    assert "60 frames, 12 answers, 0 failed, 2 events" in outcome.stderr


def test_the_annotated_video_has_all_frames_with_boxes_that_follow(
    vision: FakeVision, video: Path, tmp_path: Path
) -> None:
    out = tmp_path / "annotated.mp4"
    outcome = run(vision, video, "--detect", "circle", "--every", 5, "--out", out)
    assert outcome.exit_code == 0, outcome.output
    frames = read_frames(out)
    assert [time for time, _ in frames] == pytest.approx(np.arange(FRAMES) / FPS, abs=1e-4)
    for number, (_, pixels) in enumerate(frames):
        box = find(pixels[85:], GREEN)  # the label is above the box, and as green
        assert (box is not None) == (FIRST <= number < LAST), number
        if box is not None:
            circle = find(draw_frame(number)[85:])
            assert circle is not None
            sides = np.abs(np.subtract(box, circle))[[0, 2, 3]]
            assert sides.max() <= 3, number
    with av.open(str(out)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert float((stream.duration or 0) * (stream.time_base or 0)) == pytest.approx(6.0)
    data = out.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # it plays before it is loaded
    assert sorted(path.name for path in tmp_path.iterdir()) == ["annotated.mp4", "video.mp4"]


def test_answers_are_printed_if_there_is_no_other_output(vision: FakeVision, video: Path) -> None:
    outcome = run(vision, video, "--detect", "circle", "--fps", 2)
    assert outcome.exit_code == 0, outcome.output
    records = [json.loads(line) for line in outcome.stdout.splitlines()]
    assert [record["frame_id"] for record in records] == list(range(0, FRAMES, 5))


def test_without_tracking_boxes_stay(vision: FakeVision, video: Path, tmp_path: Path) -> None:
    out = tmp_path / "annotated.mp4"
    options = ("--detect", "circle", "--every", 5, "--no-tracking", "--out", out)
    assert run(vision, video, *options).exit_code == 0
    frames = read_frames(out)
    asked, later = (find(frames[number][1][85:], GREEN) for number in (25, 29))
    assert asked is not None
    assert later is not None
    assert np.abs(np.subtract(asked, later)).max() <= 1


def test_two_runs_give_the_same_whatever_order_the_answers_have(
    video: Path, tmp_path: Path
) -> None:
    texts: list[bytes] = []
    videos: list[list[tuple[float, Pixels]]] = []
    for number, in_flight in enumerate((1, 8, 8)):
        vision = FakeVision()
        vision.random = random.Random(number)
        paths = [tmp_path / f"{number}.{name}" for name in ("mp4", "events", "results")]
        out, events, results = paths
        options = ("--detect", "circle", "--every", 3, "--in-flight", in_flight, "--out", out)
        outcome = run(vision, video, *options, "--events", events, "--results", results)
        assert outcome.exit_code == 0
        assert (vision.most_open > 1) == (in_flight > 1)
        assert vision.most_open <= in_flight
        texts.append(events.read_bytes() + results.read_bytes())
        videos.append(read_frames(out))
    assert len(set(texts)) == 1
    for frames in zip(*videos, strict=True):
        assert len({time for time, _ in frames}) == 1
        assert all(np.array_equal(pixels, frames[0][1]) for _, pixels in frames)


@pytest.mark.parametrize(
    ("options", "path", "body", "key", "answer"),
    [
        (("--caption",), "caption", {"length": "normal"}, "text", "a circle"),
        (("--length", "short"), "caption", {"length": "short"}, "text", "a circle"),
        (("--ask", "Is it?"), "query", {"question": "Is it?"}, "text", "Yes, it is."),
        (("--point", "dot", "--model", "m"), "point", {"object": "dot", "model": "m"}, "points", 1),
    ],
)
def test_every_question_has_its_route(
    vision: FakeVision,
    video: Path,
    tmp_path: Path,
    options: tuple[str, ...],
    path: str,
    body: dict[str, Any],
    key: str,
    answer: Any,
) -> None:
    results, out = tmp_path / "results", tmp_path / "out.mp4"
    outcome = run(vision, video, *options, "--results", results, "--out", out)
    assert outcome.exit_code == 0, outcome.output
    assert set(vision.paths) == {f"/v1/{path}"}
    sent = vision.bodies[0]
    assert sent.pop("settings")["temperature"] == 0
    assert sent == body
    record = read_lines(results)[5]
    assert (len(record[key]) if key == "points" else record[key]) == answer
    assert len(read_frames(out)) == FRAMES


def test_a_question_about_several_frames(vision: FakeVision, video: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    options = ("--ask", "Does it move?", "--frames", 3, "--fps", 2, "--model", "m")
    outcome = run(vision, video, *options, "--results", results, "--in-flight", 1)
    assert outcome.exit_code == 0, outcome.output
    assert vision.paths[:3] == ["/v1/query", *["/v1/chat/completions"] * 2]
    for count, body in zip((2, 3, 3), vision.bodies[1:], strict=False):
        (message,) = body["messages"]
        clip, text = message["content"]
        assert (text["text"], body["model"], body["temperature"]) == ("Does it move?", "m", 0)
        assert len(clip["video"]) == count
        assert clip["fps"] == pytest.approx(2)
    assert [record["text"] for record in read_lines(results)[3:7]] == [
        *("000", "001", "011", "111"),
    ]


def test_a_question_has_events_too(vision: FakeVision, video: Path, tmp_path: Path) -> None:
    events = tmp_path / "events"
    options = ("--ask", "Is it?", "--enter", 1, "--leave", 1, "--events", events)
    assert run(vision, video, *options).exit_code == 0
    kinds = [(event["type"], event["subject"]) for event in read_lines(events)]
    assert kinds == [("started", "Is it?"), ("ended", "Is it?")]


def test_a_variable_rate_and_odd_sides(vision: FakeVision, tmp_path: Path) -> None:
    times = [0, 40, 80, 500, 540, 1700, 1800, 1833, 1866, 2900]
    pictures = [draw_frame(number + FIRST, 321, 241) for number in range(10)]
    source, out = tmp_path / "odd.mkv", tmp_path / "out.mp4"
    even = [np.pad(each, ((0, 1), (0, 1), (0, 0)), "edge") for each in pictures]
    source.write_bytes(encode_video(even, 25, "ffv1", "matroska", times=times))
    for number, each in enumerate(pictures):
        (tmp_path / f"{number}.png").write_bytes(encode_picture(each))
    assert run(vision, source, "--detect", "circle", "--out", out).exit_code == 0
    assert [round(1000 * time) for time, _ in read_frames(out)] == times
    outcome = run(vision, tmp_path, "--detect", "circle", "--out", out)  # the folder's pictures
    assert outcome.exit_code == 0, outcome.output
    frames = read_frames(out)
    assert [time for time, _ in frames] == list(range(10))
    assert {pixels.shape for _, pixels in frames} == {(242, 322, 3)}


def test_a_broken_picture_is_named(vision: FakeVision, tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(encode_picture(draw_frame(number)))
    (tmp_path / "1.png").write_bytes(b"broken")
    results = tmp_path / "results"
    outcome = run(vision, tmp_path, "--detect", "circle", "--results", results)
    assert outcome.exit_code == 1
    assert "1.png: not a picture that can be read" in outcome.stderr
    assert [record["frame_id"] for record in read_lines(results)] == [0, 1]
    assert [record["time_s"] for record in read_lines(results)] == [0, 2]


def test_the_key_is_sent(vision: FakeVision, video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYLENS_API_KEY", "k")
    assert run(vision, video, "--detect", "circle").exit_code == 0
    assert set(vision.keys) == {"Bearer k"}


def test_a_busy_server_is_waited_for(vision: FakeVision, video: Path) -> None:
    vision.failures = [(429, {"Retry-After": "1"}), (503, {}), (502, {}), (429, {})]
    outcome = run(vision, video, "--detect", "circle", "--fps", 1, "--in-flight", 1)
    assert outcome.exit_code == 0, outcome.output
    assert outcome.stderr.count("waiting for the server: it is 429") == 1
    assert "6 answers, 0 failed" in outcome.stderr


def test_a_server_that_is_away_ends_the_watch(video: Path, tmp_path: Path) -> None:
    class Away(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            raise httpx.ConnectError("connection refused")

    vision = FakeVision()
    vision.transport = Away()
    out = tmp_path / "out.mp4"
    outcome = run(vision, video, "--patience", 0, "--server", "http://away", "--out", out)
    assert outcome.exit_code == 1
    assert "http://away: no response for 0 s: connection refused" in outcome.stderr
    assert not out.exists()


class Restarting(httpx.AsyncBaseTransport):
    """Answers as the proxy of a server that starts again, a few times."""

    def __init__(self, inner: httpx.AsyncBaseTransport, times: int) -> None:
        self._inner = inner
        self._left = times

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self._left -= 1
        if self._left < 0:
            return await self._inner.handle_async_request(request)
        text = "Path '/v1/detect' not found. Ping http://.../-/routes for available routes."
        return httpx.Response(404, text=text)


def test_a_server_that_starts_again_is_waited_for(vision: FakeVision, video: Path) -> None:
    vision.transport = Restarting(vision.transport, 3)
    outcome = run(vision, video, "--detect", "circle")
    assert outcome.exit_code == 0, outcome.output
    assert "12 answers, 0 failed" in outcome.stderr
    vision.transport = Restarting(vision.transport, 100)
    outcome = run(vision, video, "--detect", "circle", "--patience", 0)
    assert outcome.exit_code == 1
    assert "stopped: 404 Path '/v1/detect' not found" in outcome.stderr


def test_a_refused_question_ends_the_watch(vision: FakeVision, video: Path) -> None:
    vision.refuses = lambda pixels: 422
    outcome = run(vision, video, "--detect", "circle")
    assert outcome.exit_code == 2
    assert "stopped: refused: 422" in outcome.stderr


def test_a_refused_frame_is_named(vision: FakeVision, video: Path, tmp_path: Path) -> None:
    vision.refuses = lambda pixels: 413 if find(pixels) else 0
    vision.reason = "image_url: 1×1 pixels; expected at least 4"
    results = tmp_path / "results"
    assert run(vision, video, "--detect", "circle", "--results", results).exit_code == 1
    messages = [record["error"]["message"] for record in read_lines(results) if "error" in record]
    assert messages[:2] == [
        "frame 20: 1×1 pixels; expected at least 4",
        "frame 25: 1×1 pixels; expected at least 4",
    ]
    vision.refuses = lambda pixels: 422 if find(pixels) else 0
    outcome = run(vision, video, "--detect", "circle", "--results", results, "--in-flight", 1)
    assert outcome.exit_code == 2
    assert "stopped: frame 20: 1×1 pixels; expected at least 4\n" in outcome.stderr


def test_a_frame_on_which_the_model_fails_is_recorded(
    vision: FakeVision, video: Path, tmp_path: Path
) -> None:
    vision.refuses = lambda pixels: 500 if find(pixels) else 0
    results = tmp_path / "results"
    options = ("--detect", "circle", "--patience", 0, "--results", results)
    outcome = run(vision, video, *options)
    assert outcome.exit_code == 1
    failed = [record for record in read_lines(results) if "error" in record]
    assert [record["frame_id"] for record in failed] == [20, 25, 30, 35]
    assert failed[0]["error"] == {"code": "model_failed", "message": "refused: 500"}
    assert "8 answers, 4 failed" in outcome.stderr


def test_a_video_that_is_cut_off_is_annotated_as_far_as_it_goes(
    vision: FakeVision, tmp_path: Path
) -> None:
    video = write_video(tmp_path / "video.mkv", container="matroska")
    video.write_bytes(video.read_bytes()[: -len(video.read_bytes()) // 3])
    out = tmp_path / "out.mp4"
    outcome = run(vision, video, "--detect", "circle", "--out", out)
    assert outcome.exit_code == 1
    assert "the file is cut off" in outcome.stderr
    assert 20 < len(read_frames(out)) < FRAMES


def test_a_damaged_video_is_a_failure(vision: FakeVision, tmp_path: Path) -> None:
    video = write_video(tmp_path / "video.mkv", container="matroska")
    data = bytearray(video.read_bytes())
    with av.open(str(video)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    for packet in packets[30:40]:
        position = data.index(bytes(packet))
        data[position : position + packet.size] = b"\xff" * packet.size
    video.write_bytes(data)
    outcome = run(vision, video, "--detect", "circle")
    assert outcome.exit_code == 1, outcome.output
    assert "video.mkv: damaged: at least 10 frames could not be decoded" in outcome.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--detect", "a", "--point", "b"), "--detect, --point, --ask and --caption: give one"),
        (("--detect", " "), "--detect: is empty"),
        (("--detect", "x" * 300), "--detect or --point: String should have at most 200"),
        (("--events", "e.jsonl"), "--events: captions have no events"),
        (("--webhook", "http://a"), "--webhook: captions have no events"),
        (("--detect", "a", "--webhook", "ftp://a"), "--webhook: expected an http:// or https://"),
        (("--detect", "a", "--events", "-", "--results", "-"), "only one of them can be -"),
        (("--out", "out.avi"), "--out: out.avi: expected a name that ends in .mp4"),
        (("--out", "no/such/out.mp4"), "no/such/out.mp4: its folder doesn't exist"),
        (("--every", "2", "--fps", "1"), "--every and --fps: give one of them"),
        (("--every", "31"), "--every: Input should be less than or equal to 30"),
        (("--detect", "a", "--frames", "3"), "--frames: is for --caption and --ask"),
        (("--fps", "0"), "--fps: expected more than 0"),
        (("--seconds", "3"), "--seconds: is for live sources"),
        (("--follow",), "--follow: is for folders"),
    ],
)
def test_contradictions_are_refused(
    vision: FakeVision, video: Path, options: tuple[str, ...], message: str
) -> None:
    outcome = run(vision, video, *options)
    assert outcome.exit_code == 2
    assert message in outcome.stderr
    assert vision.bodies == []


def test_the_source_is_never_overwritten(vision: FakeVision, video: Path) -> None:
    outcome = run(vision, video, "--out", video.parent / "." / video.name)
    assert outcome.exit_code == 2
    assert "are the same file" in outcome.stderr


@pytest.mark.parametrize("option", ["--out", "--events", "--results"])
def test_an_output_that_is_a_folder_is_refused(
    vision: FakeVision, video: Path, tmp_path: Path, option: str
) -> None:
    folder = tmp_path / "folder.mp4"
    folder.mkdir()
    outcome = run(vision, video, "--detect", "circle", option, folder)
    assert outcome.exit_code == 2
    assert outcome.stderr == f"{option}: {folder}: is a folder\n"
    assert vision.bodies == []
    assert sorted(tmp_path.iterdir()) == [folder, video]


def test_a_video_that_is_too_wide_for_the_output(vision: FakeVision, tmp_path: Path) -> None:
    video, out = tmp_path / "video.mkv", tmp_path / "out.mp4"
    wide = np.zeros((40, 17_000, 3), np.uint8)
    video.write_bytes(encode_video([wide] * 3, FPS, "ffv1", "matroska"))
    outcome = run(vision, video, "--detect", "circle", "--out", out)
    assert outcome.exit_code == 2
    assert outcome.stderr == "--out: 17000×40 pixels; H.264 takes at most 16384 on a side\n"
    assert list(tmp_path.iterdir()) == [video]


def test_what_cannot_be_watched_is_refused(vision: FakeVision, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no video")
    for source in (tmp_path / "notes.txt", tmp_path / "none.mp4", "gopher://x", tmp_path):
        outcome = run(vision, source)
        assert outcome.exit_code == 2, outcome.output
        assert "source: " in outcome.stderr


def test_files_keep_their_lines_until_there_are_new_ones(
    vision: FakeVision, video: Path, tmp_path: Path
) -> None:
    events, results, notes = (tmp_path / name for name in ("events", "results", "notes.txt"))
    for path in (events, results, notes):
        path.write_text("earlier\n")
    options = ("--detect", "circle", "--events", events, "--results", results)
    assert run(vision, notes, *options).exit_code == 2
    assert run(vision, video, *options, "--out", "/proc/out.mp4").exit_code == 2
    vision.refuses = lambda pixels: 422
    assert run(vision, video, *options).exit_code == 2
    assert events.read_text() == results.read_text() == "earlier\n"
    vision.refuses = lambda pixels: 0
    assert run(vision, video, *options, "--enter", 100).exit_code == 0
    assert events.read_text() == ""
    assert len(read_lines(results)) == 12


def test_lines_go_to_a_named_pipe(vision: FakeVision, video: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as reading:
        text = reading.submit(pipe.read_text)
        assert run(vision, video, "--detect", "circle", "--results", pipe).exit_code == 0
        assert text.result(10).count("\n") == 12


def test_the_secret_of_the_webhook_is_checked(
    vision: FakeVision, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYLENS_WEBHOOK_SECRET", "short")
    outcome = run(vision, video, "--detect", "a", "--webhook", "http://127.0.0.1:9/")
    assert outcome.exit_code == 2
    assert "RAYLENS_WEBHOOK_SECRET: expected whsec_" in outcome.stderr


def test_a_full_disk_ends_the_watch(vision: FakeVision, video: Path) -> None:
    outcome = run(vision, video, "--detect", "circle", "--results", "/dev/full")
    assert outcome.exit_code == 1
    assert "No space left on device" in outcome.stderr


def test_a_window_that_cannot_be_shown_is_no_error(vision: FakeVision, video: Path) -> None:
    outcome = run(vision, video, "--detect", "circle", "--show")
    assert outcome.exit_code == 0
    assert "--show: this OpenCV has no windows" in outcome.stderr


async def test_a_stop_leaves_complete_files(video: Path, tmp_path: Path) -> None:
    """The answers for the second half never come."""

    async def ask(frames: Sequence[Frame], settings: MoondreamConfig) -> FrameResult:
        (frame,) = frames
        if frame.id >= 30:
            await asyncio.Event().wait()
        boxes = see("detect", frame.pixels)["objects"]
        return FrameResult(regions=tuple(Region(**box) for box in boxes))

    async def stop_at(frames: int) -> None:
        while progress.frames < frames:
            await asyncio.sleep(0.01)
        stop.set()

    stop = asyncio.Event()
    out, events = tmp_path / "out.mp4", tmp_path / "events"
    settings = make_settings("circle", None, None, False, inference_interval=5)
    plan = Plan(parse_source(str(video)), settings, Outputs(out, events), in_flight=2)
    progress = Progress("video", Console(quiet=True), False)
    source = open_source(plan.address)
    with (
        Sink(plan.outputs, "video", progress, None, print) as sink,
        ThreadPoolExecutor(1) as reading,
    ):
        stopping = asyncio.create_task(stop_at(30))
        async with asyncio.timeout(20):
            await RecordedWatch(source, ask, plan, sink, reading).run(stop)
        sink.finish()
        await stopping
        reading.submit(source.close).result(5)
    assert len(read_frames(out)) == 30
    assert [event["type"] for event in read_lines(events)] == ["started", "ended"]
    assert len(asyncio.all_tasks()) == 1
