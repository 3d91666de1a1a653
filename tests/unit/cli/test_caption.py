from __future__ import annotations

import asyncio
import base64
import csv
import io
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.console import Console
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from typer.testing import CliRunner
from typer.testing import Result as Ran

from raylens.cli.caption import CaptionOptions, find, request
from raylens.cli.client import ENDED
from raylens.cli.main import app
from raylens.cli.progress import ProgressDisplay, Tally
from raylens.cli.results import Format, Result, ResultFile

TIMES = {
    "created_at": "2026-03-01T10:00:00Z",
    "started_at": None,
    "finished_at": None,
    "deadline": None,
}
NEW = {
    "status": "queued",
    "attempts": 0,
    "max_attempts": 5,
    "progress": None,
    "output": None,
    "error": None,
}


class FakeServer:
    """The job queue's routes. A job is done once its events are asked for; its caption is told by
    its picture."""

    def __init__(self, caption: Callable[[str], Any] = lambda picture: f"a {picture}") -> None:
        self.caption = caption
        """A caption, or an error as a job has one, for the text that a picture consists of."""
        self.jobs: dict[str, dict[str, Any]] = {}
        self.keys: dict[str, str] = {}
        self.pictures: dict[str, str] = {}
        self.inputs: list[dict[str, Any]] = []
        self.submissions: list[str] = []
        self.retries: list[str] = []
        self.busy = 0
        """So many submissions are still refused with 429."""
        self.cuts = 0
        """So many streams of events still end before the job does."""
        self.losses = 0
        """So many jobs are still forgotten when their events are asked for."""
        self.most_in_flight = 0
        self.on_end: Callable[[str], None] = lambda picture: None
        self.refusals: dict[str, tuple[int, str]] = {}
        self.pages: list[str] = []
        routes = [
            Route("/api/v1/jobs", self._submit, methods=["POST"]),
            Route("/api/v1/jobs", self._list),
            Route("/api/v1/jobs/{id}", self._one, methods=["GET", "PUT", "DELETE"]),
            Route("/api/v1/jobs/{id}/events", self._follow),
        ]
        self.transport: httpx.AsyncBaseTransport = httpx.ASGITransport(Starlette(routes=routes))

    def add(self, job_id: str, **changes: Any) -> dict[str, Any]:
        self.jobs[job_id] = {
            "id": job_id,
            "job_type": "caption",
            "priority": 0,
            "input": {},
            **NEW,
            **TIMES,
            **changes,
        }
        return self.jobs[job_id]

    async def _submit(self, http: Request) -> Response:
        given, key = await http.json(), http.headers["Idempotency-Key"]
        picture = base64.b64decode(given["input"].pop("image"), validate=True).decode()
        if self.busy:
            self.busy -= 1
            return refusal(429, "50 jobs wait; the limit is 50")
        if picture in self.refusals:
            return refusal(*self.refusals[picture])
        self.submissions.append(picture)
        self.inputs.append(given["input"])
        if self.keys.get(key) not in self.jobs:
            job_id = f"job-{len(self.submissions)}"
            self.keys[key], self.pictures[job_id] = job_id, picture
            self.add(job_id)
        in_flight = sum(job["status"] not in ENDED for job in self.jobs.values())
        self.most_in_flight = max(self.most_in_flight, in_flight)
        return JSONResponse(self.jobs[self.keys[key]], 202)

    async def _list(self, http: Request) -> Response:
        asked = http.query_params
        self.pages.append(str(asked))
        jobs = [
            job
            for job in self.jobs.values()
            if job["status"] in asked.get("status", job["status"]).split(",")
        ]
        start, limit = int(asked.get("cursor", 0)), int(asked["limit"])
        after = start + limit
        return JSONResponse(
            {"jobs": jobs[start:after], "next_cursor": str(after) if after < len(jobs) else None}
        )

    async def _one(self, http: Request) -> Response:
        job = self.jobs.get(http.path_params["id"])
        if job is None:
            return refusal(404, "job_id: it is not here")
        if http.method == "PUT":
            if job["status"] not in ("failed", "canceled"):
                return refusal(409, f"job_id: the job is {job['status']}, and can't become queued")
            self.retries.append(job["id"])
            job.update(NEW)
        elif http.method == "DELETE":
            job["status"] = "canceled"
        return JSONResponse(job)

    async def _follow(self, http: Request) -> Response:
        if self.losses:
            self.losses -= 1
            del self.jobs[http.path_params["id"]]
        if http.path_params["id"] not in self.jobs:
            return refusal(404, "job_id: it is not here")
        return StreamingResponse(
            self._events(self.jobs[http.path_params["id"]]), media_type="text/event-stream"
        )

    async def _events(self, job: dict[str, Any]) -> AsyncIterator[str]:
        yield event("state", job)
        await asyncio.sleep(0.005)
        if job["status"] not in ENDED:
            job.update(status="running", attempts=1)
            yield event("state", job) + ": keepalive\n\n"
            job["progress"] = {"done": 1, "total": 2}
            yield event("progress", job)
            if self.cuts:
                self.cuts -= 1
                return
            said = self.caption(self.pictures.get(job["id"], "picture"))
            end = {"status": "succeeded", "output": {"caption": said, "model": "moondream"}}
            job.update(end if isinstance(said, str) else {"status": "failed", "error": said})
            self.on_end(self.pictures.get(job["id"], "picture"))
        yield event("state", job)


