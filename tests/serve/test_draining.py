"""A server of its own that is drained: by ``raylens drain``, and by signals."""

from __future__ import annotations

import asyncio
import json
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from raylens.cli.drain import find_server, has_ended
from testing.checkpoints import random_smolvlm
from testing.server import running_server
from tests.serve.conftest import ROOT, add_cramped_model

RAYLENS = str(Path(sys.executable).with_name("raylens"))
TOKENS = 1500
"""Of each answer; they take some seconds."""
CHAT = "/v1/chat/completions"


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """A server with the cramped model alone, whose answers are long, and with one worker."""
    checkpoint = random_smolvlm(tmp_path / "cramped")

    def change(config: dict[str, Any]) -> None:
        (application,) = config["applications"]
        application["args"]["models"] = []
        application["deployments"] = [
            deployment
            for deployment in application["deployments"]
            if deployment["name"] in ("Ingress", "Preprocessor")
        ]
        add_cramped_model(config, checkpoint)
        application["args"]["defaults"] = {"max_tokens": TOKENS}
        application["args"]["jobs"] = {"data_dir": str(tmp_path / "data"), "workers": 1}

    with running_server(ROOT / "serve_config.yaml", change) as url:
        yield url


def states_of_jobs(folder: Path) -> list[str]:
    """Return the states of the jobs in a store whose server has ended, the oldest first."""
    with sqlite3.connect(next(folder.glob("*.sqlite*"))) as store:
        return [state for (state,) in store.execute("SELECT state FROM jobs ORDER BY id")]


class Stream:
    """An answer that is streamed."""

    def __init__(self, lines: AsyncIterator[str]) -> None:
        self._lines = lines
        self.seen: list[str] = []

    async def read(self) -> bool:
        """Read a line that isn't empty. Return False at the end."""
        async for line in self._lines:
            if line:
                self.seen.append(line)
                return True
        return False

    async def read_all(self) -> list[str]:
        while await self.read():
            pass
        return self.seen


async def begin_drain(http: httpx.AsyncClient, *options: str) -> asyncio.subprocess.Process:
    """Run ``raylens drain`` until the server says that it drains."""
    port = str(http.base_url.port)
    process = await asyncio.create_subprocess_exec(
        RAYLENS, "drain", "--port", port, *options, stdout=subprocess.PIPE
    )
    async with asyncio.timeout(60):
        while (ready := await http.get("/ready")).status_code == 200:
            await asyncio.sleep(0.05)
    assert ready.json()["status"] == "draining"
    return process


async def test_a_server_that_is_drained_ends_what_has_begun_and_keeps_its_jobs(
    url: str, tmp_path: Path
) -> None:
    server, _ = find_server(int(url.rpartition(":")[2]))
    limits = httpx.Limits(max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as http:
        job = {"job_type": "query", "input": {"question": "what is it?"}}
        ids = [(await http.post("/api/v1/jobs", json=job)).json()["id"] for _ in range(2)]
        body = {
            "model": "cramped",
            "stream": True,
            "messages": [{"role": "user", "content": "what is it?"}],
        }
        async with (
            http.stream("POST", CHAT, json=body) as answer,
            http.stream("GET", f"/api/v1/jobs/{ids[1]}/events") as watched,
        ):
            tokens, events = Stream(answer.aiter_lines()), Stream(watched.aiter_lines())
            assert await tokens.read()
            assert await events.read()
            drain = await begin_drain(http)
            refused = await http.post(CHAT, json=body)
            assert refused.status_code == 503
            assert int(refused.headers["retry-after"]) > 0
            assert refused.headers["connection"] == "close"
            assert refused.json()["error"]["code"] == "overloaded"
            assert (await http.post("/api/v1/jobs", json=job)).status_code == 503
            assert (await http.get("/-/healthz")).status_code == 503
            assert (await http.get("/health")).json()["status"] == "healthy"
            # The client of the events has to go elsewhere, and soon.
            seen = await asyncio.wait_for(events.read_all(), 5)
            assert seen[-1].startswith("retry: ")
            seen = await tokens.read_all()
    assert seen[-1] == "data: [DONE]"
    last = json.loads(seen[-2].removeprefix("data: "))
    assert last["choices"][0]["finish_reason"] in ("length", "stop")
    output, _ = await asyncio.wait_for(drain.communicate(), 60)
    assert drain.returncode == 0
    assert b"requests in flight: " in output
    assert output.endswith(b"the server has ended\n")
    assert has_ended(server)
    # The one that ran has ended, too; the other one hasn't begun.
    assert states_of_jobs(tmp_path / "data") == ["succeeded", "queued"]


@pytest.mark.cluster  # for its time: it needs a server of its own, too
async def test_a_second_signal_ends_a_server_at_once(url: str, tmp_path: Path) -> None:
    server, _ = find_server(int(url.rpartition(":")[2]))
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:
        job = {"job_type": "query", "input": {"question": "what is it?"}}
        await http.post("/api/v1/jobs", json=job)
        server.send_signal(signal.SIGTERM)
        async with asyncio.timeout(10):
            while (ready := await http.get("/ready")).status_code == 200:
                await asyncio.sleep(0.05)
        assert ready.json()["status"] == "draining"
    begun_at = time.monotonic()
    server.send_signal(signal.SIGTERM)
    while not has_ended(server):
        assert time.monotonic() - begun_at < 45
        await asyncio.sleep(0.1)
