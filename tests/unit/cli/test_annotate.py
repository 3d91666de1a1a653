from __future__ import annotations

import csv
import io
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner
from typer.testing import Result as CommandResult

from raylens.cli.main import app
from raylens.cli.record_file import RecordFile
from raylens.cli.records import JsonRecords
from raylens.cli.tasks import caption_task, encode_job
from tests.unit.cli.fake_server import (
    BLURRED,
    FakeServer,
    FlakyTransport,
    fail_for,
    is_poll,
    write_pictures,
)


def run(server: FakeServer, *arguments: object, command: str = "caption") -> CommandResult:
    return CliRunner().invoke(app, [command, *map(str, arguments)], obj=server.client_arguments)


def read_records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def read_captions(path: Path) -> dict[str, str]:
    """Return the captions by the name of the file, without its folder."""
    return {Path(record["file"]).name: record["caption"] for record in read_records(path)}


@pytest.fixture
def server() -> FakeServer:
    return FakeServer()


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "captions.jsonl"


def test_each_picture_gets_a_record(server: FakeServer, tmp_path: Path, out: Path) -> None:
    names = ("cat.jpg", "dog.PNG", "more/owl.webp")
    folder = write_pictures(tmp_path / "in", *names, "notes.txt")
    options = ("--prompt", "What?", "--length", "long", "--model", "m")
    result = run(server, folder, "--out", out, *options)
    assert result.exit_code == 0
    records = {record.pop("file"): record for record in read_records(out)}
    assert set(records) == {str(folder / name) for name in names}
    (job_id,) = (job_id for job_id, picture in server.pictures.items() if picture == "cat")
    assert records[str(folder / "cat.jpg")] == {
        "caption": "a cat",
        "model": "moondream",
        "job_id": job_id,
    }
    assert server.inputs == [{"prompt": "What?", "length": "long", "model": "m"}] * 3
    assert "3 pictures: 3 captioned, 0 failed" in result.stderr
    assert result.stdout == ""


def test_subfolders_are_skipped_on_request(server: FakeServer, tmp_path: Path, out: Path) -> None:
    folder = write_pictures(tmp_path / "in", "cat.jpg", "more/owl.webp")
    assert run(server, folder, "--out", out, "--no-recursive").exit_code == 0
    assert read_captions(out) == {"cat.jpg": "a cat"}


def test_pictures_are_submitted_in_natural_order(
    server: FakeServer, tmp_path: Path, out: Path
) -> None:
    folder = write_pictures(tmp_path / "in", "10.jpg", "9.jpg", "1.jpg")
    run(server, folder, "--out", out, "--in-flight", 1)
    assert server.submissions == ["1", "9", "10"]


