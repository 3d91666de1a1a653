from __future__ import annotations

import json

import httpx
import pytest
from typer.testing import CliRunner
from typer.testing import Result as Ran

from raylens.cli.client import Client, Refused, Unreachable
from raylens.cli.main import app
from tests.unit.cli.test_caption import BLURRED, FakeServer, Flaky, fails_for

ENDED = {"started_at": "2026-03-01T10:00:01.5Z", "finished_at": "2026-03-01T10:00:04Z"}


def run(server: FakeServer, *arguments: object) -> Ran:
    return CliRunner().invoke(app, ["jobs", *map(str, arguments)], obj=server.transport)


@pytest.fixture
def server() -> FakeServer:
    return FakeServer()


def test_list_shows_a_table_of_whole_ids(server: FakeServer) -> None:
    job_id = "0195f0b1-1111-7222-8333-944444444444"
    server.add(
        job_id,
        status="failed",
        attempts=2,
        error={**BLURRED, "message": "too [bold]\nblurred"},
        **ENDED,
    )
    server.add("other")
    result = run(server, "list")
    assert result.exit_code == 0
    header, first, second = result.stdout.splitlines()
    assert header.split() == ["id", "type", "status", "attempts", "created", "seconds", "error"]
    assert first.split()[:4] == [job_id, "caption", "failed", "2/5"]
    assert first.split()[-4:] == ["2.5", "too", "[bold]", "blurred"]
    assert second.split()[:4] == ["other", "caption", "queued", "0/5"]


def test_list_cuts_a_long_error_and_nothing_else(server: FakeServer) -> None:
    job_id = "0195f0b1-1111-7222-8333-944444444444"
    server.add(job_id, status="failed", error={**BLURRED, "message": "blurred, " * 100}, **ENDED)
    _, row = run(server, "list").stdout.splitlines()
    assert row.split()[:3] == [job_id, "caption", "failed"]
    assert row.endswith("…")


def test_list_takes_states_and_a_limit_and_prints_json(server: FakeServer) -> None:
    for number in range(5):
        server.add(str(number), status="running" if number % 2 else "queued")
    server.add("end", status="failed", error=BLURRED)
    result = run(server, "list", "--status", "queued,failed", "--limit", 3, "--json")
    assert [job["id"] for job in json.loads(result.stdout)] == ["0", "2", "4"]


def test_list_turns_pages_until_it_has_enough(server: FakeServer) -> None:
    for number in range(250):
        server.add(str(number))
    result = run(server, "list", "--limit", 210, "--json")
    assert [job["id"] for job in json.loads(result.stdout)] == [
        str(number) for number in range(210)
    ]
    assert server.pages == ["limit=100", "limit=100&cursor=100", "limit=10&cursor=200"]
    assert len(json.loads(run(server, "list", "--limit", 1000, "--json").stdout)) == 250


def test_show_prints_the_job(server: FakeServer) -> None:
    job = server.add("a", output={"caption": "é"})
    result = run(server, "show", "a")
    assert json.loads(result.stdout) == job
    assert "é" in result.stdout


@pytest.mark.parametrize("command", ["show", "retry", "cancel", "watch"])
def test_the_server_s_own_words_are_printed_and_the_exit_status_is_1(
    server: FakeServer, command: str
) -> None:
    result = run(server, command, "none")
    assert result.exit_code == 1
    assert "job_id: it is not here\n" in result.stderr


def test_an_id_is_one_segment_of_the_path(server: FakeServer) -> None:
    server.add("a")
    assert run(server, "show", "a/events").exit_code == 1
    assert run(server, "show", "a?x").exit_code == 1


def test_retry_takes_several_and_one_that_cannot_be_does_not_keep_the_others(
    server: FakeServer,
) -> None:
    server.add("a", status="failed", error=BLURRED)
    server.add("b", status="succeeded")
    server.add("c", status="canceled")
    result = run(server, "retry", "a", "b", "c")
    assert result.exit_code == 1
    assert result.stdout == "a queued\nc queued\n"
    assert result.stderr == "b: job_id: the job is succeeded, and can't become queued\n"
    assert server.retries == ["a", "c"]


