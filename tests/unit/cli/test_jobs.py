from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner
from typer.testing import Result as CommandResult

from raylens.cli.main import app
from tests.unit.cli.fake_server import (
    BLURRED,
    FakeServer,
    FlakyTransport,
    ForgetfulTransport,
    fail_for,
)

JOB_ID = "0195f0b1-1111-7222-8333-944444444444"
ENDED = {"started_at": "2026-03-01T10:00:01.5Z", "finished_at": "2026-03-01T10:00:04Z"}


def run(server: FakeServer, *arguments: object) -> CommandResult:
    return CliRunner().invoke(app, ["jobs", *map(str, arguments)], obj=server.client_arguments)


@pytest.fixture
def server() -> FakeServer:
    return FakeServer()


def test_list_shows_a_table_of_complete_ids(server: FakeServer) -> None:
    error = {**BLURRED, "message": "too [bold]\nblurred"}
    server.add(JOB_ID, status="failed", attempts=2, error=error, **ENDED)
    server.add("other")
    result = run(server, "list")
    assert result.exit_code == 0
    header, first, second = result.stdout.splitlines()
    assert header.split() == ["id", "type", "status", "attempts", "created", "seconds", "error"]
    assert first.split()[:4] == [JOB_ID, "caption", "failed", "2/5"]
    assert first.split()[-4:] == ["2.5", "too", "[bold]", "blurred"]
    assert second.split()[:4] == ["other", "caption", "queued", "0/5"]


def test_list_shortens_a_long_error_and_nothing_else(server: FakeServer) -> None:
    error = {**BLURRED, "message": "blurred, " * 100}
    server.add(JOB_ID, status="failed", error=error, **ENDED)
    _, row = run(server, "list").stdout.splitlines()
    assert row.split()[:3] == [JOB_ID, "caption", "failed"]
    assert row.endswith("…")


def test_list_filters_by_state_limits_and_prints_json(server: FakeServer) -> None:
    for number in range(5):
        server.add(str(number), status="running" if number % 2 else "queued")
    server.add("end", status="failed", error=BLURRED)
    result = run(server, "list", "--status", "queued,failed", "--limit", 3, "--json")
    assert [job["id"] for job in json.loads(result.stdout)] == ["0", "2", "4"]


def test_list_requests_pages_up_to_the_limit(server: FakeServer) -> None:
    for number in range(250):
        server.add(str(number))
    jobs = json.loads(run(server, "list", "--limit", 210, "--json").stdout)
    assert [job["id"] for job in jobs] == [str(number) for number in range(210)]
    assert server.pages == ["limit=100", "limit=100&cursor=100", "limit=10&cursor=200"]
    assert len(json.loads(run(server, "list", "--limit", 1000, "--json").stdout)) == 250


def test_show_prints_the_job(server: FakeServer) -> None:
    job = server.add("a", output={"caption": "é"}, partial_output={"results": [1]})
    result = run(server, "show", "a")
    assert json.loads(result.stdout) == job
    assert "é" in result.stdout


@pytest.mark.parametrize("command", ["show", "retry", "cancel", "delete", "watch"])
def test_the_server_s_error_is_printed_and_the_exit_status_is_1(
    server: FakeServer, command: str
) -> None:
    result = run(server, command, "none")
    assert result.exit_code == 1
    assert "job_id: it is not here\n" in result.stderr


def test_an_id_is_one_segment_of_the_path(server: FakeServer) -> None:
    server.add("a")
    assert run(server, "show", "a/events").exit_code == 1
    assert run(server, "show", "a?x").exit_code == 1


def test_retry_takes_several_jobs_and_goes_on_after_a_refusal(server: FakeServer) -> None:
    server.add("a", status="failed", error=BLURRED)
    server.add("b", status="succeeded")
    server.add("c", status="canceled")
    result = run(server, "retry", "a", "b", "c")
    assert result.exit_code == 1
    assert result.stdout == "a queued\nc queued\n"
    assert result.stderr == "b: job_id: a succeeded job can't become queued\n"
    assert server.retries == ["a", "c"]