def test_a_relative_path_is_stored_as_it_is(
    server: FakeServer, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pictures(tmp_path / "in", "cat.jpg")
    monkeypatch.chdir(tmp_path)
    assert run(server, "in", "--out", out).exit_code == 0
    assert [record["file"] for record in read_records(out)] == ["in/cat.jpg"]


def test_the_number_of_jobs_in_flight_is_limited(
    server: FakeServer, tmp_path: Path, out: Path
) -> None:
    folder = write_pictures(tmp_path / "in", *(f"{number}.jpg" for number in range(20)))
    server.starts_at = 3
    run(server, folder, "--out", out, "--in-flight", 3)
    assert server.max_in_flight == 3
    assert len(read_records(out)) == 20


def test_a_picture_with_a_record_is_not_submitted_again(
    server: FakeServer, tmp_path: Path, out: Path
) -> None:
    folder = write_pictures(tmp_path / "in", "cat.jpg")
    run(server, folder, "--out", out)
    write_pictures(folder, "dog.jpg")
    result = run(server, folder, "--out", out)
    assert server.submissions == ["cat", "dog"]
    assert read_captions(out) == {"cat.jpg": "a cat", "dog.jpg": "a dog"}
    assert "2 captioned (1 by an earlier run)" in result.stderr
    assert run(server, folder, "--out", out).exit_code == 0
    assert len(server.submissions) == 2


def test_an_incomplete_last_record_is_replaced(
    server: FakeServer, tmp_path: Path, out: Path
) -> None:
    folder = write_pictures(tmp_path / "in", "cat.jpg", "dog.jpg")
    run(server, folder, "--out", out, "--in-flight", 1)
    out.write_bytes(out.read_bytes()[:-9])
    assert run(server, folder, "--out", out).exit_code == 0
    assert server.submissions == ["cat", "dog", "dog"]
    assert len(server.jobs) == 2
    assert read_captions(out) == {"cat.jpg": "a cat", "dog.jpg": "a dog"}


@pytest.mark.parametrize("name", ["notes.jsonl", "notes.csv"])
@pytest.mark.parametrize(
    "text", ["my notes\n", "my notes", '{"name": "me"}\n', "[1]\n", "a,b,c\n1,2,3\n"]
)
def test_a_file_of_something_else_is_not_changed(
    server: FakeServer, tmp_path: Path, name: str, text: str
) -> None:
    path = tmp_path / name
    path.write_text(text)
    result = run(server, write_pictures(tmp_path / "in", "cat.jpg"), "--out", path)
    assert result.exit_code == 2
    assert "choose another --out" in result.stderr
    assert path.read_text() == text


def test_two_runs_cannot_write_to_one_file(server: FakeServer, tmp_path: Path, out: Path) -> None:
    with RecordFile(out, JsonRecords("caption")):
        result = run(server, write_pictures(tmp_path / "in", "cat.jpg"), "--out", out)
    assert (result.exit_code, result.stderr) == (2, f"{out}: another run is writing to it\n")


def test_an_interrupted_run_is_resumed_with_the_same_jobs(
    server: FakeServer, tmp_path: Path, out: Path
) -> None:
    ended: list[str] = []

    def interrupt(picture: str) -> None:
        ended.append(picture)
        if len(ended) == 4:
            signal.raise_signal(signal.SIGINT)

    folder = write_pictures(tmp_path / "in", *(f"{number}.jpg" for number in range(8)))
    server.on_end = interrupt
    result = run(server, folder, "--out", out, "--in-flight", 2)
    assert result.exit_code == 130
    first_records = read_records(out)
    assert 1 <= len(first_records) <= 4
    assert f"stopped with {len(first_records)} of 8 done: interrupted" in result.stderr
    assert "Run the same command again to resume." in result.stderr
    server.on_end = lambda picture: None
    result = run(server, folder, "--out", out, "--in-flight", 2)
    assert result.exit_code == 0
    assert read_records(out)[: len(first_records)] == first_records
    assert read_captions(out) == {f"{number}.jpg": f"a {number}" for number in range(8)}
    assert len(read_records(out)) == len(server.jobs) == 8
    assert len(server.submissions) > 8


def test_pictures_with_the_same_bytes_share_a_job_and_get_a_record_each(
    server: FakeServer, tmp_path: Path, out: Path
) -> None:
    folder = write_pictures(tmp_path / "in", "cat.jpg", "cat.small.jpg")
    assert run(server, folder, "--out", out).exit_code == 0
    assert read_captions(out) == {"cat.jpg": "a cat", "cat.small.jpg": "a cat"}
    assert len(server.jobs) == 1


@pytest.mark.parametrize(
    "reply", [(429, "50 jobs wait; the limit is 50"), (507, "pictures: 9 MB are free")]
)
def test_the_run_waits_for_room_and_reports_it_once(
    server: FakeServer, tmp_path: Path, out: Path, reply: tuple[int, str]
) -> None:
    server.busy_reply = reply
    server.busy_replies = 3
    folder = write_pictures(tmp_path / "in", "cat.jpg", "dog.jpg")
    result = run(server, folder, "--out", out, "--patience", 0)
    assert result.exit_code == 0
    assert len(read_records(out)) == 2
    assert result.stderr.count(f"waiting for the server: {reply[1]}\n") == 1


def test_a_connection_that_fails_is_retried(server: FakeServer, tmp_path: Path, out: Path) -> None:
    server.transport = FlakyTransport(server.transport, 2)
    result = run(server, write_pictures(tmp_path / "in", "cat.jpg"), "--out", out)
    assert result.exit_code == 0
    assert read_captions(out) == {"cat.jpg": "a cat"}
    assert "connection refused; retrying for up to 60 s" in result.stderr


def test_jobs_outlast_an_outage_during_the_wait(
    server: FakeServer, tmp_path: Path, out: Path
) -> None:
    server.transport = FlakyTransport(server.transport, 3, is_poll)
    folder = write_pictures(tmp_path / "in", "cat.jpg", "dog.jpg")
    result = run(server, folder, "--out", out)
    assert result.exit_code == 0
    assert read_captions(out) == {"cat.jpg": "a cat", "dog.jpg": "a dog"}
    assert len(server.submissions) == 2
    assert "connection refused; retrying for up to 60 s" in result.stderr


def test_an_outage_during_the_wait_stops_the_run_when_the_patience_ends(
    server: FakeServer, tmp_path: Path, out: Path
) -> None:
    server.transport = FlakyTransport(server.transport, 10**6, is_poll)
    folder = write_pictures(tmp_path / "in", "cat.jpg", "dog.jpg")
    result = run(server, folder, "--out", out, "--patience", 0)
    assert result.exit_code == 1
    assert "stopped with 0 of 2 done: " in result.stderr
    assert "no response for 0 s: connection refused" in result.stderr
    assert out.read_text() == ""


def test_all_jobs_in_flight_share_the_requests_for_their_ends(
    server: FakeServer, tmp_path: Path, out: Path
) -> None:
    folder = write_pictures(tmp_path / "in", *(f"{number}.jpg" for number in range(20)))
    server.starts_at = 20
    assert run(server, folder, "--out", out, "--in-flight", 20).exit_code == 0
    assert max(map(len, server.polls)) > 10
    assert server.streams == 0


def test_a_server_that_is_down_stops_the_run_and_fails_no_picture(
    server: FakeServer, tmp_path: Path, out: Path
) -> None:
    server.transport = FlakyTransport(server.transport, 10**6)
    folder = write_pictures(tmp_path / "in", "cat.jpg", "dog.jpg")
    result = run(server, folder, "--out", out, "--patience", 0.3)
    assert result.exit_code == 1
    assert "no response for 0.3 s: connection refused" in result.stderr
    assert out.read_text() == ""


def test_jobs_that_the_server_loses_are_submitted_again(
    server: FakeServer, tmp_path: Path, out: Path
) -> None:
    folder = write_pictures(tmp_path / "in", "cat.jpg", "dog.jpg")
    server.lost_jobs = 1
    assert run(server, folder, "--out", out, "--in-flight", 1).exit_code == 0
    assert read_captions(out) == {"cat.jpg": "a cat", "dog.jpg": "a dog"}
    assert server.submissions == ["cat", "cat", "dog"]
    server.lost_jobs = 3
    assert run(server, write_pictures(folder, "owl.jpg"), "--out", out).exit_code == 1
    assert read_records(out)[-1]["error"]["message"] == "the server lost the job 3 times"


def test_failures_are_listed_and_the_exit_status_is_1(tmp_path: Path, out: Path) -> None:
    folder = write_pictures(tmp_path / "in", "cat.jpg", "dog[red].jpg")
    server = FakeServer(fail_for("dog[red]"))
    result = run(server, folder, "--out", out)
    assert result.exit_code == 1
    assert f"{folder / 'dog[red].jpg'}: too blurred, they say\n" in result.stderr
    assert "2 pictures: 1 captioned, 1 failed" in result.stderr
    (failure,) = (record for record in read_records(out) if "error" in record)
    assert failure == {
        "file": str(folder / "dog[red].jpg"),
        "error": {"code": "model_failed", "message": "too blurred, they say"},
        "job_id": failure["job_id"],
    }


def test_a_failure_is_kept_until_it_is_retried_and_then_its_record_is_replaced(
    tmp_path: Path, out: Path
) -> None:
    folder = write_pictures(tmp_path / "in", "cat.jpg", "dog.jpg", "owl.jpg")
    server = FakeServer(fail_for("dog"))
    run(server, folder, "--out", out, "--in-flight", 1)
    result = run(server, folder, "--out", out)
    assert result.exit_code == 1
    assert "too blurred" in result.stderr
    assert server.submissions == ["cat", "dog", "owl"]
    server.answer = fail_for()
    assert run(server, folder, "--out", out, "--retry-failed").exit_code == 0
    assert server.retries == ["job-2"]
    captions = [(Path(record["file"]).name, record["caption"]) for record in read_records(out)]
    assert captions == [("cat.jpg", "a cat"), ("owl.jpg", "a owl"), ("dog.jpg", "a dog")]


def test_a_run_retries_a_job_once(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path, "cat.jpg", "b/cat.png")
    server = FakeServer(fail_for("cat"))
    arguments = (folder, "--format", "txt", "--in-flight", 1)
    assert run(server, *arguments).exit_code == 1
    assert server.retries == []
    result = run(server, *arguments, "--retry-failed")
    assert (result.exit_code, server.retries) == (1, ["job-1"])
    assert "--retry-failed" not in result.stderr


def test_an_empty_picture_is_not_sent(server: FakeServer, tmp_path: Path, out: Path) -> None:
    folder = write_pictures(tmp_path / "in", "cat.jpg")
    (folder / "zero.png").touch()
    result = run(server, folder, "--out", out)
    assert (result.exit_code, server.submissions) == (1, ["cat"])
    assert "zero.png: the picture is empty (0 bytes)" in result.stderr


def test_a_picture_that_the_server_has_removed_is_sent_again(tmp_path: Path, out: Path) -> None:
    folder = write_pictures(tmp_path / "in", "cat.jpg")
    server = FakeServer(fail_for("cat"))
    assert run(server, folder, "--out", out).exit_code == 1
    server.without_pictures.add("job-1")
    server.answer = fail_for()
    assert run(server, folder, "--out", out, "--retry-failed").exit_code == 0
    assert (server.submissions, server.retries) == (["cat"] * 3, [])
    assert "job-1" not in server.jobs


def test_a_canceled_job_counts_as_failed(server: FakeServer, tmp_path: Path, out: Path) -> None:
    folder = write_pictures(tmp_path / "in", "cat.jpg")
    key = encode_job(folder / "cat.jpg", caption_task(None, None, None)).key
    server.job_ids[key] = "old"
    server.add("old", status="canceled")
    assert run(server, folder, "--out", out).exit_code == 1
    (record,) = read_records(out)
    assert record["error"] == {"code": "canceled", "message": "the job was canceled"}


def test_a_file_that_cannot_be_read_does_not_stop_the_others(
    server: FakeServer, tmp_path: Path, out: Path
) -> None:
    folder = write_pictures(tmp_path / "in", "cat.jpg")
    (folder / "broken.jpg").symlink_to("nowhere")
    os.mkfifo(folder / "pipe.jpg")
    result = run(server, folder, "--out", out)
    assert result.exit_code == 1
    records = {Path(record["file"]).name: record for record in read_records(out)}
    assert records["cat.jpg"]["caption"] == "a cat"
    assert records["broken.jpg"]["error"] == {
        "code": "unreadable",
        "message": "No such file or directory",
    }
    assert records["pipe.jpg"]["error"] == {"code": "unreadable", "message": "not a regular file"}
    assert records["pipe.jpg"]["job_id"] is None


def test_a_picture_that_the_server_refuses_does_not_stop_the_others(
    server: FakeServer, tmp_path: Path, out: Path
) -> None:
    server.refusals = {
        "cat": (422, "input.image: not a picture"),
        "owl": (413, "input.image: 9 bytes; the limit is 5"),
    }
    folder = write_pictures(tmp_path / "in", "cat.jpg", "dog.jpg", "owl.jpg")
    result = run(server, folder, "--out", out)
    assert result.exit_code == 1
    assert "2 failed" in result.stderr
    (record,) = (record for record in read_records(out) if record["file"].endswith("cat.jpg"))
    assert record["error"] == {"code": "http_422", "message": "input.image: not a picture"}


@pytest.mark.parametrize(
    ("status", "detail"),
    [(404, "input.model: no 'm' here"), (422, "input.prompt: 100001 characters")],
)
def test_a_refusal_that_would_meet_every_picture_stops_the_run(
    server: FakeServer, tmp_path: Path, out: Path, status: int, detail: str
) -> None:
    server.refusals = {"cat": (status, detail)}
    folder = write_pictures(tmp_path / "in", "cat.jpg", "dog.jpg")
    result = run(server, folder, "--out", out, "--in-flight", 1)
    assert result.exit_code == 2
    assert f"stopped with 0 of 2 done: {detail}" in result.stderr
    assert server.submissions == []
    assert out.read_text() == ""
    assert "to resume" not in result.stderr


def test_a_server_that_stays_away_may_be_asked_later(
    server: FakeServer, tmp_path: Path, out: Path
) -> None:
    server.refusals = {"cat": (502, "not now")}
    folder = write_pictures(tmp_path / "in", "cat.jpg")
    result = run(server, folder, "--out", out, "--patience", 0)
    assert result.exit_code == 1
    assert "to resume" in result.stderr


def test_csv_is_chosen_by_the_suffix_and_quotes_its_cells(tmp_path: Path) -> None:
    out = tmp_path / "captions.csv"
    folder = write_pictures(tmp_path / "in", "cat, old.jpg", "dog.jpg")
    caption = 'says "yes",\nand \u2028 more'
    server = FakeServer(lambda picture: BLURRED if picture == "dog" else caption)
    arguments = (folder, "--out", out, "--in-flight", 1)
    assert run(server, *arguments).exit_code == 1
    rows = [
        ["file", "caption", "error"],
        [str(folder / "cat, old.jpg"), caption, ""],
        [str(folder / "dog.jpg"), "", "too blurred, they say"],
    ]
    assert list(csv.reader(io.StringIO(out.read_bytes().decode(), newline=""))) == rows
    assert run(server, *arguments).exit_code == 1
    assert len(server.submissions) == 2


def test_a_name_that_is_not_utf_8_is_kept(server: FakeServer, tmp_path: Path, out: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    name = os.fsdecode(os.fsencode(folder) + b"/\xff.jpg")
    Path(name).write_text("cat")
    for _ in range(2):
        assert run(server, folder, "--out", out).exit_code == 0
    assert [record["file"] for record in read_records(out)] == [name]
    assert server.submissions == ["cat"]


def test_text_files_are_written_beside_their_pictures_and_never_replaced(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path, "cat.jpg", "b/dog.PNG", "owl.gif", "rat.jpg")
    (folder / "owl.txt").write_text("by hand")
    (folder / ".cat.txt.part").write_text("cut o")
    server = FakeServer(fail_for("rat"))
    assert run(server, folder, "--format", "txt", "--in-flight", 1).exit_code == 1
    assert server.submissions == ["dog", "cat", "rat"]
    texts = {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*.txt*")}
    assert texts == {"cat.txt": "a cat\n", "b/dog.txt": "a dog\n", "owl.txt": "by hand"}


def test_pictures_that_would_share_a_text_file_are_refused(
    server: FakeServer, tmp_path: Path
) -> None:
    result = run(server, write_pictures(tmp_path, "cat.jpg", "cat.png"), "--format", "txt")
    assert result.exit_code == 2
    assert "would share one text file" in result.stderr
    assert not (tmp_path / "cat.txt").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["in"], "--out: missing"),
        (["in", "--format", "csv"], "--out: missing"),
        (["in", "--format", "txt", "--out", "x"], "--out: not supported with --format txt"),
        (["in", "--format", "pdf", "--out", "x"], "pdf"),
        (["empty", "--out", "x"], "no pictures in empty"),
        (["nowhere", "--out", "x"], "nowhere: no such file or folder"),
        (["in", "--out", "-", "--format", "txt"], "--out: not supported with --format txt"),
        (["in", "--out", "in"], "in: Is a directory"),
        (["in", "--out", "x", "--server", "localhost:8000"], "expected a URL"),
        (["in", "--out", "x", "--in-flight", "0"], "greater than or equal to 1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_invalid_usage_is_reported_before_anything_is_sent(
    server: FakeServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    write_pictures(tmp_path / "in", "cat.jpg")
    write_pictures(tmp_path / "empty", "notes.md")
    monkeypatch.chdir(tmp_path)
    result = run(server, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert server.submissions == []
    assert not (tmp_path / "x").exists()


def test_captions_that_cannot_be_written_stop_the_run(server: FakeServer, tmp_path: Path) -> None:
    folder = write_pictures(tmp_path, "cat.jpg")
    part = folder / ".cat.txt.part"
    part.mkdir()
    result = run(server, folder, "--format", "txt")
    assert result.exit_code == 1
    assert f"cannot write {part}: Is a directory" in result.stderr


def test_a_query_is_a_job_of_its_own_type(server: FakeServer, tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    folder = write_pictures(tmp_path / "in", "cat.jpg")
    result = run(server, folder, "What is it?", "-o", out, "--model", "m", command="query")
    assert result.exit_code == 0
    assert server.inputs == [{"question": "What is it?", "model": "m"}]
    (record,) = read_records(out)
    assert record["answer"] == "a cat"
    assert "1 picture: 1 answered, 0 failed" in result.stderr
    (tmp_path / "captions.jsonl").write_text('{"file": "x", "caption": "y"}\n')
    result = run(server, folder, "What?", "-o", tmp_path / "captions.jsonl", command="query")
    assert result.exit_code == 2
    assert "choose another --out" in result.stderr


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ([], ["--prompt", "B"], 'prompt unset, and now it is "B"'),
        (["--prompt", "A"], ["--prompt", "B"], 'prompt "A", and now it is "B"'),
        (["--length", "long"], [], 'length "long", and now it is unset'),
        (["--model", "a"], ["--model", "b"], 'model "a", and now it is "b"'),
    ],
)
@pytest.mark.parametrize("output", ["captions.jsonl", "captions.csv", "txt"])
def test_a_run_with_another_request_is_refused_unless_it_begins_again(
    server: FakeServer,
    tmp_path: Path,
    output: str,
    before: list[str],
    after: list[str],
    message: str,
) -> None:
    folder = write_pictures(tmp_path / "in", "cat.jpg", "dog.jpg")
    outputs = ["--format", "txt"] if output == "txt" else ["--out", str(tmp_path / output)]
    assert run(server, folder, *outputs, *before).exit_code == 0
    submissions = len(server.submissions)
    result = run(server, folder, *outputs, *after)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "add --redo" in result.stderr
    assert len(server.submissions) == submissions
    assert run(server, folder, *outputs, *before).exit_code == 0
    assert len(server.submissions) == submissions
    server.answer = lambda picture: f"another {picture}"
    assert run(server, folder, *outputs, *after, "--redo").exit_code == 0
    assert len(server.jobs) == 4
    path = folder / "cat.txt" if output == "txt" else tmp_path / output
    assert "another cat" in path.read_text()
    assert "a cat" not in path.read_text()
    assert run(server, folder, *outputs, *after).exit_code == 0
    assert len(server.submissions) == submissions + 2


def test_the_same_request_is_done_anew_by_new_jobs(
    server: FakeServer, tmp_path: Path, out: Path
) -> None:
    folder = write_pictures(tmp_path / "in", "cat.jpg", "dog.jpg")
    assert run(server, folder, "--out", out).exit_code == 0
    server.answer = lambda picture: f"another {picture}"
    server.refusals = {"dog": (404, "input.model: it is gone")}
    result = run(server, folder, "--out", out, "--redo", "--in-flight", 1)
    assert result.exit_code == 2
    assert "Run the same command again without --redo to resume." in result.stderr
    assert read_captions(out) == {"cat.jpg": "another cat"}
    server.refusals = {}
    for _ in range(2):
        assert run(server, folder, "--out", out).exit_code == 0
    assert read_captions(out) == {"cat.jpg": "another cat", "dog.jpg": "another dog"}
    assert (len(server.jobs), len(server.submissions)) == (4, 4)


@pytest.mark.parametrize("output", ["captions.jsonl", "captions.csv", "txt"])
def test_the_earlier_results_stay_until_there_is_a_new_one(
    server: FakeServer, tmp_path: Path, output: str
) -> None:
    folder = write_pictures(tmp_path / "in", "cat.jpg")
    outputs = ["--format", "txt"] if output == "txt" else ["--out", str(tmp_path / output)]
    assert run(server, folder, *outputs).exit_code == 0
    path = folder / "cat.txt" if output == "txt" else tmp_path / output
    before = path.read_bytes()
    server.refusals = {"cat": (404, "input.model: no 'typo' here")}
    result = run(server, folder, *outputs, "--model", "typo", "--redo")
    assert result.exit_code == 2
    assert "to resume" not in result.stderr
    assert path.read_bytes() == before
    server.refusals = {}
    assert run(server, folder, *outputs).exit_code == 0
    assert len(server.submissions) == 1


def test_failures_stay_until_a_retry_has_a_result(tmp_path: Path, out: Path) -> None:
    folder = write_pictures(tmp_path / "in", "cat.jpg", "dog.jpg")
    server = FakeServer(fail_for("dog"))
    run(server, folder, "--out", out)
    before = out.read_bytes()
    for options in (["--prompt", "B"], ["--patience", "0"]):
        server.transport = FlakyTransport(server.transport, 10**6)
        assert run(server, folder, "--out", out, "--retry-failed", *options).exit_code != 0
        assert out.read_bytes() == before


class TestTextFiles:
    @pytest.fixture
    def folder(self, server: FakeServer, tmp_path: Path) -> Path:
        """A folder with captions of two pictures, and a text by hand."""
        folder = write_pictures(tmp_path / "in", "cat.jpg", "sub/dog.jpg", "owl.jpg")
        (folder / "owl.txt").write_text("by hand")
        assert run(server, folder, "--format", "txt").exit_code == 0
        return folder

    def texts(self, folder: Path) -> dict[str, str]:
        return {path.name: path.read_text().strip() for path in folder.rglob("*.txt")}

    def test_another_command_is_refused(self, server: FakeServer, folder: Path) -> None:
        for path in (folder, folder / "sub"):
            result = run(server, path, "What?", "--format", "txt", command="query")
            assert result.exit_code == 2
            assert 'command "caption", and now it is "query"' in result.stderr

    def test_a_new_picture_with_another_request_is_refused(
        self, server: FakeServer, folder: Path
    ) -> None:
        write_pictures(folder, "new.jpg")
        for redo in ([], ["--redo"]):
            picture = folder / "sub"
            result = run(server, picture, "--format", "txt", "--prompt", "X", *redo)
            assert result.exit_code == 2
        assert "1 texts beside other pictures" in result.stderr
        assert run(server, folder, "--format", "txt").exit_code == 0
        assert self.texts(folder)["new.txt"] == "a new"

    def test_a_text_by_hand_is_never_removed(self, server: FakeServer, folder: Path) -> None:
        server.answer = lambda picture: f"another {picture}"
        result = run(server, folder, "--format", "txt", "--prompt", "X", "--redo")
        assert result.exit_code == 0
        assert self.texts(folder) == {
            "cat.txt": "another cat",
            "dog.txt": "another dog",
            "owl.txt": "by hand",
        }


def test_settings_among_the_pictures_are_not_counted_as_passed_over(
    server: FakeServer, tmp_path: Path
) -> None:
    folder = write_pictures(tmp_path, "cat.jpg")
    for _ in range(2):
        result = run(server, folder, "--format", "txt")
    assert "passed over 1 file: 1 .txt" in result.stderr


@pytest.mark.parametrize(
    ("file_format", "expected"),
    [
        (
            "jsonl",
            '{"file": "cat.jpg", "caption": "a cat", "model": "moondream", "job_id": "job-1"}\n',
        ),
        ("csv", "file,caption,error\r\ncat.jpg,a cat,\r\n"),
    ],
)
def test_records_on_standard_output_are_all_that_is_there(
    server: FakeServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    file_format: str,
    expected: str,
) -> None:
    write_pictures(tmp_path, "cat.jpg")
    monkeypatch.chdir(tmp_path)
    result = run(server, ".", "--out", "-", "--format", file_format)
    assert (result.exit_code, result.stdout_bytes.decode()) == (0, expected)
    assert [path.name for path in tmp_path.iterdir()] == ["cat.jpg"]


def test_failures_on_standard_output_promise_no_resumption(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path, "cat.jpg")
    result = run(FakeServer(fail_for("cat")), folder, "--out", "-")
    assert result.exit_code == 1
    assert "--retry-failed" not in result.stderr
    result = run(FakeServer(fail_for("cat")), folder, "--out", tmp_path / "x")
    assert "Add --retry-failed to try the failed pictures again." in result.stderr