def test_cancel_cancels(server: FakeServer) -> None:
    server.add("a")
    result = run(server, "cancel", "a")
    assert (result.exit_code, result.stdout) == (0, "a canceled\n")
    assert server.jobs["a"]["status"] == "canceled"


def test_watch_tells_each_change_once_and_ends_with_the_job(server: FakeServer) -> None:
    server.add("a")
    server.cuts = 2
    result = run(server, "watch", "a")
    assert result.exit_code == 0
    assert result.stdout == "queued\nrunning\nrunning, 1/2\nsucceeded, 1/2\n"


def test_watch_of_a_job_that_fails_tells_why_and_exits_with_1() -> None:
    server = FakeServer(fails_for("picture"))
    server.add("a")
    result = run(server, "watch", "a")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1] == "failed, 1/2: too blurred, they say"
    assert run(server, "watch", "a").stdout == "failed, 1/2: too blurred, they say\n"


def test_no_server_is_said_after_the_patience(server: FakeServer) -> None:
    server.transport = Flaky(server.transport, 10**6)
    result = run(server, "list", "--patience", 0, "--server", "http://10.1.2.3:4")
    assert result.exit_code == 1
    assert result.stderr == (
        "http://10.1.2.3:4: no answer in 0 s: connection refused. Is the server up, and --server right?\n"
    )


def test_the_server_s_url_may_stand_in_the_environment(server: FakeServer) -> None:
    server.transport = Flaky(server.transport, 10**6)
    result = CliRunner().invoke(
        app,
        ["jobs", "list", "--patience", "0"],
        obj=server.transport,
        env={"RAYLENS_SERVER": "http://there:1"},
    )
    assert "http://there:1: no answer" in result.stderr


def answering(*responses: httpx.Response) -> httpx.MockTransport:
    left = iter(responses)
    return httpx.MockTransport(lambda request: next(left))


async def test_a_busy_server_is_asked_again_only_while_the_patience_lasts() -> None:
    busy = httpx.Response(503, json={"detail": "overloaded"}, headers={"Retry-After": "0"})
    async with Client(transport=answering(busy, httpx.Response(200, json={"id": "a"}))) as client:
        assert await client.get("a") == {"id": "a"}
    async with Client(patience_s=0, transport=answering(busy)) as client:
        with pytest.raises(Refused, match=r"^overloaded$"):
            await client.get("a")


async def test_a_server_that_starts_anew_is_asked_again() -> None:
    broken, gone = httpx.Response(500, text="Internal Server Error"), httpx.Response(502)
    said: list[str] = []
    responses = answering(broken, gone, httpx.Response(200, json={"id": "a"}))
    async with Client(say=said.append, transport=responses) as client:
        assert await client.get("a") == {"id": "a"}
    assert said == ["http://127.0.0.1:8000: 500 Internal Server Error; trying again for up to 60 s"]


async def test_an_answer_of_something_else_is_said_to_be_that() -> None:
    async with Client(transport=answering(httpx.Response(200, text="<html>"))) as client:
        with pytest.raises(Refused, match="is it raylens"):
            await client.get("a")


async def test_one_request_that_always_breaks_is_told_from_a_server_that_is_away() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            raise httpx.WriteError("broken pipe")
        return httpx.Response(200, json={})

    async with Client(patience_s=0.0, transport=httpx.MockTransport(answer)) as client:
        with pytest.raises(Unreachable) as alone:
            await client.submit(b"{}", "key")
        assert not alone.value.answers_others
    async with Client(
        patience_s=0.1, transport=httpx.MockTransport(answer), say=lambda text: None
    ) as client:
        client.heard_at = float("inf")
        with pytest.raises(Unreachable) as alone:
            await client.submit(b"{}", "key")
        assert alone.value.answers_others