def test_cancel_cancels_a_job(server: FakeServer) -> None:
    server.add("a")
    result = run(server, "cancel", "a")
    assert (result.exit_code, result.stdout) == (0, "a canceled\n")
    assert server.jobs["a"]["status"] == "canceled"


def test_cancel_of_a_job_that_has_ended_is_refused_and_leaves_its_result(
    server: FakeServer,
) -> None:
    job = dict(server.add("a", status="succeeded", output={"caption": "a cat"}))
    server.add("b", status="canceled")
    result = run(server, "cancel", "a", "b")
    assert (result.exit_code, result.stdout) == (1, "b canceled\n")
    assert result.stderr == "a: job_id: a succeeded job can't become canceled\n"
    assert server.jobs["a"] == job
    assert "b" in server.jobs


def test_delete_cancels_a_job_or_removes_one_that_has_ended(server: FakeServer) -> None:
    server.add("a")
    server.add("b", status="running")
    server.add("c", status="succeeded")
    result = run(server, "delete", "a", "b", "none", "c", "a")
    assert (result.exit_code, result.stdout) == (1, "a canceled\nb canceled\nc removed\n")
    assert result.stderr == "none: job_id: it is not here\n"
    assert set(server.jobs) == {"a", "b"}
    assert run(server, "delete", "a").stdout == "a removed\n"


@pytest.mark.parametrize("method", ["POST", "DELETE"])
def test_delete_has_the_same_effect_if_an_answer_is_lost(server: FakeServer, method: str) -> None:
    server.transport = ForgetfulTransport(server.transport, method)
    server.add("a")
    server.add("b", status="failed", error=BLURRED)
    result = run(server, "delete", "a", "b")
    assert (result.exit_code, result.stdout) == (0, "a canceled\nb removed\n")
    assert server.jobs["a"]["status"] == "canceled"
    assert set(server.jobs) == {"a"}


def test_a_queued_job_that_waits_for_capacity_says_so(server: FakeServer) -> None:
    server.add("a", error={"code": "overloaded", "message": "m: the queue is full", "field": None})
    assert run(server, "watch", "a").stdout.splitlines()[0] == "queued: m: the queue is full"
    server.jobs["a"].update(status="queued", attempts=0)
    _, row = run(server, "list").stdout.splitlines()
    assert row.split()[:4] == ["a", "caption", "queued", "0/5"]
    assert row.endswith("m: the queue is full")


def test_watch_prints_each_change_once_and_ends_with_the_job(server: FakeServer) -> None:
    server.add("a")
    server.broken_streams = 2
    result = run(server, "watch", "a")
    assert result.exit_code == 0
    assert result.stdout == "queued\nrunning\nrunning, 1/2\nsucceeded, 1/2\n"


def test_watch_prints_why_a_job_failed_and_exits_with_1() -> None:
    server = FakeServer(fail_for("picture"))
    server.add("a")
    result = run(server, "watch", "a")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1] == "failed, 1/2: too blurred, they say"
    assert run(server, "watch", "a").stdout == "failed, 1/2: too blurred, they say\n"


def test_a_server_that_is_down_is_reported_when_the_patience_ends(server: FakeServer) -> None:
    server.transport = FlakyTransport(server.transport, 10**6)
    result = run(server, "list", "--patience", 0, "--server", "http://10.1.2.3:4")
    assert result.exit_code == 1
    assert result.stderr == (
        "http://10.1.2.3:4: no response for 0 s: connection refused. "
        "Is the server running, and is --server correct?\n"
    )


def test_the_environment_may_set_the_server_s_url(server: FakeServer) -> None:
    result = CliRunner().invoke(
        app,
        ["jobs", "list", "--patience", "0"],
        obj={"transport": FlakyTransport(server.transport, 10**6)},
        env={"RAYLENS_SERVER": "http://there:1"},
    )
    assert "http://there:1: no response" in result.stderr