def refusal(status: int, detail: str) -> Response:
    return JSONResponse(
        {"detail": detail}, status, {"Retry-After": "0"} if status in (429, 503) else {}
    )


def event(name: str, job: dict[str, Any]) -> str:
    shown = {key: value for key, value in job.items() if key != "input"}
    return f"event: {name}\ndata: {json.dumps(shown, ensure_ascii=False)}\n\n"


class Flaky(httpx.AsyncBaseTransport):
    """A connection that fails for the first requests."""

    def __init__(self, inner: httpx.AsyncBaseTransport, failures: int) -> None:
        self._inner = inner
        self._failures = failures

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if self._failures > 0:
            self._failures -= 1
            raise httpx.ConnectError("connection refused")
        return await self._inner.handle_async_request(request)


BLURRED = {"code": "model_failed", "message": "too blurred, they say", "field": None}


def fails_for(*bad: str) -> Callable[[str], Any]:
    return lambda picture: BLURRED if picture in bad else f"a {picture}"


def pictures(folder: Path, *names: str) -> Path:
    """A folder of files that each hold their name, up to its first dot, as text."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.name.partition(".")[0])
    return folder


def run(server: FakeServer, *arguments: object) -> Ran:
    return CliRunner().invoke(app, ["caption", *map(str, arguments)], obj=server.transport)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def captions(path: Path) -> dict[str, str]:
    """By name without the folder."""
    return {Path(line["file"]).name: line["caption"] for line in lines(path)}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "captions.jsonl"


def test_each_picture_gets_a_line(tmp_path: Path, out: Path) -> None:
    folder, server = (
        pictures(tmp_path / "in", "cat.jpg", "dog.PNG", "more/owl.webp", "notes.txt"),
        FakeServer(),
    )
    result = run(
        server, folder, "--out", out, "--prompt", "What?", "--length", "long", "--model", "m"
    )
    assert result.exit_code == 0
    by_file = {line.pop("file"): line for line in lines(out)}
    assert set(by_file) == {str(folder / name) for name in ("cat.jpg", "dog.PNG", "more/owl.webp")}
    job_id = next(key for key, value in server.pictures.items() if value == "cat")
    assert by_file[str(folder / "cat.jpg")] == {
        "caption": "a cat",
        "model": "moondream",
        "job_id": job_id,
    }
    assert server.inputs == [{"prompt": "What?", "length": "long", "model": "m"}] * 3
    assert "3 pictures: 3 captioned, 0 failed" in result.stderr
    assert result.stdout == ""


def test_folders_within_are_left_out_where_that_is_wanted(tmp_path: Path, out: Path) -> None:
    folder = pictures(tmp_path / "in", "cat.jpg", "more/owl.webp")
    assert run(FakeServer(), folder, "--out", out, "--no-recursive").exit_code == 0
    assert captions(out) == {"cat.jpg": "a cat"}


def test_pictures_come_in_natural_order_each_once(tmp_path: Path) -> None:
    names = ["10.jpg", "2.jpg", "A3.gif", "a20.avif", "b/1.tif", "b/.hidden.jpg", ".thumbs/1.jpg"]
    folder = pictures(tmp_path, *names)
    found = find([folder / "2.jpg", folder, folder / "b"])
    assert [str(path.relative_to(folder)) for path in found] == [
        "2.jpg",
        "10.jpg",
        "A3.gif",
        "a20.avif",
        "b/1.tif",
    ]


def test_pictures_are_submitted_in_natural_order(tmp_path: Path, out: Path) -> None:
    server = FakeServer()
    run(
        server,
        pictures(tmp_path / "in", "10.jpg", "9.jpg", "1.jpg"),
        "--out",
        out,
        "--in-flight",
        1,
    )
    assert server.submissions == ["1", "9", "10"]


def test_a_relative_name_stays_so(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures(tmp_path / "in", "cat.jpg")
    monkeypatch.chdir(tmp_path)
    assert run(FakeServer(), "in", "--out", out).exit_code == 0
    assert [line["file"] for line in lines(out)] == ["in/cat.jpg"]


def test_no_more_jobs_than_wanted_are_in_flight(tmp_path: Path, out: Path) -> None:
    server = FakeServer()
    run(
        server,
        pictures(tmp_path / "in", *(f"{n}.jpg" for n in range(20))),
        "--out",
        out,
        "--in-flight",
        3,
    )
    assert server.most_in_flight == 3
    assert len(lines(out)) == 20


def test_resuming_does_not_redo_what_has_its_line(tmp_path: Path, out: Path) -> None:
    folder, server = pictures(tmp_path / "in", "cat.jpg"), FakeServer()
    run(server, folder, "--out", out)
    pictures(folder, "dog.jpg")
    result = run(server, folder, "--out", out)
    assert server.submissions == ["cat", "dog"]
    assert captions(out) == {"cat.jpg": "a cat", "dog.jpg": "a dog"}
    assert "2 captioned (1 of them before)" in result.stderr
    assert run(server, folder, "--out", out).exit_code == 0
    assert len(server.submissions) == 2


@pytest.mark.parametrize("form", [Format.JSONL, Format.CSV])
def test_wherever_a_record_is_torn_it_is_cut_off_and_no_whole_one_is_lost(
    tmp_path: Path, form: Format
) -> None:
    path = tmp_path / "captions"
    written = [
        Result("a, b.jpg", 'says "yes",\nand "no"\r\n', "m", job_id="1"),
        Result("\udcff.jpg", "a cat\u2028é", "m", job_id="2"),
        Result("c.jpg", error={"code": "x", "message": 'a "quoted"\nword'}),
    ]
    ends = []
    for result in written:
        with ResultFile(path, form) as record:
            record.write(result)
        ends.append(path.stat().st_size)
    whole = path.read_bytes()
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        with ResultFile(path, form) as record:
            for result, end in zip(written, ends, strict=True):
                assert record.earlier(result.file) == (result.problem if size >= end else None)
                if size < end:
                    record.write(result)
        assert path.read_bytes() == whole


def test_a_torn_last_line_is_done_again(tmp_path: Path, out: Path) -> None:
    folder, server = pictures(tmp_path / "in", "cat.jpg", "dog.jpg"), FakeServer()
    run(server, folder, "--out", out, "--in-flight", 1)
    out.write_bytes(out.read_bytes()[:-9])
    assert run(server, folder, "--out", out).exit_code == 0
    assert server.submissions == ["cat", "dog", "dog"]
    assert len(server.jobs) == 2
    assert captions(out) == {"cat.jpg": "a cat", "dog.jpg": "a dog"}


@pytest.mark.parametrize("name", ["notes.jsonl", "notes.csv"])
@pytest.mark.parametrize(
    "text", ["my notes\n", "my notes", '{"name": "me"}\n', "[1]\n", "a,b,c\n1,2,3\n"]
)
def test_a_file_of_something_else_is_left_as_it_is(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    result = run(FakeServer(), pictures(tmp_path / "in", "cat.jpg"), "--out", path)
    assert result.exit_code == 2
    assert "give another --out" in result.stderr
    assert path.read_text() == text


def test_two_runs_do_not_write_one_file(tmp_path: Path, out: Path) -> None:
    with ResultFile(out, Format.JSONL):
        result = run(FakeServer(), pictures(tmp_path / "in", "cat.jpg"), "--out", out)
    assert (result.exit_code, result.stderr) == (2, f"{out}: another run writes it\n")


def test_ctrl_c_says_how_to_go_on_and_the_same_jobs_are_found_again(
    tmp_path: Path, out: Path
) -> None:
    folder = pictures(tmp_path / "in", *(f"{n}.jpg" for n in range(8)))
    server = FakeServer()
    server.on_end = lambda picture: signal.raise_signal(signal.SIGINT) if picture == "3" else None
    result = run(server, folder, "--out", out, "--in-flight", 2)
    assert result.exit_code == 130
    before = lines(out)
    assert 1 <= len(before) <= 4
    assert f"stopped with {len(before)} of 8 done: interrupted" in result.stderr
    assert "The same command goes on from here." in result.stderr
    server.on_end = lambda picture: None
    result = run(server, folder, "--out", out, "--in-flight", 2)
    assert result.exit_code == 0
    assert lines(out)[: len(before)] == before
    assert captions(out) == {f"{n}.jpg": f"a {n}" for n in range(8)}
    assert len(lines(out)) == len(server.jobs) == 8
    assert len(server.submissions) > 8


def test_a_key_tells_what_is_asked_about_which_bytes_and_nothing_else(tmp_path: Path) -> None:
    folder = pictures(tmp_path, "cat.jpg", "b/cat.jpg", "dog.jpg")
    cat = request(folder / "cat.jpg", CaptionOptions("a", "short", "m"))
    assert cat == request(folder / "b/cat.jpg", CaptionOptions("a", "short", "m"))
    body, key = cat
    assert json.loads(body) == {
        "job_type": "caption",
        "input": {
            "prompt": "a",
            "length": "short",
            "model": "m",
            "image": base64.b64encode(b"cat").decode(),
        },
    }
    assert key.isascii()
    assert len(key) <= 255
    others = [
        CaptionOptions("b", "short", "m"),
        CaptionOptions("a", "long", "m"),
        CaptionOptions("a", "short", "n"),
        CaptionOptions(model="a"),
        CaptionOptions("a"),
    ]
    keys = {request(folder / "cat.jpg", options)[1] for options in others}
    assert len({key, request(folder / "dog.jpg", CaptionOptions("a", "short", "m"))[1], *keys}) == 7


def test_two_pictures_of_the_same_bytes_share_a_job_and_both_get_their_line(
    tmp_path: Path, out: Path
) -> None:
    folder, server = pictures(tmp_path / "in", "cat.jpg", "cat.small.jpg"), FakeServer()
    assert run(server, folder, "--out", out).exit_code == 0
    assert captions(out) == {"cat.jpg": "a cat", "cat.small.jpg": "a cat"}
    assert len(server.jobs) == 1


def test_a_full_queue_is_waited_for_and_told_of_once(tmp_path: Path, out: Path) -> None:
    server = FakeServer()
    server.busy = 3
    result = run(
        server, pictures(tmp_path / "in", "cat.jpg", "dog.jpg"), "--out", out, "--patience", 0
    )
    assert result.exit_code == 0
    assert len(lines(out)) == 2
    assert result.stderr.count("waiting for the server: 50 jobs wait") == 1


def test_a_connection_that_fails_is_tried_again(tmp_path: Path, out: Path) -> None:
    server = FakeServer()
    server.transport, server.cuts = Flaky(server.transport, 2), 1
    result = run(server, pictures(tmp_path / "in", "cat.jpg"), "--out", out)
    assert result.exit_code == 0
    assert captions(out) == {"cat.jpg": "a cat"}
    assert "connection refused; trying again for up to 60 s" in result.stderr


def test_a_server_that_stays_away_stops_the_run_and_no_picture_is_blamed(
    tmp_path: Path, out: Path
) -> None:
    server = FakeServer()
    server.transport = Flaky(server.transport, 10**6)
    result = run(
        server, pictures(tmp_path / "in", "cat.jpg", "dog.jpg"), "--out", out, "--patience", 0.3
    )
    assert result.exit_code == 1
    assert "no answer in 0.3 s: connection refused" in result.stderr
    assert out.read_text() == ""


def test_a_server_that_has_lost_its_jobs_gets_them_again(tmp_path: Path, out: Path) -> None:
    folder, server = pictures(tmp_path / "in", "cat.jpg", "dog.jpg"), FakeServer()
    server.losses = 1
    assert run(server, folder, "--out", out, "--in-flight", 1).exit_code == 0
    assert captions(out) == {"cat.jpg": "a cat", "dog.jpg": "a dog"}
    assert server.submissions == ["cat", "cat", "dog"]
    server.losses = 3
    assert run(server, pictures(folder, "owl.jpg"), "--out", out).exit_code == 1
    assert lines(out)[-1]["error"]["message"] == "the server has lost its job 3 times"


def test_failures_are_listed_and_the_exit_status_is_1(tmp_path: Path, out: Path) -> None:
    folder, server = (
        pictures(tmp_path / "in", "cat.jpg", "dog[red].jpg"),
        FakeServer(fails_for("dog[red]")),
    )
    result = run(server, folder, "--out", out)
    assert result.exit_code == 1
    assert f"{folder / 'dog[red].jpg'}: too blurred, they say\n" in result.stderr
    assert "2 pictures: 1 captioned, 1 failed" in result.stderr
    (failed,) = (line for line in lines(out) if "error" in line)
    error = {"code": "model_failed", "message": "too blurred, they say"}
    assert failed == {
        "file": str(folder / "dog[red].jpg"),
        "error": error,
        "job_id": failed["job_id"],
    }


def test_a_failure_counts_until_it_is_to_be_tried_again_and_then_its_line_is_replaced(
    tmp_path: Path, out: Path
) -> None:
    folder, server = (
        pictures(tmp_path / "in", "cat.jpg", "dog.jpg", "owl.jpg"),
        FakeServer(fails_for("dog")),
    )
    run(server, folder, "--out", out, "--in-flight", 1)
    result = run(server, folder, "--out", out)
    assert result.exit_code == 1
    assert "too blurred" in result.stderr
    assert server.submissions == ["cat", "dog", "owl"]
    server.caption = fails_for()
    assert run(server, folder, "--out", out, "--retry-failed").exit_code == 0
    assert server.retries == ["job-2"]
    assert [(Path(line["file"]).name, line["caption"]) for line in lines(out)] == [
        ("cat.jpg", "a cat"),
        ("owl.jpg", "a owl"),
        ("dog.jpg", "a dog"),
    ]


def test_a_job_that_fails_again_is_retried_once_in_a_run(tmp_path: Path) -> None:
    folder, server = pictures(tmp_path, "cat.jpg", "b/cat.png"), FakeServer(fails_for("cat"))
    arguments = (folder, "--format", "txt", "--in-flight", 1)
    assert run(server, *arguments).exit_code == 1
    assert server.retries == []
    assert run(server, *arguments, "--retry-failed").exit_code == 1
    assert server.retries == ["job-1"]


def test_a_canceled_job_counts_as_failed(tmp_path: Path, out: Path) -> None:
    server = FakeServer()
    folder = pictures(tmp_path / "in", "cat.jpg")
    server.keys[request(folder / "cat.jpg", CaptionOptions())[1]] = "old"
    server.add("old", status="canceled")
    assert run(server, folder, "--out", out).exit_code == 1
    assert lines(out)[0]["error"] == {"code": "canceled", "message": "the job was canceled"}


def test_a_file_that_cannot_be_read_fails_and_the_others_go_on(tmp_path: Path, out: Path) -> None:
    folder, server = pictures(tmp_path / "in", "cat.jpg"), FakeServer()
    (folder / "broken.jpg").symlink_to("nowhere")
    os.mkfifo(folder / "pipe.jpg")
    result = run(server, folder, "--out", out)
    assert result.exit_code == 1
    by_name = {Path(line["file"]).name: line for line in lines(out)}
    assert by_name["cat.jpg"]["caption"] == "a cat"
    assert by_name["broken.jpg"]["error"] == {
        "code": "unreadable",
        "message": "No such file or directory",
    }
    assert by_name["pipe.jpg"]["error"] == {"code": "unreadable", "message": "not a regular file"}
    assert by_name["pipe.jpg"]["job_id"] is None


def test_a_picture_that_the_server_refuses_fails_and_the_others_go_on(
    tmp_path: Path, out: Path
) -> None:
    server = FakeServer()
    server.refusals = {
        "cat": (422, "input.image: not a picture"),
        "owl": (413, "input.image: 9 bytes; the limit is 5"),
    }
    result = run(server, pictures(tmp_path / "in", "cat.jpg", "dog.jpg", "owl.jpg"), "--out", out)
    assert result.exit_code == 1
    assert "2 failed" in result.stderr
    (error,) = (line["error"] for line in lines(out) if line["file"].endswith("cat.jpg"))
    assert error == {"code": "http_422", "message": "input.image: not a picture"}


@pytest.mark.parametrize(
    "refused", [(404, "input.model: no 'm' here"), (422, "input.prompt: 100001 characters")]
)
def test_what_every_picture_would_meet_stops_the_run(
    tmp_path: Path, out: Path, refused: tuple[int, str]
) -> None:
    server = FakeServer()
    server.refusals = {"cat": refused}
    result = run(
        server, pictures(tmp_path / "in", "cat.jpg", "dog.jpg"), "--out", out, "--in-flight", 1
    )
    assert result.exit_code == 2
    assert f"stopped with 0 of 2 done: {refused[1]}" in result.stderr
    assert server.submissions == []
    assert out.read_text() == ""


def test_csv_quotes_what_needs_it_and_is_told_by_the_name(tmp_path: Path) -> None:
    out = tmp_path / "captions.csv"
    folder = pictures(tmp_path / "in", "cat, old.jpg", "dog.jpg")
    server = FakeServer(
        lambda picture: BLURRED if picture == "dog" else 'says "yes",\nand \u2028 more'
    )
    arguments = (folder, "--out", out, "--in-flight", 1)
    assert run(server, *arguments).exit_code == 1
    rows = [
        ["file", "caption", "error"],
        [str(folder / "cat, old.jpg"), 'says "yes",\nand \u2028 more', ""],
        [str(folder / "dog.jpg"), "", "too blurred, they say"],
    ]
    assert list(csv.reader(io.StringIO(out.read_bytes().decode(), newline=""))) == rows
    assert run(server, *arguments).exit_code == 1
    assert len(server.submissions) == 2


def test_a_name_that_is_no_utf_8_is_kept(tmp_path: Path, out: Path) -> None:
    folder, server = pictures(tmp_path / "in"), FakeServer()
    folder.mkdir()
    name = os.fsdecode(os.fsencode(folder) + b"/\xff.jpg")
    Path(name).write_text("cat")
    for _ in range(2):
        assert run(server, folder, "--out", out).exit_code == 0
    assert [line["file"] for line in lines(out)] == [name]
    assert server.submissions == ["cat"]


def test_text_files_stand_whole_beside_their_pictures_and_are_not_done_again(
    tmp_path: Path,
) -> None:
    folder = pictures(tmp_path, "cat.jpg", "b/dog.PNG", "owl.gif", "rat.jpg")
    (folder / "owl.txt").write_text("by hand")
    (folder / ".cat.txt.part").write_text("cut o")
    server = FakeServer(fails_for("rat"))
    assert run(server, folder, "--format", "txt", "--in-flight", 1).exit_code == 1
    assert server.submissions == ["dog", "cat", "rat"]
    texts = {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*.txt*")}
    assert texts == {"cat.txt": "a cat\n", "b/dog.txt": "a dog\n", "owl.txt": "by hand"}


def test_pictures_that_would_share_a_text_file_are_refused(tmp_path: Path) -> None:
    result = run(FakeServer(), pictures(tmp_path, "cat.jpg", "cat.png"), "--format", "txt")
    assert result.exit_code == 2
    assert "would share one text file" in result.stderr
    assert not (tmp_path / "cat.txt").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["in"], "--out"),
        (["in", "--format", "csv"], "--out"),
        (["in", "--format", "txt", "--out", "x"], "leave it out"),
        (["in", "--format", "pdf", "--out", "x"], "pdf"),
        (["empty", "--out", "x"], "no pictures in empty"),
        (["nowhere", "--out", "x"], "nowhere: no such file or folder"),
        (["in", "--out", "in"], "in: Is a directory"),
        (["in", "--out", "x", "--server", "localhost:8000"], "is no URL"),
        (["in", "--out", "x", "--in-flight", "0"], "greater than or equal to 1"),
    ],
    ids=" ".join,
)
def test_bad_usage_is_said_before_anything_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    pictures(tmp_path / "in", "cat.jpg")
    pictures(tmp_path / "empty", "notes.md")
    monkeypatch.chdir(tmp_path)
    server = FakeServer()
    result = run(server, *arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert server.submissions == []
    assert not (tmp_path / "x").exists()


def test_captions_that_cannot_be_written_stop_the_run(tmp_path: Path) -> None:
    folder = pictures(tmp_path, "cat.jpg")
    (folder / ".cat.txt.part").mkdir()
    result = run(FakeServer(), folder, "--format", "txt")
    assert result.exit_code == 1
    assert "can't be written: Is a directory" in result.stderr


@pytest.mark.parametrize("is_terminal", [True, False])
def test_the_meter_tells_how_many_are_done_how_fast_and_how_long_it_takes(
    is_terminal: bool,
) -> None:
    shown = io.StringIO()
    tally = Tally(4)
    console = Console(file=shown, force_terminal=is_terminal, width=100, soft_wrap=True)
    with ProgressDisplay(tally, console, period_s=0.0) as meter:
        tally.add(Result("a.jpg", "a cat"))
        tally.add(Result("b.jpg", error={"code": "x", "message": "blurred"}))
        meter.show()
    assert "2/4 done, 1 failed, " in shown.getvalue()
    assert "/s, 0:00:00 left" in shown.getvalue()
